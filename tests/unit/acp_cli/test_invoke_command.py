from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from acp_cli import invoke_command
from local_cloud.errors import UsageError
from local_cloud.workspace import Workspace

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ('{"claimed": 1}', None),
        ('{"errorMessage": "a field of its own"}', None),
        ("[]", None),
        ('{"errorMessage": "no", "errorType": "ValueError"}', "ValueError: no"),
        ("", "it gave no answer"),
    ],
)
def test_an_error_is_distinguished_from_a_handlers_answer(answer: str, said: str | None) -> None:
    assert invoke_command.failure(answer) == said


def test_a_function_s_sample_is_found_and_several_are_named(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path, tmp_path, tmp_path)
    events = tmp_path / "events"
    events.mkdir()
    for name in ("relay", "relay_slow", "ops_api_health", "ops_api_event"):
        (events / f"{name}.json").touch()
    assert invoke_command.sample(workspace, "RelayFunction") == events / "relay.json"
    with pytest.raises(UsageError, match="OpsApiFunction has 2 samples") as raised:
        invoke_command.sample(workspace, "OpsApiFunction")
    assert "-e events/ops_api_health.json" in raised.value.remedy
    with pytest.raises(UsageError, match="MigrationFunction has 0 samples"):
        invoke_command.sample(workspace, "MigrationFunction")
