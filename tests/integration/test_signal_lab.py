"""SignalLab, and ``once()`` that makes it idempotent, on a real Postgres."""

import math
import random
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from itertools import pairwise, permutations
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg import Connection

from control_plane.consumers.once import once
from control_plane.model.contract import Event, SourceFetchFailed, new_event
from control_plane.model.errors import ContractViolation
from control_plane.platform.database import connect
from domains.finance import signal_lab
from domains.finance.events import MarketTick

NOON = datetime(2026, 1, 5, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
LIMIT_SECONDS = 10


def tick(
    price: float = 100.0,
    *,
    minute: int = 0,
    revision: int = 0,
    entity: str | None = "AAPL",
    source: str = "yfinance",
    interval: str = "1m",
    volume: int = 10,
) -> Event:
    """Returns a revision of the bar that began so many minutes after noon."""
    payload = MarketTick(
        price=price, open=price, high=price, low=price, volume=volume, currency="USD", interval=interval
    )
    return new_event(
        payload,
        source=source,
        entity_id=entity,
        entity_type="equity",
        occurred_at=NOON + minute * MINUTE,
        observed_at=NOON + 60 * MINUTE,
        ingested_at=NOON + 60 * MINUTE,
        trace_id=uuid4(),
        series=interval,
        revision=revision,
    )


def deliver(connection: Connection[Any], *events: Event) -> list[bool]:
    return [signal_lab.consume(connection, event) for event in events]


type Rows = list[tuple[Any, ...]]


def rows(connection: Connection[Any], query: str) -> Rows:
    return connection.execute(query.encode()).fetchall()


def latest(connection: Connection[Any]) -> Rows:
    query = """
        SELECT source, entity_id, price, currency, occurred_at, revision, event_id
        FROM signal_lab_latest_prices ORDER BY source, entity_id
    """
    return rows(connection, query)


def bars(connection: Connection[Any]) -> Rows:
    query = """
        SELECT source, entity_id, bar_interval, occurred_at, open, high, low, price, volume, revision, event_id
        FROM signal_lab_bars ORDER BY source, entity_id, bar_interval, occurred_at
    """
    return rows(connection, query)


def processed(connection: Connection[Any]) -> set[tuple[str, UUID]]:
    return {
        (consumer, event_id)
        for consumer, event_id in rows(connection, "SELECT consumer, event_id FROM processed_events")
    }


# Once in effect


@pytest.fixture
def effects(owner: Connection[Any]) -> None:
    owner.execute("CREATE TABLE effects (event_id uuid NOT NULL)")
    owner.execute("GRANT SELECT, INSERT ON effects TO acp_consume")


def act(
    connection: Connection[Any], event_id: UUID, consumer: str = "test", *, then: Callable[[], object] = lambda: None
) -> bool:
    with once(connection, consumer=consumer, event_id=event_id) as is_first:
        if is_first:
            connection.execute("INSERT INTO effects VALUES (%s)", [event_id])
        then()
    return is_first


@pytest.mark.usefixtures("effects")
def test_the_first_delivery_takes_effect_and_the_second_does_not(app: Connection[Any]) -> None:
    event_id = uuid4()
    assert [act(app, event_id), act(app, event_id)] == [True, False]
    assert rows(app, "SELECT event_id FROM effects") == [(event_id,)]
    assert processed(app) == {("test", event_id)}


@pytest.mark.usefixtures("effects")
def test_each_consumer_acts_on_an_event_once_for_itself(app: Connection[Any]) -> None:
    event_id = uuid4()
    assert act(app, event_id, "one")
    assert act(app, event_id, "another")
    assert len(rows(app, "SELECT event_id FROM effects")) == 2


@pytest.mark.usefixtures("effects")
def test_a_block_that_raises_leaves_nothing_and_can_run_again(app: Connection[Any]) -> None:
    event_id = uuid4()

    def break_down() -> None:
        raise RuntimeError("broken on the way")

    with pytest.raises(RuntimeError, match="on the way"):
        act(app, event_id, then=break_down)
    assert rows(app, "SELECT event_id FROM effects") == []
    assert processed(app) == set()
    assert act(app, event_id)


@pytest.mark.usefixtures("effects")
def test_an_effect_refused_by_the_database_is_not_marked_processed(app: Connection[Any]) -> None:
    with (
        pytest.raises(psycopg.errors.NotNullViolation),
        once(app, consumer="test", event_id=uuid4()),
    ):
        app.execute("INSERT INTO effects VALUES (NULL)")
    assert processed(app) == set()


class SecondDelivery:
    """Another delivery of an event, on a connection and thread of its own."""

    def __init__(self, connection: Connection[Any], event_id: UUID) -> None:
        self.pid = connection.info.backend_pid
        self.was_first: bool | None = None
        self._thread = threading.Thread(target=self._run, args=[connection, event_id])
        self._thread.start()

    def _run(self, connection: Connection[Any], event_id: UUID) -> None:
        self.was_first = act(connection, event_id)

    def wait_until_blocked(self, observer: Connection[Any]) -> None:
        deadline = time.monotonic() + LIMIT_SECONDS
        while observer.execute("SELECT cardinality(pg_blocking_pids(%s))", [self.pid]).fetchone() != (1,):
            assert time.monotonic() < deadline, "the second delivery does not wait for the first"
            assert self._thread.is_alive(), "the second delivery did not wait for the first"
            time.sleep(0.005)

    def finish(self) -> bool | None:
        self._thread.join(LIMIT_SECONDS)
        assert not self._thread.is_alive()
        return self.was_first


@pytest.fixture
def second(database: Any) -> Iterator[Connection[Any]]:
    with connect(database.app_url, application_name="test-second") as connection:
        yield connection


@pytest.mark.usefixtures("effects")
def test_a_concurrent_second_delivery_waits_and_finds_the_effect_made(
    app: Connection[Any], second: Connection[Any], owner: Connection[Any]
) -> None:
    event_id = uuid4()
    deliveries = []

    def deliver_again() -> None:
        deliveries.append(SecondDelivery(second, event_id))
        deliveries[0].wait_until_blocked(owner)

    assert act(app, event_id, then=deliver_again)
    assert deliveries[0].finish() is False
    assert rows(app, "SELECT event_id FROM effects") == [(event_id,)]


@pytest.mark.usefixtures("effects")
def test_a_concurrent_second_delivery_acts_if_the_first_failed(
    app: Connection[Any], second: Connection[Any], owner: Connection[Any]
) -> None:
    event_id = uuid4()
    deliveries = []

    def break_down() -> None:
        deliveries.append(SecondDelivery(second, event_id))
        deliveries[0].wait_until_blocked(owner)
        raise RuntimeError("broken on the way")

    with pytest.raises(RuntimeError, match="on the way"):
        act(app, event_id, then=break_down)
    assert deliveries[0].finish() is True
    assert rows(app, "SELECT event_id FROM effects") == [(event_id,)]
    assert processed(app) == {("test", event_id)}


@pytest.mark.usefixtures("effects")
def test_a_consumer_that_dies_leaves_the_event_for_redelivery(app: Connection[Any], second: Connection[Any]) -> None:
    event_id = uuid4()

    def die() -> None:
        second.execute("SELECT pg_terminate_backend(%s)", [app.info.backend_pid])

    with pytest.raises(psycopg.OperationalError):
        act(app, event_id, then=die)
    assert act(second, event_id)
    assert rows(second, "SELECT event_id FROM effects") == [(event_id,)]


# The latest price and the bars


def test_a_tick_is_the_latest_price_and_a_bar(app: Connection[Any]) -> None:
    event = tick(101.5, volume=7)
    assert deliver(app, event) == [True]
    assert latest(app) == [
        ("yfinance", "AAPL", 101.5, "USD", event.occurred_at, 0, event.event_id),
    ]
    assert bars(app) == [("yfinance", "AAPL", "1m", NOON, 101.5, 101.5, 101.5, 101.5, 7, 0, event.event_id)]
    assert processed(app) == {("signal_lab", event.event_id)}


def test_an_older_tick_never_overwrites_a_newer_one(app: Connection[Any]) -> None:
    newer, older = tick(2.0, minute=1), tick(1.0, minute=0, revision=9)
    deliver(app, newer, older)
    assert [row[2] for row in latest(app)] == [2.0]
    assert [row[7] for row in bars(app)] == [1.0, 2.0]


def test_of_two_revisions_of_a_bar_the_later_counts(app: Connection[Any]) -> None:
    first, corrected = tick(1.0), tick(1.5, revision=1)
    for order in ([first, corrected], [corrected, first]):
        with emptied(app):
            deliver(app, *order)
            assert [row[2] for row in latest(app)] == [1.5]
            assert [(row[7], row[-1]) for row in bars(app)] == [(1.5, corrected.event_id)]


def test_a_return_to_an_earlier_price_counts(app: Connection[Any]) -> None:
    revisions = [tick(100.9), tick(100.4, revision=1), tick(100.9, revision=2)]
    assert len({event.event_id for event in revisions}) == 3
    for order in permutations(revisions):
        with emptied(app):
            deliver(app, *order)
            assert [(row[2], row[5]) for row in latest(app)] == [(100.9, 2)]
            assert [(row[7], row[9]) for row in bars(app)] == [(100.9, 2)]


def test_a_redelivery_changes_nothing(app: Connection[Any]) -> None:
    events = [tick(1.0), tick(2.0, minute=1), tick(3.0, minute=1, revision=1)]
    deliver(app, *events)
    before = [rows(app, f"SELECT *, xmin FROM {table}") for table in ("signal_lab_latest_prices", "signal_lab_bars")]
    assert deliver(app, *events, *reversed(events)) == [False] * 6
    after = [rows(app, f"SELECT *, xmin FROM {table}") for table in ("signal_lab_latest_prices", "signal_lab_bars")]
    assert after == before


def test_sources_and_intervals_are_kept_apart(app: Connection[Any]) -> None:
    deliver(app, tick(1.0), tick(2.0, source="yfinance-replay"), tick(3.0, interval="1d", minute=1))
    assert [(row[0], row[2]) for row in latest(app)] == [("yfinance", 3.0), ("yfinance-replay", 2.0)]
    assert [(row[0], row[2], row[7]) for row in bars(app)] == [
        ("yfinance", "1d", 3.0),
        ("yfinance", "1m", 1.0),
        ("yfinance-replay", "1m", 2.0),
    ]
    assert len(rows(app, "SELECT * FROM signal_lab_risk")) == 3


def test_an_event_of_another_type_is_left_alone(app: Connection[Any]) -> None:
    failure = new_event(
        SourceFetchFailed(symbol="AAPL", kind="unreachable", reason="no answer"),
        source="yfinance",
        entity_id="AAPL",
        entity_type=None,
        occurred_at=NOON,
        observed_at=NOON,
        ingested_at=NOON,
        trace_id=uuid4(),
    )
    assert signal_lab.consume(app, failure) is False
    assert processed(app) == set()


def test_a_tick_of_another_version_is_left_alone(app: Connection[Any]) -> None:
    assert signal_lab.consume(app, tick().model_copy(update={"schema_version": 2})) is False
    assert processed(app) == set()


def test_a_tick_of_no_entity_is_refused(app: Connection[Any]) -> None:
    with pytest.raises(ContractViolation, match="entity_id"):
        signal_lab.consume(app, tick(entity=None))
    assert processed(app) == set()


@contextmanager
def emptied(connection: Connection[Any]) -> Iterator[None]:
    """Undoes the writes of the block at its end."""
    with connection.transaction(force_rollback=True):
        yield


def winners(events: Sequence[Event], place: Any, age: Any) -> dict[Any, Event]:
    best: dict[Any, Event] = {}
    for event in sorted(events, key=age):
        best[place(event)] = event
    return best


ticks = st.builds(
    tick,
    st.sampled_from([1.0, 2.0, 3.0]),
    minute=st.integers(0, 2),
    revision=st.integers(0, 2),
    interval=st.sampled_from(["1m", "1d"]),
    entity=st.sampled_from(["AAPL", "MSFT"]),
    source=st.sampled_from(["yfinance", "yfinance-replay"]),
)


def identity(event: Event) -> tuple[Any, ...]:
    """Returns what no two events share."""
    return event.source, event.entity_id, event.series, event.occurred_at, event.revision


deliveries = st.lists(ticks, min_size=1, max_size=8, unique_by=identity).flatmap(
    lambda events: st.tuples(
        st.just(events),
        st.permutations(events),
        st.lists(st.sampled_from(events), max_size=4),
    )
)


@settings(
    max_examples=60,
    deadline=None,
    # Each example leaves the database as it was.
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(given_deliveries=deliveries)
def test_any_order_and_number_of_deliveries_ends_the_same(
    app: Connection[Any], given_deliveries: tuple[list[Event], list[Event], list[Event]]
) -> None:
    events, order, again = given_deliveries
    by_age = winners(
        events,
        lambda event: (event.source, event.entity_id),
        lambda event: (event.occurred_at, event.series, event.revision),
    )
    by_bar = winners(
        events,
        lambda event: (event.source, event.entity_id, event.series, event.occurred_at),
        lambda event: event.revision,
    )
    with emptied(app):
        deliver(app, *order, *again)
        assert {row[:2]: row[-1] for row in latest(app)} == {key: event.event_id for key, event in by_age.items()}
        assert {row[:2]: row[2] for row in latest(app)} == {
            key: event.payload["price"] for key, event in by_age.items()
        }
        assert {row[:4]: row[-1] for row in bars(app)} == {key: event.event_id for key, event in by_bar.items()}
        assert {row[:4]: row[7] for row in bars(app)} == {key: event.payload["price"] for key, event in by_bar.items()}
        assert processed(app) == {("signal_lab", event.event_id) for event in events}


# Returns and risk, compared with a separate computation


def returns_of(prices: Sequence[float]) -> list[float | None]:
    changes = [current / previous - 1 if previous > 0 else None for previous, current in pairwise(prices)]
    return [None, *changes]


def volatility_at(returns: Sequence[float | None], place: int) -> float | None:
    window = [value for value in returns[max(0, place - 29) : place + 1] if value is not None]
    return statistics.stdev(window) if len(window) >= 2 else None


def drawdown_at(prices: Sequence[float], place: int) -> float | None:
    peak = max(prices[: place + 1])
    return prices[place] / peak - 1 if peak > 0 else None


def same(actual: float | None, expected: float | None) -> bool:
    if actual is None or expected is None:
        return actual is expected
    return math.isclose(actual, expected, rel_tol=1e-9, abs_tol=1e-12)


def check_views(connection: Connection[Any], prices: Sequence[float]) -> None:
    deliver(connection, *(tick(price, minute=minute) for minute, price in enumerate(prices)))
    returns = returns_of(prices)
    drawdowns = [drawdown_at(prices, place) for place in range(len(prices))]
    query = "SELECT price, bar_return, rolling_volatility, drawdown FROM signal_lab_returns ORDER BY occurred_at"
    found = rows(connection, query)
    assert [row[0] for row in found] == list(prices)
    for place, (_, bar_return, volatility, drawdown) in enumerate(found):
        assert same(bar_return, returns[place]), (place, bar_return)
        assert same(volatility, volatility_at(returns, place)), (place, volatility)
        assert same(drawdown, drawdowns[place]), (place, drawdown)
    query = """
        SELECT occurred_at, price, bar_return, rolling_volatility, drawdown, maximum_drawdown, bars FROM signal_lab_risk
    """
    [(occurred_at, price, bar_return, volatility, drawdown, maximum_drawdown, count)] = rows(connection, query)
    assert (occurred_at, price, count) == (NOON + (len(prices) - 1) * MINUTE, prices[-1], len(prices))
    assert (bar_return, volatility, drawdown) == found[-1][1:]
    assert same(maximum_drawdown, min((value for value in drawdowns if value is not None), default=None))


@pytest.mark.parametrize("count", [1, 2, 3, 30, 31, 32, 75])
def test_returns_volatility_and_drawdown_are_what_python_computes(app: Connection[Any], count: int) -> None:
    walk = random.Random(count)
    prices = [100.0]
    while len(prices) < count:
        prices.append(round(prices[-1] * (1 + walk.gauss(0, 0.02)), 4))
    check_views(app, prices)


@pytest.mark.parametrize(
    "prices",
    [
        pytest.param([10.0, -37.63, -10.0, 5.0, 12.0, 3.0], id="below_zero"),
        pytest.param([-10.0, -5.0, -20.0], id="never_above_zero"),
    ],
)
def test_a_price_below_zero_has_no_return_and_breaks_nothing(app: Connection[Any], prices: list[float]) -> None:
    check_views(app, prices)


def test_a_corrected_bar_corrects_the_risk(app: Connection[Any]) -> None:
    deliver(app, tick(100.0, minute=0), tick(10.0, minute=1), tick(100.0, minute=2))
    deliver(app, tick(99.0, minute=1, revision=1))
    [(drawdown,)] = rows(app, "SELECT maximum_drawdown FROM signal_lab_risk")
    assert same(drawdown, 99 / 100 - 1)


def test_each_entity_has_its_own_series(app: Connection[Any]) -> None:
    deliver(app, tick(100.0), tick(1.0, entity="PENNY"), tick(110.0, minute=1), tick(2.0, minute=1, entity="PENNY"))
    found = rows(app, "SELECT entity_id, bar_return FROM signal_lab_risk ORDER BY entity_id")
    assert [(entity, round(bar_return, 9)) for entity, bar_return in found] == [("AAPL", 0.1), ("PENNY", 1.0)]
