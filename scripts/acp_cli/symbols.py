"""Reads symbols as people type them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


def split_symbols(words: Iterable[str]) -> list[str]:
    """Returns the symbols in these words, each once, in capitals; spaces, commas or both may separate them."""
    found = (symbol.upper() for word in words for symbol in re.split(r"[,\s]+", word) if symbol)
    return list(dict.fromkeys(found))
