"""The schema that a model is shown of its answer: of finance's types and of harder ones."""

import json
from typing import Annotated, Literal, Optional

import pytest
from pydantic import BaseModel, Field

from control_plane.decisions.models.answer_schema import field_names, schema_of
from control_plane.model.deciding import Answer
from domains.finance.deciding.model_agents import MODEL_AGENTS

type Line = Annotated[str, Field(min_length=1, max_length=240)]


class Part(BaseModel):
    """A part."""

    title: Annotated[str, Field(max_length=9, description="Its name.")]
    choice: Literal["a", "b"]


class Whole(Answer):
    """A whole."""

    parts: Annotated[list[Part], Field(max_length=5)]
    line: Line | None


class Endless(Answer):
    """Holds itself."""

    inner: Optional["Endless"]


@pytest.mark.parametrize("answer_type", [Whole, *(agent.answer_type for agent in MODEL_AGENTS)])
def test_a_schema_has_no_keyword_that_a_provider_refuses(answer_type: type[Answer]) -> None:
    text = json.dumps(schema_of(answer_type))
    assert not any(f'"{keyword}":' in text for keyword in ("$ref", "$defs", "minLength", "maxLength", "default"))


def test_lengths_are_told_in_words() -> None:
    properties = schema_of(Whole)["properties"]
    assert properties["parts"]["items"]["properties"]["title"]["description"] == "Its name. At most 9 characters."
    assert properties["line"]["anyOf"][0] == {"type": "string", "description": "At most 240 characters."}
    assert properties["parts"]["maxItems"] == 5


def test_all_names_of_fields_are_known() -> None:
    assert field_names(Whole) == {"parts", "line", "title", "choice"}


def test_a_type_that_holds_itself_is_refused() -> None:
    with pytest.raises(ValueError, match="Endless holds itself"):
        schema_of(Endless)
