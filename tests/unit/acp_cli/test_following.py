from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from acp_cli import following

if TYPE_CHECKING:
    import pytest

    from acp_client.client import Client
    from local_cloud.progress import Step

RUNNING: dict[str, Any] = {
    "operation_id": "0b8f6f0e-6c7a-4f3e-9d62-2f9f4d1f2a11",
    "state": "running", "total": 9, "done": 3, "skipped": 0, "rate": None, "error": None, "is_stalled": False,
}  # fmt: skip


class Answers:
    """An API that gives these answers, one after the other."""

    def __init__(self, *answers: dict[str, Any]) -> None:
        self._answers = list(answers)

    def get(self, _path: str) -> dict[str, Any]:
        return self._answers.pop(0)


class Said:
    """A progress line that keeps what it was given."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def update(self, text: str) -> None:
        self.texts.append(text)


def test_an_operation_without_a_step_is_named_while_it_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "_FIRST_PAUSE_SECONDS", 0)
    done, said = RUNNING | {"state": "done", "done": 9}, Said()
    client = cast("Client", Answers(RUNNING, RUNNING | {"is_stalled": True}, done))
    assert following._until(client, RUNNING, lambda one: one["state"] == "done", cast("Step", said)) == done
    assert said.texts == ["3 of 9", following._STALLED]
