"""acp on any deployment: by a URL and a token, by a profile; tokens, events and the audit's log.

A redrive is of three letters, or of as many as OPERATIONS_LETTERS says.
"""

import json
import os
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from psycopg import Connection
from tests.integration import seeds
from tests.integration.operations.world import make_letters, pending_of
from tests.integration.running_cloud import API_TOKEN, RunningCloud, give_up, run
from typer.testing import CliRunner, Result

from acp_cli.cli import app as acp
from local_cloud.cloud import Cloud
from local_cloud.workspace import CHECKOUT, Workspace

LETTERS = int(os.environ.get("OPERATIONS_LETTERS", "3"))


@pytest.fixture
def nowhere(tmp_path: Path) -> Cloud:
    """A workspace without a local cloud: what works here needs a URL and a token alone."""
    return Cloud(Workspace(CHECKOUT, tmp_path / "elsewhere", tmp_path / "elsewhere" / "state"))


def asked(cloud: Cloud, url: str, *arguments: str, token: str = API_TOKEN) -> Result:
    result = CliRunner().invoke(acp, arguments, obj=cloud, env={"ACP_URL": url, "ACP_TOKEN": token})
    assert result.exception is None or isinstance(result.exception, SystemExit), "a traceback"
    return result


def url_of(cloud: RunningCloud) -> str:
    return cloud.outputs(cloud.running())["ApiUrl"]


def test_letters_are_found_and_redriven_with_nothing_but_a_url_and_a_token(
    cloud: RunningCloud, nowhere: Cloud, owner: Connection[Any]
) -> None:
    make_letters(owner, LETTERS)
    url = url_of(cloud)
    listed = json.loads(asked(nowhere, url, "dead-letters", "--reason", "big", "--json").stdout)
    assert len(listed) == min(LETTERS, 20)
    would = json.loads(asked(nowhere, url, "redrive", "--reason", "big", "--dry-run", "--json").stdout)
    done = json.loads(asked(nowhere, url, "redrive", "--reason", "big", "--because", "mended", "--json").stdout)
    assert would["redriven"] == done["redriven"] == {"signal_lab": LETTERS}
    states = owner.execute("SELECT state, reason FROM operations ORDER BY requested_at").fetchall()
    assert states == [("cancelled", "asked for by ada"), ("done", "mended")]
    assert pending_of(owner, UUID(done["operation_id"])) == LETTERS
    assert asked(nowhere, url, "dead-letters").stderr == "No dead letters.\n"


def test_a_subscription_is_held_and_resumed_with_nothing_but_a_url_and_a_token(
    cloud: RunningCloud, nowhere: Cloud, app: Connection[Any]
) -> None:
    url = url_of(cloud)
    held = asked(nowhere, url, "hold", "signal_lab", "--reason", "it is mended")
    assert held.exit_code == 0, held.output
    assert "signal_lab is held by token:root: no message is sent to it" in held.stderr
    assert {row["name"]: row["guards"] for row in json.loads(asked(nowhere, url, "breakers", "--json").stdout)}[
        "signal_lab"
    ] == "subscription"
    assert "is probed by the next run" in asked(nowhere, url, "resume", "signal_lab").stderr
    unknown = asked(nowhere, url, "hold", "yfinance")
    assert (unknown.exit_code, "Nothing called 'yfinance'" in unknown.stderr) == (2, True)
    assert asked(nowhere, url, "hold", "yfinance", "--new").exit_code == 0


def test_another_persons_hold_is_taken_over_by_force_alone(cloud: RunningCloud, owner: Connection[Any]) -> None:
    run(cloud, "hold", "signal_lab")
    owner.execute("UPDATE circuit_breakers SET held_by = 'kim'")
    refused = run(cloud, "hold", "signal_lab")
    assert refused.exit_code == 1
    assert "signal_lab (MarketTicksQueue) is held by kim already." in refused.stderr
    assert "scripts/acp hold signal_lab --force" in refused.stderr
    assert run(cloud, "hold", "signal_lab", "--force").exit_code == 0


def test_a_token_is_made_shown_once_used_listed_and_revoked(cloud: RunningCloud, nowhere: Cloud) -> None:
    url = url_of(cloud)
    made = run(cloud, "tokens", "make", "kim", "--scope", "read", "--expires", "30", "-q")
    assert (made.exit_code, made.stderr) == (0, "")
    token = made.stdout.strip()
    assert asked(nowhere, url, "events", token=token).exit_code == 0
    refused = asked(nowhere, url, "discard", "1", "--because", "why", "--all", token=token)
    assert refused.exit_code == 2
    refused = asked(nowhere, url, "hold", "signal_lab", token=token)
    assert (refused.exit_code, "acp tokens make NAME --scope" in refused.stderr) == (1, True)

    [listed] = json.loads(run(cloud, "tokens", "list", "--json").stdout)
    assert (listed["name"], listed["scopes"], listed["revoked_at"]) == ("kim", ["read"], None)
    assert token not in run(cloud, "tokens", "list").output
    assert run(cloud, "tokens", "revoke", "kim", "--because", "kim left").exit_code == 0
    [listed] = json.loads(run(cloud, "tokens", "list", "--json").stdout)
    assert listed["revoked_by"] == "root"
    again = run(cloud, "tokens", "make", "kim", "--scope", "read")
    assert (again.exit_code, "was a token kim already" in again.stderr) == (1, True)

    log = run(cloud, "audit", "log")
    assert [line.split("  ")[3] for line in log.stdout.splitlines()] == ["DELETE /tokens/{name}", "POST /tokens"]
    assert "kim left" in log.stdout
    assert token not in log.output + run(cloud, "audit", "log", "--json").output
    assert run(cloud, "audit", "log", "--name", "nobody").stderr == "Nothing was changed by nobody.\n"


