"""The one list of dead letters on a real Postgres: every kind is filtered, paged, counted and discarded."""

import base64
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from psycopg import Connection, errors
from tests.conftest import TestDatabase
from tests.integration import seeds
from tests.integration.redriving import redrive

from control_plane.consumers.failures import ConsumeFailure, record_failure
from control_plane.consumers.letters import Letter, store_letters
from control_plane.model.lifecycle import Accepted, MessageFault
from control_plane.ops.dead_letters import (
    DeadLetterFilter,
    DiscardError,
    count_dead_letters,
    discard,
    read_content,
    read_dead_letters,
)
from control_plane.ops.health import read_health
from control_plane.ops.maintenance import Maintenance
from control_plane.ops.status import read_consumer_lag, read_status
from control_plane.ops.timeline import QUERIES, read_timeline
from control_plane.platform.database import connect
from control_plane.platform.telemetry import Telemetry


def letter(body: bytes, number: int = 1, **changes: Any) -> Letter:
    sound = Letter(
        kind="consumer",
        queue="ticks-dead",
        message_id=f"m{number}",
        subscription="signal_lab",
        body_base64=base64.b64encode(body).decode(),
        attributes={},
        receives=5,
        sent_at=None,
        event_id=None,
        event_type=None,
        trace_id=None,
        reason=None,
    )
    return replace(sound, **changes)


def delivered(app: Connection[Any], *, minute: int = 0) -> UUID:
    """Stores a tick that signal_lab's queue has accepted as message m<minute>; returns its event's id."""
    [event_id] = seeds.store(app, [seeds.tick(minute)])
    seeds.settle(app, seeds.claim(app), Accepted(f"m{minute}"))
    return event_id


def give_up(app: Connection[Any], event_id: UUID, number: int, *, error: str = "no luck") -> int:
    """Gives up on a delivered message as its consumer does; returns the letter's id."""
    row = app.execute("SELECT payload_json::text FROM outbox WHERE event_id = %s", [event_id]).fetchone()
    assert row is not None
    record_failure(app, ConsumeFailure("signal_lab", f"m{number}", event_id, None, 5, error))
    [stored] = store_letters(app, [letter(row[0].encode(), number, event_id=str(event_id))])
    assert stored.is_redrivable
    return stored.letter_id


def found(app: Connection[Any], **conditions: Any) -> list[int]:
    return sorted(one.id for one in read_dead_letters(app, DeadLetterFilter(**conditions), limit=100))


# The list


def test_each_condition_selects_letters_of_both_kinds(app: Connection[Any]) -> None:
    event_id = delivered(app)
    of_consumer = give_up(app, event_id, 0)
    [other] = seeds.store(app, [seeds.tick(1)])
    seeds.settle(app, seeds.claim(app), MessageFault("too large"))
    [of_relay] = [one.id for one in read_dead_letters(app, limit=9) if one.kind == "relay"]
    [stored] = store_letters(
        app, [letter(b"{}", kind="invocation", subscription=None, queue="failed", reason="acp-relay: too slow")]
    )
    all_of_them = sorted([of_consumer, of_relay, stored.letter_id])
    assert found(app) == all_of_them
    assert found(app, kind="consumer") == [of_consumer]
    assert found(app, kind="relay") == [of_relay]
    assert found(app, kind="invocation") == [stored.letter_id]
    assert found(app, subscription="signal_lab") == sorted([of_consumer, of_relay])
    assert found(app, event_id=event_id) == [of_consumer]
    assert found(app, event_id=other) == [of_relay]
    assert found(app, trace_id=UUID(int=1)) == sorted([of_consumer, of_relay])
    assert found(app, trace_id=uuid4()) == []
    assert found(app, reason="LUCK") == [of_consumer]
    now = datetime.now(UTC)
    assert found(app, until=now - timedelta(hours=1)) == []
    assert found(app, since=now - timedelta(hours=1)) == all_of_them
    assert found(app, kind="relay", reason="luck") == []
    assert count_dead_letters(app, most=2) == 2
    assert count_dead_letters(app, DeadLetterFilter(kind="relay"), most=9) == 1
    as_json = json.dumps(DeadLetterFilter(since=now, event_id=event_id, kind="relay").to_dict())
    assert json.loads(as_json) == {"since": now.isoformat(), "event_id": str(event_id), "kind": "relay"}


