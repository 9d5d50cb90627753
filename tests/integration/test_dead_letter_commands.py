"""acp dead-letters, redrive, discard and trace on a real Postgres; only the cloud around it is a stand-in."""

import json
import re
from typing import Any
from uuid import UUID

import pytest
from psycopg import Connection
from tests.integration import seeds
from tests.integration.running_cloud import RunningCloud, give_up, run
from tests.integration.test_letters import letter

from acp_cli import asking, dead_letter_commands
from control_plane.consumers.letters import store_letters

DENIED = "gave up after 5 attempts: [AccessDenied] not allowed"
TOO_LARGE = "the message is too large"


@pytest.fixture
def event_ids(app: Connection[Any], owner: Connection[Any]) -> list[UUID]:
    """Two ticks and a system event that were given up on, and a tick that was not."""
    stored = seeds.store(app, seeds.ticks(3)) + seeds.store(app, seeds.failures(1))
    for event_id, reason in ((stored[0], DENIED), (stored[1], TOO_LARGE), (stored[3], DENIED)):
        give_up(owner, [event_id], reason)
    return stored


def listed(cloud: RunningCloud, *arguments: str) -> list[dict[str, Any]]:
    result = run(cloud, "dead-letters", "--json", *arguments)
    assert result.exit_code == 0, result.output
    content: list[dict[str, Any]] = json.loads(result.stdout)
    return content


def test_an_empty_list_says_so(cloud: RunningCloud) -> None:
    result = run(cloud, "dead-letters")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "No dead letters.\n")


def test_dead_letters_are_listed_with_reasons_in_eighty_columns(cloud: RunningCloud, event_ids: list[UUID]) -> None:
    result = run(cloud, "dead-letters")
    assert result.exit_code == 0, result.output
    assert all(len(line) <= 80 for line in result.stdout.splitlines())
    first, event, reason = result.stdout.splitlines()[:3]
    assert re.match(r"3  system_events  5 attempts, \d+ s ago  SOURCE_FETCH_FAILED", first)
    assert event == f"   event {event_ids[3]}"
    assert reason == f"   {DENIED}"
    assert "scripts/acp redrive ID…" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        ([], [3, 2, 1]),
        (["--subscription", "signal_lab"], [2, 1]),
        (["--reason", "accessdenied"], [3, 1]),
        (["--id", "1", "--id", "2"], [2, 1]),
        (["--subscription", "signal_lab", "--reason", "too large"], [2]),
        (["--limit", "1"], [3]),
    ],
)
def test_the_list_can_be_narrowed(
    cloud: RunningCloud, event_ids: list[UUID], arguments: list[str], found: list[int]
) -> None:
    assert [letter["id"] for letter in listed(cloud, *arguments)] == found


def test_a_cut_list_says_that_there_are_more(cloud: RunningCloud, event_ids: list[UUID]) -> None:
    assert (
        "These are the newest 2; --limit shows more, --below 2 the next ones."
        in run(cloud, "dead-letters", "--limit", "2").stderr
    )
    assert "--limit" not in run(cloud, "dead-letters", "--limit", "3").stderr
    assert run(cloud, "dead-letters", "--id", "99").stderr == "There is no dead letter that fits.\n"


def test_a_dry_run_reports_and_changes_nothing(cloud: RunningCloud, event_ids: list[UUID]) -> None:
    result = run(cloud, "redrive", "--all", "--dry-run")
    assert result.exit_code == 0, result.output
    assert result.stdout == "3 dead letters would be redriven: signal_lab 2, system_events 1\n"
    assert len(listed(cloud)) == 3


def test_a_redriven_message_is_pending_with_all_attempts(
    cloud: RunningCloud, app: Connection[Any], event_ids: list[UUID]
) -> None:
    result = run(cloud, "redrive", "1", "--because", "access is granted")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("1 dead letter redriven: signal_lab 1  operation ")
    assert "scripts/acp relay" in result.stderr
    assert [letter["id"] for letter in listed(cloud)] == [3, 2]
    states = app.execute(
        "SELECT state, delivery_attempts, operation_id IS NOT NULL FROM outbox_states WHERE event_id = %s ORDER BY 3",
        [event_ids[0]],
    ).fetchall()
    assert states == [("redriven", 5, False), ("pending", 0, True)]
    assert app.execute("SELECT requested_by, reason FROM operations").fetchall() == [
        ("token:root", "access is granted")
    ]


def test_a_redriven_messages_timeline_shows_both_deliveries(cloud: RunningCloud, event_ids: list[UUID]) -> None:
    before = run(cloud, "trace", str(event_ids[0])).stdout
    assert "send it again: scripts/acp redrive 1" in before
    run(cloud, "redrive", "--subscription", "signal_lab")
    after = run(cloud, "trace", str(event_ids[0])).stdout
    words = " ".join(after.replace("│", " ").split())
    assert "for signal_lab (market.ticks): redriven after 5 attempts" in words
    assert "redriven by token:root" in words
    assert "again for signal_lab (market.ticks): pending after 0 attempts" in words
    assert "send it again" not in words


