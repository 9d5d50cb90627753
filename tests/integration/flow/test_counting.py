"""Each statement counts what it has done, in its own transaction."""

import math
from typing import Any
from uuid import uuid4

import pytest
from psycopg import Connection, errors
from tests.conftest import TestDatabase
from tests.integration import seeds
from tests.integration.fakes import FakeSource
from tests.integration.flow.counted import counted

from control_plane.consumers.failures import ConsumeFailure, record_failure
from control_plane.consumers.once import once
from control_plane.flow.counts import read_bounds, read_counts, read_examples
from control_plane.ingestion.service import ingest
from control_plane.model.errors import SourceError
from control_plane.model.lifecycle import Accepted, Disposition, Failed, MessageFault, NotSent, Outcome, Settlement
from control_plane.model.subscription import Subscription
from control_plane.ops.subscriptions import sync_subscriptions
from control_plane.outbox import settlements
from control_plane.outbox.settlements import Measured
from control_plane.platform.breakers import BreakerPolicy
from control_plane.platform.telemetry import Telemetry
from domains import EVENT_TYPES


def test_what_is_stored_is_counted_by_topic(app: Connection[Any]) -> None:
    seeds.store(app, [*seeds.ticks(3), *seeds.failures(2)])
    seeds.store(app, seeds.ticks(3))  # duplicates
    assert counted(app) == {("store", "market.ticks", "stored"): 3, ("store", "system.events", "stored"): 2}


def test_what_is_rolled_back_is_not_counted(app: Connection[Any]) -> None:
    with app.transaction(force_rollback=True):
        seeds.store(app, seeds.ticks(3))
        assert counted(app) == {("store", "market.ticks", "stored"): 3}
    assert counted(app) == {}


@pytest.mark.parametrize(
    ("outcome", "counts"),
    [
        (Accepted("m"), {"published": 2}),
        (Failed("no"), {"failed": 2}),
        (MessageFault("too large"), {"dead_lettered": 2}),
        (NotSent(), {"released": 2}),
    ],
)
def test_each_settlement_is_counted_once(app: Connection[Any], outcome: Outcome, counts: dict[str, int]) -> None:
    seeds.store(app, seeds.ticks(2))
    claim = seeds.claim(app)
    seeds.settle(app, claim, outcome)
    seeds.settle(app, claim, outcome)  # its claim does not hold any more
    assert {key[2]: n for key, n in counted(app).items() if key[0] == "outbox"} == counts


def test_a_lost_lease_is_counted_by_the_next_claim(app: Connection[Any]) -> None:
    seeds.store(app, seeds.ticks(2))
    seeds.claim(app)
    seeds.pass_time(app)
    seeds.claim(app)
    assert counted(app)["outbox", "signal_lab", "lost"] == 2


def test_a_removed_subscriptions_messages_count_as_dead_letters(app: Connection[Any], owner: Connection[Any]) -> None:
    seeds.store(app, seeds.ticks(2))
    sync_subscriptions(owner, {"system_events": Subscription("system.events")})
    assert counted(app)["outbox", "signal_lab", "exhausted"] == 2


def test_durations_are_in_their_buckets_with_the_slowest_as_example(
    app: Connection[Any], owner: Connection[Any]
) -> None:
    seeds.store(app, seeds.ticks(3))
    seeds.promised(owner, 20)
    claim = seeds.claim(app)
    sent = [(one.message, Settlement(Disposition.PUBLISHED, "m")) for one in claim.deliveries]
    settlements.settle(
        app,
        settled_by="r",
        settlements=sent,
        measured=[Measured(0.003, 8.0), Measured(0.03, 0.0), Measured(0.04, 0.0)],
    )
    bounds = [*read_bounds(app), float("inf")]
    found = {(one.stage, bounds[one.bucket]): one for one in read_counts(app) if one.bucket is not None}
    assert {key: one.n for key, one in found.items()} == {
        ("send", 0.005): 1,
        ("send", 0.05): 2,
        ("outbox", 30): 3,
    }
    assert found["send", 0.05].seconds == pytest.approx(0.07)
    assert read_examples(app)[found["send", 0.05].key] == (seeds.ticks(1)[0].trace_id, 0.04)
    # From the promise on, without the time for which a known outcome waited to be settled.
    assert 20 + 20 + 12 <= (found["outbox", 30].seconds or 0) < 60