def test_whoami_says_whose_token_is_used(cloud: RunningCloud, nowhere: Cloud) -> None:
    url = url_of(cloud)
    assert asked(nowhere, url, "whoami").stdout == "root: admin, approve, metrics, operate, read, until it is revoked\n"
    made = asked(nowhere, url, "tokens", "make", "kim", "--scope", "read", "--because", "kim joins", "--json")
    kim = json.loads(made.stdout)["token"]
    assert json.loads(asked(nowhere, url, "whoami", "--json", token=kim).stdout) == {
        "name": "kim", "scopes": ["read"], "expires_at": None,
    }  # fmt: skip


def test_a_wrong_token_is_refused_with_the_remedy(cloud: RunningCloud, nowhere: Cloud) -> None:
    refused = asked(nowhere, url_of(cloud), "dead-letters", token="a-token-that-is-nobody-s")
    assert (refused.exit_code, "acp login" in refused.stderr) == (1, True)
    assert "a-token-that" not in refused.output


def test_events_are_listed_by_what_they_are(cloud: RunningCloud, app: Connection[Any]) -> None:
    stored = seeds.store(app, seeds.ticks(3)) + seeds.store(app, seeds.failures(1))
    listed = json.loads(run(cloud, "events", "--json").stdout)
    assert [event["event_id"] for event in listed] == [str(event_id) for event_id in reversed(stored)]
    [failure] = run(cloud, "events", "--type", "SOURCE_FETCH_FAILED").stdout.splitlines()
    assert failure.startswith(f"{stored[3]}  SOURCE_FETCH_FAILED  ")
    cut = run(cloud, "events", "--limit", "2")
    assert (len(cut.stdout.splitlines()), "--limit shows more" in cut.stderr) == (2, True)
    assert run(cloud, "events", "--until", "2001-01-01").stderr == "No event fits.\n"
    assert run(cloud, "events", "--since", "soon").exit_code == 2
    refused = run(cloud, "events", "--source", "yfinance")
    assert (refused.exit_code, "source is no filter of its own" in refused.stderr) == (1, True)


def test_many_letters_are_found_by_their_ids_and_discarded(cloud: RunningCloud, owner: Connection[Any]) -> None:
    make_letters(owner, 250)
    ids = [str(number) for (number,) in owner.execute("SELECT id FROM dead_letters ORDER BY id").fetchall()]
    listed = json.loads(
        run(cloud, "dead-letters", "--json", "--limit", "240", *(x for i in ids for x in ("--id", i))).stdout
    )
    assert [str(letter["id"]) for letter in listed] == ids[::-1][:240]
    report = json.loads(run(cloud, "discard", *ids, "99999", "--because", "why", "--json").stdout)
    assert (report["discarded"], report["not_open"], len(report["operation_ids"])) == ({"signal_lab": 250}, [99999], 1)
    assert json.loads(run(cloud, "dead-letters", "--json").stdout) == []


def test_a_redrive_that_must_not_run_beside_another_leaves_no_plan(
    cloud: RunningCloud, app: Connection[Any], owner: Connection[Any]
) -> None:
    give_up(owner, seeds.store(app, seeds.ticks(3)), "no luck")
    first = run(cloud, "operations", "plan", "redrive", "subscription=signal_lab", "--rate", "0.1", "--json")
    planned = json.loads(first.stdout)
    run(cloud, "operations", "start", planned["operation_id"], planned["plan_hash"], "--because", "slowly")
    refused = run(cloud, "redrive", "--subscription", "signal_lab")
    assert (refused.exit_code, "must not run beside" in refused.stderr) == (1, True)
    states = owner.execute("SELECT state FROM operations ORDER BY requested_at").fetchall()
    assert states == [("running",), ("cancelled",)]


@pytest.mark.parametrize("command", [["up"], ["watch"], ["db", "shell"]])
def test_a_local_command_is_refused_for_another_deployment(cloud: RunningCloud, command: list[str]) -> None:
    refused = run(cloud, "--url", "https://example.com/v1", *command)
    assert (refused.exit_code, "is for the local cloud alone" in refused.stderr) == (2, True)
