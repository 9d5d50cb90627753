"""The newest look wins, however many runs store looks, and in whatever order they are stored and delivered."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import count, pairwise
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg import Connection, IsolationLevel
from psycopg.rows import dict_row
from tests.conftest import TestDatabase
from tests.integration import seeds
from tests.integration.fakes import FakeSource, RecordingTelemetry

from control_plane.ingestion.judgement import Question, judge
from control_plane.ingestion.rebuild import rebuild_observations
from control_plane.ingestion.service import IngestionResult, ingest, to_stored_raw
from control_plane.ingestion.source import Fetched, Observation
from control_plane.ingestion.store import Key, Look, LookOutcome, RawPayload, store_events
from control_plane.model.contract import Event
from control_plane.platform.breakers import BreakerPolicy
from control_plane.platform.database import connect
from domains import EVENT_TYPES
from domains.finance import DOMAIN, signal_lab
from domains.finance.events import MarketTick
from domains.finance.yfinance_source import YFinanceSource
from market_replay import Correction, Fault, serve

POLICY = BreakerPolicy(failure_threshold=3, cool_down_seconds=1000)
MIDNIGHT = datetime.fromisoformat("2026-01-05T00:00:00Z")
SECOND = timedelta(seconds=1)
# All examples can share one database, because none leaves anything in it, or each has its own symbols.
SHARED_DATABASE = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


def run(connection: Connection[Any], source: FakeSource, *symbols: str) -> IngestionResult:
    return ingest(connection, source, symbols or ("AAPL",), RecordingTelemetry(), POLICY, event_types=EVENT_TYPES)


def messages(connection: Connection[Any]) -> list[Event]:
    """Returns every message of market.ticks, in the order of storing."""
    rows = connection.execute("SELECT payload_json FROM outbox WHERE topic = 'market.ticks' ORDER BY id").fetchall()
    return [EVENT_TYPES.parse_event(body) for (body,) in rows]


def price(connection: Connection[Any], *deliveries: Event) -> float:
    """Returns SignalLab's latest price of the only entity, after these deliveries."""
    for event in deliveries:
        signal_lab.consume(connection, event)
    ((latest,),) = connection.execute("SELECT price FROM signal_lab_latest_prices").fetchall()
    return float(latest)


# What was seen


def test_a_lagging_replicas_price_does_not_stay(app: Connection[Any]) -> None:
    for answered in (100.9, 100.4, 100.9, 100.9):
        run(app, FakeSource({"AAPL": [seeds.bar(price=answered)]}))
    assert [(event.revision, event.payload["price"]) for event in messages(app)] == [(0, 100.9), (1, 100.4), (2, 100.9)]
    assert price(app, *messages(app)) == 100.9


def test_the_run_that_asked_first_and_stores_last_loses(app: Connection[Any], database: TestDatabase) -> None:
    class Slow(FakeSource):
        """A source during whose answer another run asks and stores."""

        def fetch(self, symbol: str, since: datetime | None, asked_at: datetime) -> Fetched:
            with connect(database.app_url, application_name="test") as another:
                assert run(another, FakeSource({"AAPL": [seeds.bar(price=50.5)]})).ingested == 1
            return super().fetch(symbol, since, asked_at)

    late = run(app, Slow({"AAPL": [seeds.bar(price=49.0)]}))
    assert (late.fetched, late.ingested, late.stale) == (1, 0, 1)
    for _ in range(3):
        assert run(app, FakeSource({"AAPL": [seeds.bar(price=50.5)]})).duplicates == 1
    assert price(app, *messages(app)) == 50.5


def test_a_repeated_look_makes_older_looks_stale(app: Connection[Any]) -> None:
    outcomes = [store_one(app, tick(100.9, at=0)), store_one(app, tick(100.9, at=2)), store_one(app, tick(100.4, at=1))]
    assert outcomes == [LookOutcome.NEW, LookOutcome.DUPLICATE, LookOutcome.STALE]
    assert [event.payload["price"] for event in messages(app)] == [100.9]


def test_an_outdated_correction_heals_with_the_next_run(app: Connection[Any]) -> None:
    for answered in (100.9, 100.4):
        run(app, FakeSource({"AAPL": [seeds.bar(price=answered)]}))
    assert price(app, *messages(app)) == 100.4
    assert run(app, FakeSource({"AAPL": [seeds.bar(price=100.9)]})).ingested == 1
    assert price(app, *messages(app)) == 100.9