def test_one_settlement_counts_each_outcome_and_what_was_sent(app: Connection[Any]) -> None:
    seeds.store(app, seeds.ticks(5))
    dispositions = [
        Disposition.PUBLISHED,
        Disposition.FAILED,
        Disposition.FAILED,
        Disposition.RELEASED,
        Disposition.PUBLISHED,
    ]
    settlements.settle(
        app,
        settled_by="r",
        settlements=[
            (one.message, Settlement(disposition, "m", "no"))
            for one, disposition in zip(seeds.claim(app).deliveries, dispositions, strict=True)
        ],
        measured=[Measured(seconds, 0.0) for seconds in (0.03, 0.04, 0.3, None, 0.045)],
    )
    counts = [one for one in read_counts(app) if one.stage in {"outbox", "send"}]
    assert counted(app)["send", "signal_lab", "sent"] == 4
    assert {one.outcome: one.n for one in counts if one.stage == "outbox"} == {
        "published": 2,
        "failed": 2,
        "released": 1,
    }
    # What is sent together is counted together, whatever became of it.
    assert {one.bucket: (one.n, round(one.seconds or 0, 6)) for one in counts if one.stage == "send"} == {
        3: (3, 0.115),
        6: (1, 0.3),
    }
    assert {one.outcome for one in counts if one.bucket is None} == {"failed", "released"}
    assert {one.outcome for one in counts if one.key in read_examples(app)} == {"published", "sent"}


def test_a_bound_belongs_to_its_bucket(owner: Connection[Any]) -> None:
    bounds = read_bounds(owner)
    below, above = ([math.nextafter(bound, towards) for bound in bounds] for towards in (0, math.inf))
    rows = owner.execute(
        "SELECT flow_bucket(below), flow_bucket(bound), flow_bucket(above)"
        " FROM unnest(%s::float8[], %s::float8[], %s::float8[]) AS one (below, bound, above)",
        [below, bounds, above],
    ).fetchall()
    assert rows == [(place, place, place + 1) for place in range(len(bounds))]
    assert owner.execute("SELECT flow_bucket(0), flow_bucket(1e9), flow_bucket(NULL)").fetchall() == [(0, 16, None)]


def test_consuming_is_counted_with_its_effect(app: Connection[Any]) -> None:
    (event_id,) = seeds.store(app, seeds.ticks(1))
    with pytest.raises(ZeroDivisionError), once(app, consumer="x", event_id=event_id):
        raise ZeroDivisionError
    for _ in range(3):
        with once(app, consumer="x", event_id=event_id):
            pass
    assert counted(app)["consumer", "x", "processed"] == 1
    assert counted(app)["consumer", "x", "duplicate"] == 2
    [taken] = [one for one in read_counts(app) if one.outcome == "processed"]
    assert taken.bucket is not None
    assert read_examples(app)[taken.key].trace_id == seeds.ticks(1)[0].trace_id


def test_a_replay_says_nothing_about_how_long_an_event_took(app: Connection[Any], owner: Connection[Any]) -> None:
    (event_id,) = seeds.store(app, seeds.ticks(1))
    replay = uuid4()
    owner.execute(
        "INSERT INTO operations (operation_id, kind, filter, state, requested_by)"
        " VALUES (%s, 'replay', '{}', 'planning', 'kim')",
        [replay],
    )
    with once(app, consumer="x", event_id=event_id, operation_id=replay) as is_first:
        assert is_first
    [taken] = [one for one in read_counts(app) if one.outcome == "processed"]
    assert (taken.n, taken.bucket, taken.seconds) == (1, None, None)


def test_a_consumers_failures_are_counted(app: Connection[Any]) -> None:
    for attempt in range(12):  # more than the record keeps
        record_failure(app, ConsumeFailure("signal_lab", "m", None, None, attempt, "no"))
    assert counted(app) == {("consumer", "signal_lab", "failed"): 12}


def test_fetches_are_counted_by_their_source(app: Connection[Any], telemetry: Telemetry) -> None:
    source = FakeSource({"AAPL": seeds.bars(2), "NOPE": SourceError("NOPE", "unknown_symbol", "no such symbol")})
    for _ in range(2):
        ingest(app, source, ["AAPL", "NOPE"], telemetry, BreakerPolicy(3, 60), event_types=EVENT_TYPES)
    found = counted(app)
    assert (found["source", source.name, "fetched"], found["source", source.name, "failed"]) == (2, 2)


def test_a_count_is_changed_by_nobody(owner: Connection[Any], app: Connection[Any]) -> None:
    seeds.store(app, seeds.ticks(1))
    for statement in ("UPDATE flow_deltas SET n = 9", "DELETE FROM flow_deltas", "TRUNCATE flow_deltas"):
        with pytest.raises(errors.RestrictViolation):
            owner.execute(statement.encode())


def test_an_older_relay_settles_without_what_it_does_not_measure(app: Connection[Any], database: TestDatabase) -> None:
    seeds.store(app, seeds.ticks(1))
    (one,) = seeds.claim(app).deliveries
    rows = app.execute(
        "SELECT disposition FROM settle_deliveries('r', %s, %s, ARRAY[NULL]::uuid[], %s, ARRAY['published'],"
        " ARRAY['m'], ARRAY[NULL], ARRAY[0], ARRAY[false])",
        [[one.message.outbox_id], [one.message.subscription], [one.message.claim_token]],
    ).fetchall()
    assert rows == [("published",)]
    assert counted(app)["outbox", "signal_lab", "published"] == 1