def test_pages_hold_each_letter_once(app: Connection[Any]) -> None:
    stored = store_letters(app, [letter(b"{}", number) for number in range(23)])
    pages: list[list[int]] = []
    below = None
    while page := [one.id for one in read_dead_letters(app, limit=5, below=below)]:
        pages.append(page)
        below = page[-1]
        store_letters(app, [letter(b"{}", 100 + len(pages))])  # What comes meanwhile is above the page.
    assert [number for page in pages for number in page] == sorted((one.letter_id for one in stored), reverse=True)


def test_a_page_reads_no_more_of_a_body_than_it_shows(app: Connection[Any]) -> None:
    body = bytes(range(256)) * 4096
    [stored] = store_letters(app, [letter(body)])
    [listed] = read_dead_letters(app, limit=1)
    assert (listed.body_bytes, listed.body_start) == (2**20, body[:200])
    json.dumps(listed.to_dict()["body_start"])
    content = read_content(app, stored.letter_id)
    assert content is not None
    assert content.body == body
    assert read_content(app, 10**9) is None


@pytest.fixture
def many(owner: Connection[Any]) -> Connection[Any]:
    """100,000 open letters of three subscriptions, and as many that are resolved."""
    owner.execute(
        "INSERT INTO dead_letters (kind, subscription, queue, message_id, body, event_id, trace_id, delivery_attempts,"
        " reason, dead_lettered_at, resolution, resolved_at, resolved_by, resolved_because)"
        " SELECT 'consumer', 's' || number % 3, 'q', number, '', gen_random_uuid(), gen_random_uuid(), 1, 'no luck',"
        " now() - make_interval(secs => 200000 - number), CASE WHEN is_old THEN 'discarded' END,"
        " CASE WHEN is_old THEN now() END, CASE WHEN is_old THEN 'kim' END, CASE WHEN is_old THEN 'why' END"
        " FROM generate_series(1, 200000) AS number CROSS JOIN LATERAL (SELECT number <= 100000 AS is_old) AS age"
    )
    owner.execute("ANALYZE dead_letters")
    return owner


def rows_read(connection: Connection[Any], query: str, parameters: dict[str, Any]) -> int:
    """Runs a named query; returns how many rows of dead_letters its plan read, those that it threw away included."""
    row = connection.execute(b"EXPLAIN (ANALYZE, FORMAT JSON) " + QUERIES[query].sql.encode(), parameters).fetchone()
    assert row is not None
    total = 0
    nodes = [row[0][0]["Plan"]]
    while nodes:
        node = nodes.pop()
        nodes += node.get("Plans", [])
        if node.get("Relation Name") == "dead_letters":
            total += (node["Actual Rows"] + node.get("Rows Removed by Filter", 0)) * node["Actual Loops"]
    return int(total)


def test_a_page_and_a_count_read_little_of_100000_letters(many: Connection[Any]) -> None:
    row = many.execute("SELECT event_id, trace_id, id FROM dead_letters WHERE message_id = '150000'").fetchone()
    assert row is not None
    now = datetime.now(UTC)
    conditions: list[dict[str, Any]] = [
        {},
        {"kind": "consumer"},
        {"kind": "relay"},
        {"subscription": "s1"},
        {"subscription": "nobody"},
        {"event_id": row[0]},
        {"event_id": uuid4()},
        {"trace_id": row[1]},
        {"ids": [row[2]]},
        {"since": now - timedelta(seconds=60)},
        {"since": now + timedelta(hours=1)},
        {"until": now - timedelta(days=3)},
    ]
    for condition in conditions:
        chosen = DeadLetterFilter(**condition).to_parameters() | {"with_resolved": False, "limit": 50, "below": None}
        for query in ("dead_letters", "count_dead_letters"):
            assert rows_read(many, query, chosen) <= 500, (query, condition)
    below = DeadLetterFilter(subscription="s1").to_parameters() | {"with_resolved": False, "limit": 50, "below": row[2]}
    assert rows_read(many, "dead_letters", below) <= 500