def test_stale_looks_are_counted(app: Connection[Any]) -> None:
    store_one(app, tick(100.9, at=10**9))  # in the far future, so every present look is older
    telemetry = RecordingTelemetry()
    result = ingest(app, FakeSource({"AAPL": seeds.bars(2)}), ["AAPL"], telemetry, POLICY, event_types=EVENT_TYPES)
    assert (result.fetched, result.ingested, result.stale) == (2, 1, 1)
    assert telemetry.totals["StaleLooks"] == 1


def test_looks_are_stored_in_read_committed_or_not_at_all(app: Connection[Any]) -> None:
    app.isolation_level = IsolationLevel.REPEATABLE_READ
    with app.transaction(force_rollback=True):
        app.execute("SELECT 1")
        with pytest.raises(psycopg.errors.ActiveSqlTransaction):
            store_events(app, [], [tick(1.0)])
    with app.transaction():
        store_events(app, [], [tick(1.0)])
        assert app.execute("SHOW transaction_isolation").fetchone() == ("read committed",)


# Any interleaving


def tick(
    close: float,
    *,
    at: float = 0,
    minute: int = 0,
    series: str = "1m",
    entity: str = "AAPL",
    start: datetime | None = None,
) -> Look:
    """Returns a look at a bar, ``at`` seconds after the first bar's start."""
    payload = MarketTick(price=close, open=1, high=1, low=1, volume=0, currency="USD", interval=series)
    return seeds.look(
        payload,
        entity_id=entity,
        occurred_at=(start or seeds.FIRST_BAR) + minute * seeds.MINUTE,
        observed_at=seeds.FIRST_BAR + at * SECOND,
    )


def store_one(connection: Connection[Any], *looks: Look) -> LookOutcome:
    """Stores looks in a transaction of their own; returns the outcome of the last one."""
    with connection.transaction():
        return store_events(connection, [], looks).looks[-1].outcome


@contextmanager
def emptied(connection: Connection[Any]) -> Iterator[None]:
    """Undoes the writes of the block at its end."""
    with connection.transaction(force_rollback=True):
        yield


def latest_looks(looks: Sequence[Look]) -> dict[Key, Look]:
    return {look.key: look for look in sorted(looks, key=lambda look: look.observed_at)}


@st.composite
def interleavings(draw: st.DrawFn) -> tuple[list[list[Look]], list[int]]:
    """Returns batches of looks in storing order; no instant is looked at twice at one moment."""
    ats = draw(st.permutations(range(8)))
    looks = [
        tick(
            draw(st.sampled_from([1.0, 2.0, 3.0])),
            at=at,
            minute=draw(st.integers(0, 1)),
            series=draw(st.sampled_from(["1m", "1d"])),
            start=MIDNIGHT,
        )
        for at in ats
    ]
    cuts = sorted(draw(st.sets(st.integers(1, 7))))
    batches = [looks[start:end] for start, end in pairwise([0, *cuts, len(looks)])]
    return batches, draw(st.lists(st.integers(0, 10**6), min_size=40, max_size=40))


@SHARED_DATABASE
@given(given_looks=interleavings())
def test_any_interleaving_in_any_delivery_ends_with_the_latest_look(
    app: Connection[Any], given_looks: tuple[list[list[Look]], list[int]]
) -> None:
    batches, order = given_looks
    looks = [look for batch in batches for look in batch]
    with emptied(app):
        for batch in batches:
            store_one(app, *batch)
        events = messages(app)
        shuffled = [event for _, event in sorted(zip(order, events * 2, strict=False), key=lambda pair: pair[0])]
        for event in [*shuffled, *events[:3]]:
            signal_lab.consume(app, event)
        rows = app.execute("SELECT bar_interval, occurred_at, price FROM signal_lab_bars").fetchall()
        wanted = latest_looks(looks).values()
        assert {row[:2]: row[2] for row in rows} == {
            (look.series, look.occurred_at): payload_of(look).price for look in wanted
        }
        newest = max(wanted, key=lambda look: (look.occurred_at, look.series))
        ((latest,),) = app.execute("SELECT price FROM signal_lab_latest_prices").fetchall()
        assert latest == payload_of(newest).price


def payload_of(look: Look) -> MarketTick:
    assert isinstance(look.payload, MarketTick)
    return look.payload


