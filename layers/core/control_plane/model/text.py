"""Text that comes from elsewhere, made fit to be stored, logged and shown."""

LONGEST = 1024


def readable(text: str) -> str:
    """At most LONGEST characters, a space for each that cannot be printed: NUL, a line's end, a lone surrogate."""
    return "".join(character if character.isprintable() else " " for character in text[:LONGEST])