# Discarding


def test_a_discarded_letter_stays_on_record_and_is_redriven_no_more(
    app: Connection[Any], owner: Connection[Any]
) -> None:
    first, second = (one.letter_id for one in store_letters(app, [letter(b"{}", number) for number in (1, 2)]))
    chosen = DeadLetterFilter(ids=[first, 10**9])
    planned = discard(owner, chosen, requested_by="kim", reason="a test's", dry_run=True)
    assert (planned.discarded, planned.operation_id, found(app)) == ({"signal_lab": 1}, None, [first, second])
    report = discard(owner, chosen, requested_by="kim", reason="a test's")
    assert (report.discarded, report.not_open) == ({"signal_lab": 1}, [10**9])
    assert found(app) == [second]
    [gone] = read_dead_letters(app, DeadLetterFilter(ids=[first]), limit=1, with_resolved=True)
    assert (gone.resolution, gone.resolved_by, gone.resolved_because) == ("discarded", "kim", "a test's")
    operation = owner.execute("SELECT operation_id, kind, state, filter, progress, reason FROM operations").fetchone()
    assert operation == (
        report.operation_id,
        "discard",
        "done",
        {"ids": [first, 10**9]},
        {"dead_letters": 1},
        "a test's",
    )
    again = discard(owner, chosen, requested_by="kim", reason="again")
    assert (again.discarded, again.operation_id, again.not_open) == ({}, None, [first, 10**9])
    assert redrive(owner, DeadLetterFilter(ids=[first])).done == 0


@pytest.mark.parametrize(
    ("chosen", "by", "reason", "problem"),
    [
        (DeadLetterFilter(), "kim", "why", "not said what"),
        (DeadLetterFilter(ids=[1]), " ", "why", "not said who"),
        (DeadLetterFilter(ids=[1]), "kim", " ", "not said why"),
    ],
)
def test_a_discard_says_what_and_why_and_who(
    owner: Connection[Any], chosen: DeadLetterFilter, by: str, reason: str, problem: str
) -> None:
    with pytest.raises(DiscardError, match=problem):
        discard(owner, chosen, requested_by=by, reason=reason)
    with pytest.raises(errors.CheckViolation):
        owner.execute("SELECT * FROM discard_dead_letters('{1}', ' ', 'kim', '{}')")


def test_commands_discard_with_their_own_role(database: TestDatabase, app: Connection[Any]) -> None:
    [stored] = store_letters(app, [letter(b"{}")])
    with connect(database.url("acp_command"), application_name="test") as command:
        report = discard(command, DeadLetterFilter(ids=[stored.letter_id]), requested_by="root", reason="why")
    assert report.discarded == {"signal_lab": 1}


# What else shows them


def test_an_events_timeline_tells_why_its_consumer_gave_up(app: Connection[Any], owner: Connection[Any]) -> None:
    event_id = delivered(app)
    letter_id = give_up(app, event_id, 0)
    timeline = read_timeline(app, event_id)
    assert timeline is not None
    [told] = timeline.consumer_dead_letters
    assert (told["id"], told["reason"], told["is_redrivable"], told["resolution"]) == (letter_id, "no luck", True, None)
    assert "body" not in told
    assert [(one["attempt"], one["error"]) for one in timeline.consume_failures] == [(5, "no luck")]
    [delivery] = timeline.deliveries
    assert (delivery["state"], delivery["dead_letter_id"]) == ("delivered", None)
    redrive(owner, DeadLetterFilter(ids=[letter_id]))
    after = read_timeline(app, event_id)
    assert after is not None
    assert [one["state"] for one in after.deliveries] == ["delivered", "pending"]
    assert after.consumer_dead_letters[0]["redriven_by"] == after.deliveries[1]["operation_id"]


