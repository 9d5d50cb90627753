"""The JSON Schema of an answer's type, in the part of JSON Schema that every provider takes.

OpenAI's strict mode and Bedrock's models each refuse or ignore keywords that the other takes. What is left out here is
told in words; the answer is held to its type by ``check_answer`` whatever its model was shown.
"""

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, Final

from control_plane.model.deciding import Answer

_LEFT_OUT: Final = frozenset({"title", "$defs", "minLength", "maxLength"})


@cache
def schema_of(answer_type: type[Answer]) -> Mapping[str, Any]:
    """Returns a type's schema without references, titles and lengths. Raises ValueError where it holds itself."""
    schema = answer_type.model_json_schema()
    found = _inlined(schema, schema.get("$defs", {}), ())
    assert isinstance(found, dict)
    return found


@cache
def field_names(answer_type: type[Answer]) -> frozenset[str]:
    """Returns the names of all fields in a type, those of what it holds included."""
    return frozenset(_names(schema_of(answer_type)))


def _inlined(schema: Any, definitions: Mapping[str, Any], within: tuple[str, ...]) -> Any:
    if isinstance(schema, list):
        return [_inlined(item, definitions, within) for item in schema]
    if not isinstance(schema, Mapping):
        return schema
    if "$ref" in schema:
        name = str(schema["$ref"]).rpartition("/")[2]
        if name in within:
            raise ValueError(f"the answer's {name} holds itself: no schema without references can say so")
        rest = {key: value for key, value in schema.items() if key != "$ref"}
        return _inlined({**definitions[name], **rest}, definitions, (*within, name))
    found = {
        # The keys of properties are names, and may be called as keywords are.
        key: {name: _inlined(one, definitions, within) for name, one in value.items()}
        if key == "properties"
        else _inlined(value, definitions, within)
        for key, value in schema.items()
        if key not in _LEFT_OUT
    }
    if "maxLength" in schema:
        found["description"] = f"{found.get('description', '')} At most {schema['maxLength']} characters.".strip()
    return found


def _names(schema: Any) -> Iterator[str]:
    if isinstance(schema, Mapping):
        yield from schema.get("properties", {})
    if isinstance(schema, Mapping | list):
        for value in schema.values() if isinstance(schema, Mapping) else schema:
            yield from _names(value)