def test_an_already_redriven_letter_is_named_and_the_others_go(cloud: RunningCloud, event_ids: list[UUID]) -> None:
    run(cloud, "redrive", "1")
    result = run(cloud, "redrive", "1", "2", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["redriven"] == {"signal_lab": 1}
    assert "No open dead letter 1 fits: was it redriven already?\n" in result.stderr
    assert [letter["id"] for letter in listed(cloud)] == [3]


def test_a_removed_subscriptions_letter_stays_with_its_remedy(
    cloud: RunningCloud, owner: Connection[Any], event_ids: list[UUID]
) -> None:
    owner.execute("UPDATE subscriptions SET removed_at = now() WHERE name = 'system_events'")
    result = run(cloud, "redrive", "--all")
    assert result.exit_code == 1
    assert "2 dead letters redriven: signal_lab 2" in result.stdout
    assert "1 dead letter of subscription system_events stay" in result.stderr
    assert "run MigrationFunction" in result.stderr


def test_a_filter_without_matches_redrives_nothing(cloud: RunningCloud, event_ids: list[UUID]) -> None:
    result = run(cloud, "redrive", "--reason", "no such reason")
    assert (result.exit_code, result.stdout) == (0, "Nothing is redriven: no open dead letter fits.\n")


# What consumers gave up on


def test_a_consumers_letter_is_listed_with_its_body_and_discarded(cloud: RunningCloud, app: Connection[Any]) -> None:
    body = b"not JSON \x1b[2J"
    [stored] = store_letters(app, [letter(body, reason="the price is a text")])
    number = str(stored.letter_id)
    shown = run(cloud, "dead-letters", "--kind", "consumer", "--newer-than", "1h")
    assert shown.exit_code == 0, shown.output
    first, message, reason, start = shown.stdout.splitlines()
    assert re.fullmatch(rf"{number}  signal_lab \(consumer\)  5 attempts, \d+ s ago", first)
    assert (message, reason) == ("   message m1", "   the price is a text")
    assert start == f"   not in the outbox, so it cannot be redriven: {len(body)} bytes, not JSON \\x1b[2J"
    assert listed(cloud, "--older-than", "1h") == listed(cloud, "--kind", "relay") == []
    assert run(cloud, "dead-letters", "--id", number, "--body").stdout == body.decode()

    refused = run(cloud, "redrive", number)
    assert (refused.exit_code, refused.stdout) == (1, "Nothing is redriven.\n")
    assert "1 dead letter of signal_lab stays: the outbox has no such message" in refused.stderr

    status = run(cloud, "discard", number, "--because", "a test's", "--dry-run")
    assert status.stdout == "1 dead letter would be discarded: signal_lab 1\n"
    gone = run(cloud, "discard", number, "--because", "a test's")
    assert gone.stdout.startswith("1 dead letter discarded: signal_lab 1  operation "), gone.output
    assert listed(cloud) == []
    again = run(cloud, "discard", number, "--because", "a test's")
    assert again.exit_code == 1
    assert f"No open dead letter has one of these ids and fits: {number}." in again.stderr


def test_what_a_filter_discards_is_shown_first_and_asked_for(
    cloud: RunningCloud, app: Connection[Any], event_ids: list[UUID], monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = ("discard", "--subscription", "signal_lab", "--because", "a test's")
    planned = run(cloud, *wanted, "--dry-run")
    assert planned.stdout == "2 dead letters would be discarded: signal_lab 2\n"
    assert [line.split("  ")[0] for line in planned.stderr.splitlines() if "signal_lab" in line] == ["2", "1"]
    nobody = run(cloud, *wanted)
    assert (nobody.exit_code, nobody.stdout) == (2, "")
    assert "Nothing was discarded: nobody is there to confirm it." in nobody.stderr
    monkeypatch.setattr(asking, "is_terminal", lambda: True)
    monkeypatch.setattr(dead_letter_commands, "_SAMPLE", 1)
    refused = run(cloud, *wanted, typed="n\n")
    assert refused.exit_code == 1
    assert "Discard these 2 dead letters of the local cloud?" in refused.stderr
    assert "These are the newest 1 of 2; " in refused.stderr
    assert len(listed(cloud)) == 3
    late = store_letters(app, [letter(b"{}")])
    agreed = run(cloud, *wanted[:3], "--kind", "relay", *wanted[3:], typed="y\n")
    assert "2 dead letters discarded: signal_lab 2  operation " in agreed.stdout, agreed.output
    left = run(cloud, *wanted, "--yes", "--json")
    assert json.loads(left.stdout)["discarded"] == {"signal_lab": len(late)}
    assert left.stderr == ""
    nothing = run(cloud, *wanted)
    assert (nothing.exit_code, nothing.stdout) == (0, "Nothing is discarded: no open dead letter fits.\n")


def test_pages_of_dead_letters_follow_each_other(cloud: RunningCloud, event_ids: list[UUID]) -> None:
    newest = listed(cloud, "--limit", "2")
    assert [one["id"] for one in newest] == [3, 2]
    assert [one["id"] for one in listed(cloud, "--below", "2")] == [1]
    assert "--below 2 the next ones" in run(cloud, "dead-letters", "--limit", "2").stderr