def test_what_a_consumer_gave_up_on_is_a_dead_letter_and_no_lag(app: Connection[Any], owner: Connection[Any]) -> None:
    app.execute("INSERT INTO processed_events (consumer, event_id) VALUES ('signal_lab', %s)", [uuid4()])
    event_id = delivered(app)
    assert [one.count for one in read_consumer_lag(app)] == [1]
    letter_id = give_up(app, event_id, 0)
    assert read_consumer_lag(app) == []
    assert read_health(app).dead_letters == 1
    status = read_status(app)
    assert (status.count_open_letters(), status.count_open_letters("signal_lab")) == (1, 1)
    assert (status.count_open_letters("system_events"), status.count("dead_lettered")) == (0, 0)
    # Redriven and delivered, it is the consumer's again.
    redrive(owner, DeadLetterFilter(ids=[letter_id]))
    assert read_health(app).dead_letters == 0
    seeds.settle(app, seeds.claim(app), Accepted("again"))
    assert [one.count for one in read_consumer_lag(app)] == [1]


def test_both_letters_of_one_message_become_one_delivery(app: Connection[Any], owner: Connection[Any]) -> None:
    event_id = delivered(app)
    give_up(app, event_id, 0)
    owner.execute(
        "INSERT INTO dead_letters (outbox_id, subscription, operation_id, promised_at, delivery_attempts, reason)"
        " SELECT outbox_id, subscription, %s, now(), 1, 'a replay died, too' FROM dead_letters",
        [uuid4()],
    )
    assert redrive(owner, DeadLetterFilter()).plan["letters"] == {"signal_lab": 2}
    assert len(seeds.claim(app).rows) == 1


def test_a_letter_of_a_redrive_knows_its_operation(app: Connection[Any], owner: Connection[Any]) -> None:
    event_id = delivered(app)
    operation = redrive(owner, DeadLetterFilter(ids=[give_up(app, event_id, 0)]))
    seeds.settle(app, seeds.claim(app), Accepted("m7"))
    give_up(app, event_id, 7, error="again")
    [again] = read_dead_letters(app, limit=9)
    assert (again.operation_id, again.reason) == (operation.operation_id, "again")
    assert again.operation_id is not None


def test_old_failures_of_consumers_are_deleted_and_young_ones_kept(
    app: Connection[Any], owner: Connection[Any], telemetry: Telemetry
) -> None:
    for number in range(5):
        record_failure(app, ConsumeFailure("signal_lab", f"m{number}", None, None, 1, "no luck"))
    owner.execute("UPDATE consume_failures SET failed_at = now() - interval '32 days' WHERE message_id < 'm3'")
    report = Maintenance(retention_days={}, telemetry=telemetry, batch_size=2).run(
        owner, remaining_seconds=lambda: 60.0
    )
    assert (report.deleted_consume_failures, report.finished) == (3, True)
    assert app.execute("SELECT count(*) FROM consume_failures").fetchone() == (2,)


def test_an_event_with_an_open_letter_of_a_consumer_is_kept(app: Connection[Any], owner: Connection[Any]) -> None:
    event_id = delivered(app)
    letter_id = give_up(app, event_id, 0)
    with owner.transaction():
        owner.execute("ALTER TABLE events DISABLE TRIGGER USER")
        owner.execute("UPDATE events SET ingested_at = now() - interval '99 days'")
        owner.execute("ALTER TABLE events ENABLE TRIGGER USER")
    assert owner.execute("SELECT delete_expired('events', now() - interval '30 days', 10)").fetchone() == (0,)
    discard(owner, DeadLetterFilter(ids=[letter_id]), requested_by="kim", reason="why")
    assert owner.execute("SELECT delete_expired('events', now() - interval '30 days', 10)").fetchone() == (1,)
    assert read_dead_letters(app, limit=9, with_resolved=True) == []