def test_bars_of_two_intervals_at_midnight_stay_apart(app: Connection[Any]) -> None:
    minute, day = tick(1.0, start=MIDNIGHT), tick(2.0, series="1d", start=MIDNIGHT)
    for again in (0, 1):
        expected = LookOutcome.DUPLICATE if again else LookOutcome.NEW
        assert [store_one(app, look) for look in (minute, day)] == [expected, expected]
    for event in reversed(messages(app)):
        signal_lab.consume(app, event)
    rows = app.execute("SELECT bar_interval, price, revision FROM signal_lab_bars ORDER BY 1").fetchall()
    assert rows == [("1d", 2.0, 0), ("1m", 1.0, 0)]


# Several runs at once

examples = count()


@settings(SHARED_DATABASE, max_examples=12)
@given(data=st.data())
def test_concurrent_runs_make_one_event_per_revision(database: TestDatabase, data: st.DataObject) -> None:
    runners, entities = 4, [f"E{next(examples)}-{number}" for number in range(5)]
    numbers = count()
    plans = [
        [
            [
                tick(data.draw(st.sampled_from([1.0, 2.0])), at=next(numbers), entity=entity)
                for entity in data.draw(st.permutations(entities))
            ]
            for _ in range(4)
        ]
        for _ in range(runners)
    ]
    with ThreadPoolExecutor(runners) as pool:
        list(pool.map(lambda batches: keep_storing(database, batches), plans))
    looks = [look for batches in plans for batch in batches for look in batch]
    with connect(database.app_url, application_name="test") as connection:
        chains = chains_of(connection, entities)
    for key, latest in latest_looks(looks).items():
        chain = chains[str(key.entity_id)]
        assert [event["revision"] for event in chain] == list(range(len(chain)))
        prices = [event["payload_json"]["price"] for event in chain]
        assert prices[-1] == payload_of(latest).price
        assert all(one != next_one for one, next_one in pairwise(prices))
        instants = [event["observed_at"] for event in chain]
        assert instants == sorted(instants)


def keep_storing(database: TestDatabase, batches: Sequence[Sequence[Look]]) -> None:
    with connect(database.app_url, application_name="test") as connection:
        for batch in batches:
            store_one(connection, *batch)


def chains_of(connection: Connection[Any], entities: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """Returns each entity's events in order of revision."""
    chains: dict[str, list[dict[str, Any]]] = {entity: [] for entity in entities}
    with connection.cursor(row_factory=dict_row) as cursor:
        cursor.execute("SELECT * FROM events WHERE entity_id = ANY (%s) ORDER BY revision", [list(entities)])
        for row in cursor:
            chains[row["entity_id"]].append(row)
    return chains


def test_many_symbols_in_different_orders_never_deadlock(app: Connection[Any], database: TestDatabase) -> None:
    symbols = [f"S{number:03}" for number in range(200)]
    # All runs store the same looks, and each has looks of its own.
    plans = [
        [
            [tick(float(shared or place + 1), at=10 * place + number, entity=symbol) for symbol in order]
            for number, shared in enumerate((7, 0, 7))
        ]
        for place, order in enumerate((symbols, symbols[::-1], symbols[1::2] + symbols[::2]))
    ]
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda batches: keep_storing(database, batches), plans))
    for chain in chains_of(app, symbols).values():
        assert [event["revision"] for event in chain] == list(range(len(chain)))
        assert chain[-1]["payload_json"]["price"] == 7.0


def test_the_database_refuses_a_second_event_for_one_revision(app: Connection[Any]) -> None:
    for entity in ("AAPL", None):
        look = tick(1.0)
        insert = (
            "INSERT INTO events (event_id, event_type, source, entity_id, series, occurred_at, revision, ingested_at,"
            " schema_version, trace_id, payload_json) VALUES (%s, 'T', 's', %s, '1m', %s, 0, now(), 1, %s, '{}')"
        )
        app.execute(insert, [uuid4(), entity, look.occurred_at, uuid4()])
        with pytest.raises(psycopg.errors.UniqueViolation, match="events_one_per_revision"):
            app.execute(insert, [uuid4(), entity, look.occurred_at, uuid4()])


# Rebuilding from raw payloads

closes = st.sampled_from([1.0, 2.0, 1e22, 0.1 + 0.2, 5e-324, float("nan"), float("inf"), None])
answers = st.lists(
    st.builds(
        lambda minute, close, series: Observation(
            "MARKET_TICK_INGESTED",
            seeds.FIRST_BAR + minute * seeds.MINUTE,
            dict(seeds.bar().payload) | {"price": close, "interval": series},
            series,
        ),
        st.integers(0, 2),
        closes,
        st.sampled_from(["1m", "1d"]),
    ),
    max_size=5,
)


