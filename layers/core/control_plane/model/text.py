"""Makes text that comes from elsewhere fit to be stored, logged and shown."""

import re
from typing import Final
from unicodedata import category

LONGEST = 1024

INVISIBLE: Final = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""Unicode's categories of characters that control a terminal, end a line or have no visible shape."""

_PRINTABLE_ASCII: Final = re.compile(r"[\x20-\x7e]*")


def readable(text: str) -> str:
    """Returns at most LONGEST characters of a text, with a space for each one that cannot be printed.

    Such characters are NUL, line ends and lone surrogates, for example.
    """
    return "".join(character if character.isprintable() else " " for character in text[:LONGEST])


def has_invisible(text: str) -> bool:
    """Returns whether a text holds a character of the INVISIBLE categories."""
    return not _PRINTABLE_ASCII.fullmatch(text) and any(category(character) in INVISIBLE for character in text)


def visible(text: str) -> str:
    r"""Returns the text with each character of the INVISIBLE categories written out: ``\x1b``, ``\n``, ``\u202e``.

    The result is one line that neither a terminal nor a log reader can mistake for anything but text.
    """
    if not has_invisible(text):
        return text
    return "".join(_written_out(character) if category(character) in INVISIBLE else character for character in text)


def _written_out(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
