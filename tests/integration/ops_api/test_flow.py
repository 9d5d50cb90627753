"""GET /flow: the shape that the page draws, and what it says."""

from typing import Any

from psycopg import Connection
from tests.conftest import TestDatabase
from tests.integration import seeds
from tests.integration.flow.counted import age, fold_now
from tests.integration.ops_api.client import Client

from control_plane.api.flow import FlowPictures
from control_plane.api.routes import Call, Caller
from control_plane.consumers.failures import ConsumeFailure, record_failure
from control_plane.consumers.once import once
from control_plane.flow.picture import read_picture
from control_plane.model.lifecycle import Accepted
from control_plane.platform.breakers import hold
from control_plane.platform.database import Database, connect

STAGES = ["source", "store", "outbox", "queue", "consumer", "decision", "action"]
FIGURES = {"minutes", "last_minute", "backlog", "oldest_age_seconds", "failed_hour"}


def stages(flow: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {one["stage"]: one for one in flow["stages"]}


def part(flow: dict[str, Any], stage: str, name: str) -> dict[str, Any]:
    [found] = [one for one in stages(flow)[stage]["parts"] if one["name"] == name]
    return dict(found)


def test_the_flow_of_an_empty_database_has_its_whole_shape(api: Client) -> None:
    flow = api.ask("GET", "/flow").body
    assert flow.keys() == {
        "at", "stages", "waiting", "open_breakers", "switches_off", "operations",
        "events", "subscriptions", "consumers", "dead_letters", "spending",
    }  # fmt: skip
    assert [one["stage"] for one in flow["stages"]] == STAGES
    for stage in flow["stages"]:
        assert stage.keys() == FIGURES | {"stage", "parts"}
        assert stage["minutes"] == [0] * 60
        for one in stage["parts"]:
            assert one.keys() == FIGURES | {"name"}
            assert len(one["minutes"]) == 60
    assert [one["name"] for one in stages(flow)["outbox"]["parts"]] == ["signal_lab", "system_events"]
    assert flow["waiting"] == {
        "approvals": 0, "oldest_approval_age_seconds": None,
        "dead_letters": 0, "oldest_dead_letter_age_seconds": None,
    }  # fmt: skip
    assert (flow["dead_letters"], flow["spending"]) == ([], {"spent_micros": None, "limit_micros": None})
    assert {name: (one["backlog"], one["oldest_age_seconds"]) for name, one in stages(flow).items()} == {
        "source": (None, None), "store": (None, None), "outbox": (0, None), "queue": (0, None),
        "consumer": (None, None), "decision": (0, None), "action": (0, None),
    }  # fmt: skip


def test_each_stage_says_what_passed_it_and_what_waits(app: Connection[Any], owner: Connection[Any]) -> None:
    event_ids = seeds.store(app, seeds.ticks(5))
    seeds.settle(app, seeds.claim(app, rows=3), Accepted("m"))
    with once(app, consumer="signal_lab", event_id=event_ids[0]):
        pass
    record_failure(app, ConsumeFailure("signal_lab", "m", None, None, 1, "no"))
    hold(app, "signal_lab", by="kim", reason="looking")
    owner.execute("INSERT INTO switches (scope, is_off, set_by, reason) VALUES ('agent:a', true, 'kim', 'wrong')")
    flow = read_picture(app)
    assert {name: one["last_minute"] for name, one in stages(flow).items()} == {
        "source": 0, "store": 5, "outbox": 3, "queue": 3, "consumer": 1, "decision": 0, "action": 0,
    }  # fmt: skip
    assert part(flow, "outbox", "signal_lab")["backlog"] == 2
    assert part(flow, "outbox", "signal_lab")["oldest_age_seconds"] >= 0
    assert part(flow, "queue", "signal_lab")["backlog"] == 2
    assert stages(flow)["consumer"]["failed_hour"] == part(flow, "consumer", "signal_lab")["failed_hour"] == 1
    [breaker] = flow["open_breakers"]
    assert (breaker["name"], breaker["state"], breaker["held_by"]) == ("signal_lab", "open", "kim")
    [switch] = flow["switches_off"]
    assert (switch["scope"], switch["reason"], switch["by"]) == ("agent:a", "wrong", "kim")


def test_a_minute_stays_where_it_is_when_it_is_folded(app: Connection[Any], owner: Connection[Any]) -> None:
    seeds.store(app, seeds.ticks(4))
    age(owner, minutes=5)
    before = part(read_picture(app), "store", "market.ticks")
    assert (sum(before["minutes"]), before["minutes"][-5], before["last_minute"]) == (4, 4, 0)
    fold_now(owner)
    after = part(read_picture(app), "store", "market.ticks")
    # Another minute may have begun since.
    assert after["minutes"] in (before["minutes"], [*before["minutes"][1:], 0])


def test_dead_letters_and_failures_count_against_their_stage(app: Connection[Any], owner: Connection[Any]) -> None:
    seeds.store(app, seeds.ticks(2))
    seeds.give_up(app, attempts=3)
    owner.execute(
        "INSERT INTO dead_letters (kind, subscription, delivery_attempts, reason, queue, message_id, body)"
        " VALUES ('consumer', 'signal_lab', 5, 'no', 'q-dlq', 'm', 'x')"
    )
    flow = read_picture(app)
    assert flow["waiting"]["dead_letters"] == 3
    newest = flow["dead_letters"]
    assert [(one["kind"], one["subscription"]) for one in newest] == [("consumer", "signal_lab")] + [
        ("relay", "signal_lab")
    ] * 2
    assert (newest[0]["reason"], newest[0]["id"] > newest[1]["id"] > newest[2]["id"]) == ("no", True)
    assert 0 <= flow["waiting"]["oldest_dead_letter_age_seconds"] < 600
    assert stages(flow)["outbox"]["failed_hour"] == 6
    assert stages(flow)["queue"]["failed_hour"] == 1


def test_a_day_says_what_agents_have_cost(app: Connection[Any], owner: Connection[Any]) -> None:
    owner.execute(
        "INSERT INTO budgets (scope, day, limit_micros, spent_micros)"
        " SELECT 'agents', day, 9, 4 FROM (VALUES ((now() AT TIME ZONE 'UTC')::date), ('2001-01-01')) AS days (day)"
    )
    assert read_picture(app)["spending"] == {"spent_micros": 4, "limit_micros": 9}


def test_the_age_is_the_live_flows(app: Connection[Any], owner: Connection[Any]) -> None:
    seeds.store(app, seeds.ticks(1))
    operation = "00000000-0000-0000-0000-000000000009"
    owner.execute(
        "UPDATE pending_deliveries SET operation_id = %s, promised_at = now() - interval '1 hour'", [operation]
    )
    assert part(read_picture(app), "outbox", "signal_lab")["oldest_age_seconds"] is None


def test_two_readers_see_the_same(app: Connection[Any], database: TestDatabase) -> None:
    seeds.store(app, seeds.ticks(3))
    with connect(database.url("acp_reader"), application_name="test") as other:
        assert read_picture(other)["stages"][1]["last_minute"] == read_picture(app)["stages"][1]["last_minute"] == 3


def test_an_environment_looks_once_a_second(database: TestDatabase, app: Connection[Any]) -> None:
    now = 100.0
    pictures = FlowPictures(monotonic=lambda: now)
    reader = Database(
        lambda: database.url("acp_reader"), application_name="test", role="acp_reader", patience_seconds=5
    )

    def stored() -> int:
        body = pictures.show(reader, Call({}, None, None, Caller())).body
        assert body is not None
        stored: int = body["stages"][1]["last_minute"]
        return stored

    assert stored() == 0
    seeds.store(app, seeds.ticks(3))
    now += 0.9
    assert stored() == 0
    now += 0.2
    assert stored() == 3
    reader.close()
