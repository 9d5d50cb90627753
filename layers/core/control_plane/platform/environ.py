"""Reading a function's variables: an empty one counts as absent, and all that is wrong is told in one error."""

from collections.abc import Callable, Mapping
from urllib.parse import urlsplit

from control_plane.model.errors import ConfigurationError


class EnvironReader:
    """Reads variables, collecting what is wrong with them instead of stopping at the first."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = {name: value.strip() for name, value in environ.items() if value.strip()}
        self._problems: list[str] = []

    def problem(self, text: str) -> None:
        """Notes a problem that names the variable and the remedy."""
        self._problems.append(text)

    def text(self, name: str) -> str | None:
        """Returns the variable's value, or None if it is absent or empty."""
        return self._environ.get(name)

    def number(self, name: str, default: float, *, minimum: float, maximum: float) -> float:
        """Returns a number within bounds, or ``default`` if the variable is absent."""
        text = self.text(name)
        if text is None:
            return default
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not minimum <= value <= maximum:
            self.problem(f"{name} is {text!r}: it must be a number from {minimum:g} to {maximum:g}")
            return default
        return value

    def integer(self, name: str, default: int, *, minimum: int, maximum: int) -> int:
        """Returns a whole number within bounds, or ``default`` if the variable is absent."""
        value = self.number(name, default, minimum=minimum, maximum=maximum)
        if value != int(value):
            self.problem(f"{name} is {self.text(name)!r}: it must be a whole number")
            return default
        return int(value)

    def url(self, name: str) -> str | None:
        """Returns an http or https URL without a trailing slash."""
        text = self.text(name)
        if text is None:
            return None
        try:
            parts = urlsplit(text)
            usable = parts.scheme in {"http", "https"} and parts.hostname is not None and parts.port != 0
        except ValueError:  # Brackets without an IPv6 address, or a port that is no number.
            usable = False
        if not usable:
            self.problem(f"{name} is {text!r}: it must be an http:// or https:// URL")
        return text.rstrip("/")

    def finish(self) -> None:
        """Raises ConfigurationError with every problem noted."""
        if self._problems:
            raise ConfigurationError(self._problems)


def read_settings[S](environ: Mapping[str, str], build: Callable[[EnvironReader], S]) -> S:
    """Returns what ``build`` makes of the variables. Raises ConfigurationError with all that is wrong with them."""
    reader = EnvironReader(environ)
    settings = build(reader)
    reader.finish()
    return settings
