"""Strict JSON read a second time, for the oracle: it shares no code with the reader that it judges."""

import json
import re
import unicodedata
from typing import Any

_TOKEN = re.compile(
    r"[ \t\r\n]*(?:(?P<open>[\[{])|(?P<close>[\]}])|(?P<comma>,)|(?P<colon>:)"
    r'|(?P<text>"(?:[^"\\\x00-\x1f]|\\["\\/bfnrt]|\\u[0-9a-fA-F]{4})*")'
    r"|(?P<number>-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?)(?![0-9a-zA-Z.])|(?P<word>true|false|null))",
    re.ASCII,
)
_WORDS = {"true": True, "false": False, "null": None}


class NotJson(Exception):
    pass


def strict_json(given: bytes) -> Any:
    if len(given) > 65536:
        raise NotJson
    try:
        text = given.decode()
    except UnicodeDecodeError:
        raise NotJson from None
    value, end = _value(text, 0, 0)
    if text[end:].strip(" \t\r\n"):
        raise NotJson
    return value


def _next(text: str, at: int) -> re.Match[str]:
    token = _TOKEN.match(text, at)
    if token is None:
        raise NotJson
    return token


def _value(text: str, at: int, depth: int) -> tuple[Any, int]:
    token = _next(text, at)
    match token.lastgroup:
        case "open" if depth == 32:
            raise NotJson
        case "open":
            read = _members if token["open"] == "{" else _items
            return read(text, token.end(), depth + 1)
        case "text":
            return _text(token["text"]), token.end()
        case "number":
            return _number(token["number"]), token.end()
        case "word":
            return _WORDS[token["word"]], token.end()
    raise NotJson


def _items(text: str, at: int, depth: int) -> tuple[list[Any], int]:
    token = _next(text, at)
    if token["close"] == "]":
        return [], token.end()
    found = []
    while True:
        value, at = _value(text, at, depth)
        found.append(value)
        token = _next(text, at)
        at = token.end()
        if token["close"] == "]":
            return found, at
        if token["comma"] is None:
            raise NotJson


def _members(text: str, at: int, depth: int) -> tuple[dict[str, Any], int]:
    token = _next(text, at)
    if token["close"] == "}":
        return {}, token.end()
    found: dict[str, Any] = {}
    while True:
        token = _next(text, at)
        if token["text"] is None:
            raise NotJson
        name = _text(token["text"])
        token = _next(text, token.end())
        if token["colon"] is None or name in found:
            raise NotJson
        found[name], at = _value(text, token.end(), depth)
        token = _next(text, at)
        at = token.end()
        if token["close"] == "}":
            return found, at
        if token["comma"] is None:
            raise NotJson


def _number(digits: str) -> int | float:
    if re.fullmatch(r"-?\d+", digits):
        if len(digits) > 4300:
            raise NotJson
        return int(digits)
    value = float(digits)
    if value in (float("inf"), float("-inf")):
        raise NotJson
    return value


def _text(quoted: str) -> str:
    text: str = json.loads(quoted)
    if any(unicodedata.category(each) in ("Cc", "Cf", "Cs", "Zl", "Zp") for each in text):
        raise NotJson
    return text
