"""A source's outage: what it costs, which events report it, and how its end is noticed."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import psycopg
import pytest
from psycopg import Connection
from tests.integration import seeds
from tests.integration.fakes import FakeSource, RecordingTelemetry

from control_plane.ingestion.service import IngestionResult, ingest
from control_plane.ingestion.source import Fetched
from control_plane.model.errors import SourceError
from control_plane.platform.breakers import Breaker, BreakerPolicy, hold, read_breakers, resume
from domains import EVENT_TYPES

POLICY = BreakerPolicy(failure_threshold=3, cool_down_seconds=1000)
SYMBOLS = ("AAPL", "IBM", "MSFT", "GOOG")


class Market(FakeSource):
    """A source that knows SYMBOLS; raises the error of the kind in ``trouble``, by symbol, while there is one."""

    def __init__(self) -> None:
        super().__init__(dict.fromkeys(SYMBOLS, seeds.bars(3)))
        self.trouble: dict[str, str] = {}
        self.fetches: list[str] = []

    def fetch(self, symbol: str, since: datetime | None, asked_at: datetime) -> Fetched:
        self.fetches.append(symbol)
        if kind := self.trouble.get(symbol):
            raise SourceError(symbol, kind, "not now", raw={"of": symbol})
        return super().fetch(symbol, since, asked_at)

    def fail(self, kind: str = "unreachable", *, symbols: tuple[str, ...] = SYMBOLS) -> None:
        self.trouble = dict.fromkeys(symbols, kind)

    def recover(self) -> None:
        self.trouble = {}


def run(connection: Connection[Any], source: Market, *symbols: str) -> IngestionResult:
    source.fetches.clear()
    return ingest(connection, source, symbols or SYMBOLS, RecordingTelemetry(), POLICY, event_types=EVENT_TYPES)


def open_breaker(connection: Connection[Any], source: Market) -> None:
    source.fail()
    for _ in range(POLICY.failure_threshold):
        run(connection, source)


def breaker(connection: Connection[Any]) -> Breaker:
    (found,) = read_breakers(connection, ["fake"]) or [Breaker("fake")]
    return found


def cool_down(connection: Connection[Any]) -> None:
    connection.execute("UPDATE circuit_breakers SET retry_at = retry_at - make_interval(secs => 1000)")


def failures(connection: Connection[Any]) -> Mapping[str, int]:
    """Returns how many SOURCE_FETCH_FAILED there are of each kind."""
    return dict(
        connection.execute(
            "SELECT payload_json ->> 'kind', count(*) FROM events WHERE event_type = 'SOURCE_FETCH_FAILED' GROUP BY 1"
        ).fetchall()
    )


@pytest.mark.parametrize("kind", ["rate_limited", "unreachable", "malformed"])
def test_a_run_in_which_every_symbol_fails_is_one_failure(app: Connection[Any], kind: str) -> None:
    source = Market()
    source.fail(kind)
    for runs in (1, 2):
        assert run(app, source).failed_symbols == list(SYMBOLS)
        assert (breaker(app).state, breaker(app).consecutive_failures) == ("closed", runs)
    assert breaker(app).last_error in {f"{symbol}: not now" for symbol in SYMBOLS}
    run(app, source)
    assert breaker(app).state == "open"
    assert sorted(source.fetches) == sorted(SYMBOLS)


@pytest.mark.parametrize("symbols", [("IBM", "MSFT", "GOOG"), ("AAPL", "IBM", "MSFT")])
def test_one_answered_symbol_shows_that_the_source_works(app: Connection[Any], symbols: tuple[str, ...]) -> None:
    source = Market()
    source.fail()
    run(app, source)
    run(app, source)
    source.fail(symbols=symbols)
    for _ in range(2 * POLICY.failure_threshold):
        assert sorted(run(app, source).failed_symbols) == sorted(symbols)
    assert breaker(app) == Breaker("fake")


def test_a_symbol_unknown_to_the_source_is_no_outage(app: Connection[Any]) -> None:
    source = Market()
    for _ in range(2 * POLICY.failure_threshold):
        assert run(app, source, "NOPE").failed_symbols == ["NOPE"]
    assert breaker(app) == Breaker("fake")


def test_a_run_behind_an_open_breaker_does_nothing(app: Connection[Any]) -> None:
    source = Market()
    open_breaker(app, source)
    counts, kinds = seeds.counts(app), failures(app)
    telemetry = RecordingTelemetry()
    for _ in range(60):
        source.fetches.clear()
        result = ingest(app, source, SYMBOLS, telemetry, POLICY, event_types=EVENT_TYPES)
        assert source.fetches == []
        assert (result.symbols, result.failed_symbols) == (list(SYMBOLS), list(SYMBOLS))
        assert result.fetched == 0
    assert (seeds.counts(app), failures(app)) == (counts, kinds)
    assert telemetry.totals == {"BreakerOpen": 60}


def test_an_open_breaker_is_one_event_however_long(app: Connection[Any]) -> None:
    source = Market()
    open_breaker(app, source)
    said = {"unreachable": 3 * len(SYMBOLS), "breaker_open": 1}
    assert failures(app) == said
    for _ in range(5):
        cool_down(app)
        run(app, source)
        run(app, source)
    assert failures(app) == said
    ((entity_id, occurred_at, payload, topic),) = app.execute(
        "SELECT entity_id, occurred_at, events.payload_json, topic FROM events JOIN outbox USING (event_id)"
        " WHERE events.payload_json ->> 'kind' = 'breaker_open'"
    ).fetchall()
    assert (entity_id, occurred_at, topic) == (None, breaker(app).opened_at, "system.events")
    assert payload["symbol"] == "*"
    assert payload["reason"] == "the source answers for no symbol: nothing is fetched until a probe is answered"


def test_concurrent_runs_report_one_opening_once(app: Connection[Any]) -> None:
    source = Market()
    source.fail()
    run(app, source)
    run(app, source)

    class SlowMarket(Market):
        """A market during whose answer another run starts and ends."""

        def fetch(self, symbol: str, since: datetime | None, asked_at: datetime) -> Fetched:
            run(app, source)
            raise SourceError(symbol, "rate_limited", "nor now")

    assert run(app, SlowMarket(), "AAPL").failed_symbols == ["AAPL"]
    assert breaker(app).consecutive_failures == 4
    assert failures(app)["breaker_open"] == 1


def test_the_next_outage_is_another_event(app: Connection[Any]) -> None:
    source = Market()
    for outages in (1, 2):
        open_breaker(app, source)
        assert failures(app)["breaker_open"] == outages
        source.recover()
        cool_down(app)
        run(app, source)


def test_the_opened_breaker_and_its_event_are_committed_together(app: Connection[Any], owner: Connection[Any]) -> None:
    source = Market()
    source.fail()
    run(app, source)
    run(app, source)
    owner.execute("CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION ''no''; END'")
    owner.execute(
        "CREATE TRIGGER refuses BEFORE INSERT ON events FOR EACH ROW"
        " WHEN (new.payload_json ->> 'kind' = 'breaker_open') EXECUTE FUNCTION refuse()"
    )
    with pytest.raises(psycopg.errors.RaiseException):
        run(app, source)
    assert breaker(app).consecutive_failures == 2
    owner.execute("DROP TRIGGER refuses ON events")
    run(app, source)
    assert breaker(app).state == "open"
    assert failures(app)["breaker_open"] == 1


def test_a_probe_costs_one_symbol_and_another_each_time(app: Connection[Any]) -> None:
    source = Market()
    open_breaker(app, source)
    probed = []
    for _ in SYMBOLS:
        cool_down(app)
        result = run(app, source)
        assert len(source.fetches) == 1
        probed += source.fetches
        assert sorted(result.failed_symbols) == sorted(SYMBOLS)
        assert breaker(app).state == "open"
        run(app, source)
        assert source.fetches == []
    assert sorted(probed) == sorted(SYMBOLS)


def test_a_permanently_broken_symbol_does_not_keep_the_breaker_open(app: Connection[Any]) -> None:
    source = Market()
    open_breaker(app, source)
    source.fail("malformed", symbols=SYMBOLS[:1] + SYMBOLS[2:])
    for _ in SYMBOLS:
        cool_down(app)
        run(app, source)
    assert breaker(app).state == "closed"


def test_the_run_that_finds_the_source_back_fetches_every_symbol(app: Connection[Any]) -> None:
    source = Market()
    open_breaker(app, source)
    source.recover()
    cool_down(app)
    result = run(app, source)
    assert (result.ingested, result.failed_symbols) == (3 * len(SYMBOLS), [])
    assert sorted(source.fetches) == sorted(SYMBOLS)
    assert breaker(app) == Breaker("fake")


def test_a_symbol_failing_after_a_good_probe_is_an_event(app: Connection[Any]) -> None:
    source = Market()
    open_breaker(app, source)
    before = failures(app)["unreachable"]
    source.fail(symbols=("AAPL", "IBM", "MSFT"))
    while not breaker(app).is_closed:
        cool_down(app)
        result = run(app, source)
    assert failures(app)["unreachable"] == before + 3
    assert sorted(result.failed_symbols) == ["AAPL", "IBM", "MSFT"]


def test_while_another_run_probes_none_else_fetches(app: Connection[Any]) -> None:
    source = Market()
    open_breaker(app, source)
    cool_down(app)

    class SlowMarket(Market):
        """A market during whose answer another run starts."""

        def fetch(self, symbol: str, since: datetime | None, asked_at: datetime) -> Fetched:
            assert run(app, source).failed_symbols == list(SYMBOLS)
            assert source.fetches == []
            return super().fetch(symbol, since, asked_at)

    assert run(app, SlowMarket(), "AAPL").ingested == 3


def test_a_held_source_is_not_fetched_and_makes_no_event(app: Connection[Any]) -> None:
    source = Market()
    hold(app, "fake", by="Ada")
    assert run(app, source).failed_symbols == list(SYMBOLS)
    assert source.fetches == []
    assert seeds.counts(app) == (0, 0, 0)
    assert resume(app, "fake")
    assert run(app, source).ingested == 3 * len(SYMBOLS)


def test_an_outage_during_a_hold_is_reported_once_noticed(app: Connection[Any]) -> None:
    source = Market()
    hold(app, "fake", by="Ada")
    source.fail()
    assert resume(app, "fake")
    for _ in range(3):
        run(app, source)
        assert breaker(app).state == "open"
        cool_down(app)
    assert failures(app) == {"breaker_open": 1}


def test_a_failure_under_a_hold_is_no_opening(app: Connection[Any]) -> None:
    class HeldMarket(Market):
        """A market whose breaker a person holds while it is being asked."""

        def fetch(self, symbol: str, since: datetime | None, asked_at: datetime) -> Fetched:
            hold(app, "fake", by="Ada")
            raise SourceError(symbol, "rate_limited", "not now")

    run(app, HeldMarket(), "AAPL")
    assert breaker(app).held_by == "Ada"
    assert failures(app) == {"rate_limited": 1}


def test_another_source_flows_on(app: Connection[Any]) -> None:
    source = Market()
    open_breaker(app, source)
    other = Market()
    other.name = "another"
    assert run(app, other).ingested == 3 * len(SYMBOLS)