@dataclass(frozen=True)
class Answered:
    """A run's answer about a symbol, and when it was asked."""

    symbol: str
    at: int
    bars: Sequence[Observation]


@st.composite
def runs(draw: st.DrawFn) -> list[Answered]:
    """Returns answers in the order in which they are stored."""
    return [
        Answered(draw(st.sampled_from(["AAPL", "MSFT"])), at, draw(answers)) for at in draw(st.permutations(range(6)))
    ]


@SHARED_DATABASE
@given(answered=runs())
def test_a_rebuild_in_stored_order_gives_the_same_ids(app: Connection[Any], answered: list[Answered]) -> None:
    with emptied(app):
        for answer in answered:
            store_answer(app, answer)
        for symbol in ("AAPL", "MSFT"):
            stored = observations(app, symbol)
            rebuilt = list(rebuild_observations(app, FakeSource({}), EVENT_TYPES, entity_id=symbol))
            assert {one.event_id for one in rebuilt} == set(stored)
            assert {one.event_id: (one.look.raw_payload_id, one.look.observed_at) for one in rebuilt} == stored


def store_answer(connection: Connection[Any], answer: Answered) -> None:
    """Stores an answer as a run does, with the time of the request given."""
    source = FakeSource({answer.symbol: answer.bars})
    asked_at = seeds.FIRST_BAR + answer.at * SECOND
    question = Question(answer.symbol, seeds.FIRST_BAR, asked_at, UUID(int=answer.at + 1))
    fetched = source.fetch(answer.symbol, question.since, asked_at)
    raw = RawPayload(
        uuid4(),
        source="fake",
        entity_id=answer.symbol,
        observed_at=asked_at,
        window_since=question.since,
        fetched_at=asked_at,
        trace_id=question.trace_id,
        payload=to_stored_raw(fetched.raw),
    )
    judgement = judge(fetched, question, source=source, event_types=EVENT_TYPES, raw_payload_id=raw.id)
    with connection.transaction():
        store_events(connection, [raw], [*judgement.observations, *judgement.rejections, *judgement.notices])


def observations(connection: Connection[Any], symbol: str) -> dict[UUID, tuple[UUID, datetime]]:
    """Returns the ids of what was observed of a symbol, each with its raw payload and when it was observed."""
    rows = connection.execute(
        "SELECT event_id, raw_payload_id, observed_at FROM events WHERE entity_id = %s AND event_type = ANY(%s)",
        [symbol, [payload.event_type for payload in DOMAIN.payloads]],
    )
    return {event_id: (raw_payload_id, observed_at) for event_id, raw_payload_id, observed_at in rows}


def test_events_ingested_through_yfinance_can_be_rebuilt(app: Connection[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("control_plane.ingestion.rebuild._AT_A_TIME", 2)
    now = app.execute("SELECT clock_timestamp()").fetchall()[0][0]
    minute = int(now.timestamp()) // 60 - 5
    faults: list[Fault | None] = [
        None,
        Fault(correct=Correction(minute, 1.5)),
        Fault(status=500),
        Fault(nan=True),
        Fault(empty=True),
        Fault(behind_seconds=120),
        None,
    ]
    with serve() as market:
        source = YFinanceSource(market_data_url=market.url)
        for fault in faults:
            market.faults.clear()
            if fault:
                market.faults.put("AAPL", fault)
            ingest(app, source, ["AAPL", "MSFT"], RecordingTelemetry(), POLICY, event_types=EVENT_TYPES)
    raw_payloads = app.execute("SELECT count(*) FROM raw_payloads WHERE entity_id = 'AAPL'").fetchone()
    assert raw_payloads == (len(faults),)
    for symbol in ("AAPL", "MSFT"):
        stored = observations(app, symbol)
        rebuilt = list(rebuild_observations(app, source, EVENT_TYPES, entity_id=symbol))
        assert {one.event_id: (one.look.raw_payload_id, one.look.observed_at) for one in rebuilt} == stored
        assert len(rebuilt) == len(stored) >= 60
    assert [one.revision for one in rebuild_observations(app, source, EVENT_TYPES, entity_id="AAPL")].count(2) == 1
