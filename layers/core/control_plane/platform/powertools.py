"""Checks the environment variables that Powertools reads when it is imported or a logger is made.

Powertools raises a bare ValueError for a value that it cannot read, before any handler could log it. So each variable
is checked first.
"""

from collections.abc import Callable, Mapping, MutableMapping
from typing import Final

_TRUTH: Final = frozenset({"1", "y", "yes", "t", "true", "on", "0", "n", "no", "f", "false", "off"})
_LEVELS: Final = frozenset({"DEBUG", "INFO", "WARN", "WARNING", "ERROR", "CRITICAL"})


def _is_truth(text: str) -> bool:
    return text.lower() in _TRUTH


def _is_rate(text: str) -> bool:
    try:
        return 0 <= float(text) <= 1
    except ValueError:
        return False


def _is_level(text: str) -> bool:
    return text.upper() in _LEVELS


_LEVEL: Final = (_is_level, "DEBUG, INFO, WARNING, ERROR or CRITICAL")
_SWITCH: Final = (_is_truth, "true or false")
_NEEDS: Final[Mapping[str, tuple[Callable[[str], bool], str]]] = {
    "POWERTOOLS_LOG_LEVEL": _LEVEL,
    "LOG_LEVEL": _LEVEL,
    "POWERTOOLS_LOGGER_SAMPLE_RATE": (_is_rate, "a number from 0 to 1"),
    "POWERTOOLS_DEBUG": _SWITCH,
    "POWERTOOLS_DEV": _SWITCH,
    "POWERTOOLS_LOGGER_LOG_EVENT": _SWITCH,
    "POWERTOOLS_LOG_DEDUPLICATION_DISABLED": _SWITCH,
    "POWERTOOLS_METRICS_DISABLED": _SWITCH,
}


def take_out_unreadable(environ: MutableMapping[str, str]) -> tuple[str, ...]:
    """Removes each variable that Powertools could not read, and returns what is wrong with it.

    An empty variable is removed, too, because it means no value.
    """
    problems = []
    for name, (is_readable, wanted) in _NEEDS.items():
        text = environ.get(name)
        if text is None or is_readable(text):
            continue
        del environ[name]
        if text.strip():
            problems.append(f"{name} is {text[:100]!r}: it must be {wanted}")
    return tuple(problems)
