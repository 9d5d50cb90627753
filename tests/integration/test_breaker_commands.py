"""acp hold, resume and breakers on a real Postgres; only the cloud around it is a stand-in."""

import json
from typing import Any

import pytest
from psycopg import Connection
from tests.integration import seeds
from tests.integration.running_cloud import RunningCloud, run

from control_plane.ops.status import read_status
from control_plane.platform.breakers import BreakerPolicy, Breakers, read_breakers


def fail(app: Connection[Any], name: str) -> None:
    """Opens a breaker, as a function would."""
    breakers = Breakers(lambda: app, BreakerPolicy(1, 1000))
    breakers.read([name])
    breakers.failed(name, "gone")


def abandon(owner: Connection[Any], name: str) -> None:
    """Makes a breaker look unused for a day."""
    owner.execute("UPDATE circuit_breakers SET guarded_at = now() - interval '1 day' WHERE name = %s", [name])


def test_a_person_holds_a_subscription_and_lets_it_go(cloud: RunningCloud, app: Connection[Any]) -> None:
    held = run(cloud, "hold", "signal_lab")
    assert held.exit_code == 0, held.output
    assert held.stderr == (
        "signal_lab (MarketTicksQueue) is held by token:root: no message is sent to it until "
        "scripts/acp resume signal_lab\n"
    )
    (breaker,) = read_status(app).breakers
    assert (breaker.name, breaker.state, breaker.held_by) == ("signal_lab", "open", "token:root")

    resumed = run(cloud, "resume", "MarketTicksQueue")
    assert resumed.exit_code == 0
    assert "is probed by the next run" in resumed.stderr
    (breaker,) = read_breakers(app)
    assert (breaker.held_by, breaker.probe_is_due) == (None, True)


def test_a_person_can_be_named_beside_the_token(cloud: RunningCloud, app: Connection[Any]) -> None:
    held = run(cloud, "hold", "yfinance", "--reason", "it lies", "--by", " Grace ")
    assert "nothing is fetched from it until scripts/acp resume yfinance-replay" in held.stderr
    assert [(breaker.name, breaker.held_by, breaker.held_reason) for breaker in read_breakers(app)] == [
        ("yfinance-replay", "token:root", "it lies (Grace)")
    ]


def test_why_it_is_held_is_seen_by_others(
    cloud: RunningCloud, app: Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    (event_id,) = seeds.store(app, seeds.ticks(1))
    assert run(cloud, "hold", "signal_lab", "--reason", "the queue moves").exit_code == 0
    assert "by token:root  the queue moves" in run(cloud, "breakers").stdout
    listed = json.loads(run(cloud, "breakers", "--json").stdout)
    assert [each["held_reason"] for each in listed] == ["the queue moves", None]
    assert "because: the queue moves; scripts/acp resume signal_lab" in run(cloud, "trace", str(event_id)).stdout


def test_what_is_closed_has_nothing_to_resume(cloud: RunningCloud, app: Connection[Any]) -> None:
    result = run(cloud, "resume", "yfinance")
    assert result.exit_code == 0
    assert result.stderr == "yfinance-replay is not open: there is nothing to resume.\n"
    assert read_breakers(app) == []


def test_a_breaker_left_by_another_source_can_be_let_go(cloud: RunningCloud, app: Connection[Any]) -> None:
    fail(app, "former")
    assert run(cloud, "resume", "former").exit_code == 0
    (breaker,) = read_breakers(app)
    assert breaker.probe_is_due


def test_an_unknown_name_is_refused_with_those_there_are(cloud: RunningCloud, app: Connection[Any]) -> None:
    for command in ("hold", "resume"):
        result = run(cloud, command, "bonds")
        assert result.exit_code == 2
        assert result.stderr == (
            "Nothing called 'bonds' has a breaker. There are: signal_lab (MarketTicksQueue), yfinance-replay.\n"
        )
    assert read_breakers(app) == []


def test_breakers_are_listed_with_what_they_guard(
    cloud: RunningCloud, app: Connection[Any], owner: Connection[Any]
) -> None:
    fail(app, "signal_lab")
    fail(app, "former")
    abandon(owner, "former")
    shown = run(cloud, "breakers")
    assert shown.exit_code == 0, shown.output
    assert all(len(line) <= 80 for line in shown.stdout.splitlines())
    rows = {line.split()[0]: line for line in shown.stdout.splitlines()[1:]}
    assert rows.keys() == {"signal_lab", "yfinance-replay", "former"}
    assert "subscription" in rows["signal_lab"]
    assert "open" in rows["signal_lab"]
    assert "closed" in rows["yfinance-replay"]
    assert "nothing now" in rows["former"]

    listed = {row["name"]: row for row in json.loads(run(cloud, "breakers", "--json").stdout)}
    assert [(row["guards"], row["is_guarded"], row["state"]) for row in listed.values()] == [
        ("subscription", True, "open"),
        ("source", True, "closed"),
        (None, False, "open"),
    ]
    assert listed["signal_lab"]["last_error"] == "gone"


def test_a_breaker_that_nobody_guards_with_is_forgotten(
    cloud: RunningCloud, app: Connection[Any], owner: Connection[Any]
) -> None:
    fail(app, "former")
    abandon(owner, "former")
    assert read_status(app).open_breakers == [], "it counts no longer"
    forgotten = run(cloud, "breakers", "forget", "former")
    assert (forgotten.exit_code, forgotten.stderr) == (0, "The breaker of former is forgotten.\n")
    assert read_breakers(app) == []
    again = run(cloud, "breakers", "forget", "former")
    assert again.exit_code == 2
    assert again.stderr == "Nothing called 'former' has a breaker. There are none.\n"


def test_a_held_breaker_cannot_be_forgotten(cloud: RunningCloud, app: Connection[Any]) -> None:
    run(cloud, "hold", "signal_lab")
    refused = run(cloud, "breakers", "forget", "signal_lab")
    assert refused.exit_code == 2
    assert "signal_lab (MarketTicksQueue) is held by token:root" in refused.stderr
    assert "scripts/acp resume signal_lab" in refused.stderr
    assert [breaker.held_by for breaker in read_breakers(app)] == ["token:root"]
