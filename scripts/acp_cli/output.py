"""Makes what a command prints reach its reader: a terminal of any encoding, a pipe, or nobody."""

from __future__ import annotations

import codecs
import io
import os
import select
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import TextIO

_PLAIN = {
    "✓": "ok",
    "✗": "failed",
    "…": "...",
    "·": "-",
    "•": "*",
    "–": "-",
    "—": "-",
    "\u2212": "-",
    "’": "'",
    "“": '"',
    "”": '"',
    "×": "x",
    "≥": ">=",
    "≤": "<=",
    "→": "->",
    "←": "<-",
    "σ": "sigma",
    "─": "-",
    "━": "-",
    "═": "-",
    "│": "|",
    "┃": "|",
    "║": "|",
}
"""The replacement for each character that the output's encoding does not have."""
_ERRORS = "acp-readable"


class ReaderGone(BaseException):
    """Raised when the reader of standard output has gone, as `head` does: then the command may end.

    It is no error; only `finally` clauses still run.
    """


def prepare_streams(environ: Mapping[str, str]) -> None:
    """Makes standard output and error take any character, end quietly with a pipe's reader, and exist if closed."""
    codecs.register_error(_ERRORS, _readable)
    encoding = "ascii" if wants_ascii(environ) else None
    sys.stdout = _stream(sys.stdout, encoding, _Output)
    # A command whose progress nobody reads still does its work.
    sys.stderr = _stream(sys.stderr, encoding, _Progress)


def wants_ascii(environ: Mapping[str, str]) -> bool:
    """Whether the locale is C or POSIX; Python itself would nevertheless write UTF-8."""
    if environ.get("PYTHONIOENCODING") or environ.get("PYTHONUTF8"):
        return False
    chosen = next((environ[name] for name in ("LC_ALL", "LC_CTYPE", "LANG") if environ.get(name)), "")
    return chosen in {"C", "POSIX"}


def wait_while_read(seconds: float) -> None:
    """Waits, but only while somebody may still read standard output. Raises ReaderGone.

    A failing write would reveal that the reader is gone, but a command with nothing to say may not write for a long
    time.
    """
    try:
        output = sys.stdout.fileno()
    except (OSError, ValueError):
        time.sleep(seconds)
        return
    poll = select.poll()
    poll.register(output, 0)  # poll always reports a pipe's end
    if poll.poll(seconds * 1000):
        _discard(output)
        raise ReaderGone


def _discard(output: int) -> None:
    # Discards what is still buffered, because writing it at exit would fail again.
    os.dup2(os.open(os.devnull, os.O_WRONLY), output)


class _Output(io.TextIOWrapper):
    """A text stream whose reader may have gone.

    Its raw file is a plain ``FileIO``. If that had a ``write`` in Python, an interrupt between the write and its return
    would make the buffer write the same bytes again.
    """

    def write(self, text: str, /) -> int:
        try:
            return super().write(text)
        except BrokenPipeError:
            _discard(self.fileno())
            raise ReaderGone from None

    def flush(self) -> None:
        try:
            super().flush()
        except BrokenPipeError:
            _discard(self.fileno())
            raise ReaderGone from None


class _Progress(_Output):
    """A text stream that drops what it is given once its reader has gone."""

    def write(self, text: str, /) -> int:
        try:
            return super().write(text)
        except ReaderGone:
            return len(text)

    def flush(self) -> None:
        with suppress(ReaderGone):
            super().flush()


def _stream(stream: TextIO | None, encoding: str | None, kind: type[_Output]) -> TextIO:
    if stream is None:
        # The stream was closed before we began.
        return open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123  for as long as the process lives
    stream.flush()
    return kind(
        io.BufferedWriter(io.FileIO(stream.fileno(), "w", closefd=False)),
        encoding=encoding or stream.encoding,
        errors=_ERRORS,
        line_buffering=stream.isatty() or kind is _Progress,
    )


def _readable(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    return "".join(map(_plain, text)), error.end


def _plain(character: str) -> str:
    if character in _PLAIN:
        return _PLAIN[character]
    if "\u2500" <= character <= "\u257f":
        return "+"  # corners and crossings of boxes
    if "\u2800" <= character <= "\u28ff":
        return "*"  # a spinner
    return character.encode("ascii", "backslashreplace").decode("ascii")
