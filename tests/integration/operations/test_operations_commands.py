"""acp operations on a real Postgres; only the cloud around it is a stand-in."""

import json
from pathlib import Path
from typing import Any

import pytest
from psycopg import Connection
from tests.integration.operations.world import make_delivered, make_letters
from tests.integration.running_cloud import RunningCloud, run


def given(cloud: RunningCloud, *arguments: str) -> Any:
    result = run(cloud, "operations", *arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_a_redrive_is_planned_started_and_seen_done(cloud: RunningCloud, owner: Connection[Any]) -> None:
    make_letters(owner, 7)
    planned = given(cloud, "plan", "redrive", "subscription=signal_lab")
    assert (planned["state"], planned["total"], planned["requested_by"]) == ("planned", 7, "token:root")
    done = given(cloud, "start", planned["operation_id"], planned["plan_hash"], "--because", "it is mended")
    assert (done["state"], done["done"], done["reason"]) == ("done", 7, "it is mended")
    result = run(cloud, "operations", "list")
    assert "████████████████████████ 7 of 7" in result.stdout


def test_a_replay_is_paused_paced_and_cancelled(cloud: RunningCloud, owner: Connection[Any]) -> None:
    make_delivered(owner, 200)
    planned = given(cloud, "plan", "replay", "topic=market.ticks", "--rate", "1")
    operation_id = planned["operation_id"]
    given(cloud, "start", operation_id, planned["plan_hash"], "--because", "to see it")
    assert given(cloud, "pause", operation_id)["state"] == "paused"
    assert given(cloud, "rate", operation_id, "5")["rate"] == 5
    assert given(cloud, "resume", operation_id)["state"] == "running"
    assert "5 a second" in run(cloud, "operations", "show", operation_id).stdout
    cancelled = given(cloud, "cancel", operation_id)
    assert (cancelled["state"], cancelled["done"]) == ("cancelled", 0)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["plan", "redrive", "subscription"], "'subscription' is no FIELD=VALUE."),
        (["plan", "redrive", "ids=[1]", "ids=[2]"], "'ids=[2]' is given twice."),
        (["plan", "undo"], "kind: Input should be 'redrive'"),
        (["plan", "replay", "subscription=actions"], "takes no replay"),
        (["show", "0aa7f8a6-3f3d-4a4c-9c0d-5f0a2f6c2f10"], "There is no operation"),
        (["cancel", "0aa7f8a6-3f3d-4a4c-9c0d-5f0a2f6c2f10"], "There is no operation"),
    ],
)
def test_what_cannot_be_done_is_said_with_the_reason(cloud: RunningCloud, arguments: list[str], complaint: str) -> None:
    result = run(cloud, "operations", *arguments)
    assert result.exit_code in (1, 2)
    assert complaint in result.stderr.replace("\n", " ")


def test_a_replay_is_planned_by_options(cloud: RunningCloud, owner: Connection[Any]) -> None:
    make_delivered(owner, 20)
    result = run(cloud, "replay", "--topic", "market.ticks", "--since", "2001-01-01", "--rate", "50", "--json")
    planned = json.loads(result.stdout)
    assert (planned["kind"], planned["state"], planned["total"]) == ("replay", "planned", 20)
    assert planned["filter"]["occurred_since"].startswith("2001-01-01T00:00:00")
    assert f"scripts/acp operations start {planned['operation_id']} {planned['plan_hash']}" in result.stderr
    refused = run(cloud, "replay")
    assert (refused.exit_code, "name one of the two" in refused.stderr) == (1, True)


def test_a_backfill_is_planned_by_options(cloud: RunningCloud) -> None:
    result = run(
        cloud, "backfill", "plan", "AAPL,MSFT", "--since", "2026-01-05", "--interval", "1d", "--no-publish", "--json"
    )
    assert result.exit_code == 0, result.output
    planned = json.loads(result.stdout)
    assert (planned["kind"], planned["state"]) == ("backfill", "planned")
    assert (planned["filter"]["symbols"], planned["filter"]["publish"]) == (["AAPL", "MSFT"], False)


def test_a_file_is_sent_in_pieces_and_planned(cloud: RunningCloud, owner: Connection[Any], tmp_path: Path) -> None:
    file = tmp_path / "old.csv"
    file.write_text(
        "symbol,occurred_at,interval,open,high,low,close,volume,currency\n"
        "AAPL,2013-02-28T09:30:00-05:00,1d,444.05,447.87,441.4,441.4,11518400,USD\n"
    )
    arguments = ("backfill", "file", str(file), "--observed-at", "2026-01-06", "--json")
    first = run(cloud, *arguments)
    assert first.exit_code == 0, first.output
    planned = json.loads(first.stdout)
    assert (planned["kind"], planned["total"], planned["filter"]["source"]) == ("backfill", 1, "file")
    assert run(cloud, *arguments).exit_code == 0
    assert owner.execute("SELECT count(*) FROM backfill_pieces").fetchall() == [(1,)]
    file.write_text(file.read_text() + "AAPL,soon,1d,444.05,447.87,441.4,441.4,11518400,USD\n")
    assert "line 3" in run(cloud, *arguments).stderr


def test_an_operation_that_fails_is_followed_to_its_reason(cloud: RunningCloud, owner: Connection[Any]) -> None:
    make_letters(owner, 3)
    planned = given(cloud, "plan", "redrive", "subscription=signal_lab")
    owner.execute("DROP FUNCTION redrive_letters CASCADE")
    owner.execute("UPDATE operations SET failures = 5")
    result = run(
        cloud, "operations", "start", planned["operation_id"], planned["plan_hash"], "--because", "why", "--follow"
    )
    assert result.exit_code == 1
    assert f"Operation {planned['operation_id']} is failed: " in result.stderr
    assert "redrive_letters" in result.stderr
    assert f"scripts/acp operations resume {planned['operation_id']}" in result.stderr
