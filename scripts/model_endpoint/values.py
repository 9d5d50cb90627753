"""Values made to fit a JSON Schema, as far as answers of agents use it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

_MOST_DEPTH: Final = 12


def fitting(schema: Mapping[str, Any], *, last: bool = False, text: str = "as the data says") -> Any:
    """Returns a value that fits a schema: each first choice and least number; with ``last`` each last and greatest."""
    return _Maker(schema.get("$defs", {}), last=last, text=text).make(schema, 0)


def replaced(value: Any, *, numbers: Callable[[Any], Any]) -> Any:
    """Returns a value with each of its numbers replaced."""
    if isinstance(value, dict):
        return {key: replaced(item, numbers=numbers) for key, item in value.items()}
    if isinstance(value, list):
        return [replaced(item, numbers=numbers) for item in value]
    return numbers(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


class _Maker:
    def __init__(self, definitions: Mapping[str, Any], *, last: bool, text: str) -> None:
        self._last = last
        self._text = text
        self._named: dict[str, Callable[[Any, int], Any]] = {
            "$ref": lambda ref, depth: self.make(definitions[ref.rpartition("/")[2]], depth + 1),
            "const": lambda value, _: value,
            "enum": lambda values, _: values[-1 if last else 0],
            "anyOf": self._one_of,
            "oneOf": self._one_of,
            "allOf": self._one_of,
        }
        """What makes a value of a schema that has the keyword, in this order."""
        self._typed: dict[str, Callable[[Any, int], Any]] = {
            "object": self._object,
            "array": self._items,
            "string": lambda schema, _: self._string(schema),
            "integer": lambda schema, _: int(self._number(schema, 1)),
            "number": lambda schema, _: self._number(schema, 0.5),
            "boolean": lambda _, __: last,
        }

    def make(self, schema: Mapping[str, Any], depth: int) -> Any:
        if depth > _MOST_DEPTH:
            return None
        for name, make in self._named.items():
            if name in schema:
                return make(schema[name], depth)
        typed = self._typed.get(str(schema.get("type")))
        return None if typed is None else typed(schema, depth)

    def _one_of(self, choices: Sequence[Mapping[str, Any]], depth: int) -> Any:
        return self.make(choices[0], depth + 1)

    def _object(self, schema: Mapping[str, Any], depth: int) -> dict[str, Any]:
        return {name: self.make(one, depth + 1) for name, one in schema.get("properties", {}).items()}

    def _items(self, schema: Mapping[str, Any], depth: int) -> list[Any]:
        if "prefixItems" in schema:
            return [self.make(one, depth + 1) for one in schema["prefixItems"]]
        count = max(schema.get("minItems", 0), min(1, schema.get("maxItems", 1)))
        return [self.make(schema.get("items", {}), depth + 1) for _ in range(count)]

    def _string(self, schema: Mapping[str, Any]) -> str:
        text = self._text[: schema.get("maxLength", len(self._text))]
        return text.ljust(schema.get("minLength", 0), ".")

    def _number(self, schema: Mapping[str, Any], usual: float) -> float:
        least = schema.get("minimum", schema.get("exclusiveMinimum"))
        most = schema.get("maximum", schema.get("exclusiveMaximum"))
        chosen = (most, least) if self._last else (least, most)
        return next((value for value in chosen if value is not None), usual)
