"""What an answer must be beside its type: something that the record can hold, and that can be scored."""

import json
from typing import Any

import pytest

from control_plane.decisions.models.model_agent import check_answer
from control_plane.model.deciding import Answer


class Forecasting(Answer):
    value: Any = None
    forecasts: tuple[dict[str, Any], ...] = ()


def why_refused(**answer: Any) -> str | None:
    return check_answer(json.dumps(answer).encode(), Forecasting)


@pytest.mark.parametrize("number", [2**53, -(2**53), True, 0.5])
def test_an_answer_with_such_a_number_is_taken(number: float) -> None:
    assert why_refused(value={"deep": [number]}) is None


@pytest.mark.parametrize("number", [2**53 + 1, -(2**53) - 1, 2**60, 10**40])
def test_an_integer_that_json_does_not_hold_is_refused(number: int) -> None:
    said = why_refused(value={"SYSTEM": [number]})
    assert said is not None
    assert "beyond 2**53" in said
    assert "SYSTEM" not in said


def test_an_event_is_forecast_once() -> None:
    assert why_refused(forecasts=[{"event": "moves"}, {"event": "falls"}]) is None
    said = why_refused(forecasts=[{"event": "moves", "p": 1}, {"event": "moves", "p": 2}])
    assert said is not None
    assert "two are of one event" in said
