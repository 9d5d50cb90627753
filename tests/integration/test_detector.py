"""The detector on a real Postgres: whatever order bars come in, the same tables, and the same anomalies told."""

import json
from collections import defaultdict
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg import Connection
from tests.conftest import TestDatabase
from tests.integration import detection
from tests.integration.detection import (
    MINUTE,
    NOON,
    bar,
    by_time,
    deliver,
    dividend,
    emptied,
    found,
    opening,
    quiet,
    revised,
    split,
    standing,
    stands_told,
    told,
    until,
)

from control_plane.model.contract import Event
from control_plane.model.errors import ContractViolation
from control_plane.platform.database import connect
from domains import EVENT_TYPES
from domains.finance import detector
from domains.finance.detector import scoring
from domains.finance.detector.scoring import Action, Judged, Prices
from domains.finance.events import CorporateSplit, MarketTick


@pytest.fixture
def detect(database: TestDatabase) -> Iterator[Connection[Any]]:
    """A connection as DetectorFunction has it."""
    with connect(database.url("acp_detect"), application_name="test") as connection:
        yield connection


def fold(detect: Connection[Any], *events: Event) -> None:
    deliver(detect, *events)


# The days that everybody knows


def test_the_market_wide_fall_of_2008_is_found_and_marked(app: Connection[Any], detect: Connection[Any]) -> None:
    day = "2008-09-29"
    fold(detect, *by_time(one for symbol in ("AAPL", "GOOG", "IBM", "MSFT") for one in until(symbol, day)))
    assert {key[0] for key, (state, _) in found(app, day).items() if key[1] == "return" and state == "detected"} == {
        "AAPL",
        "GOOG",
        "MSFT",
    }
    last = [one for one in told(app) if one.occurred_at == opening(day)][-1]
    assert last.details["market"] == {
        "entities": 4,
        "fell": 4,
        "median_return_ppm": last.details["market"]["median_return_ppm"],
        "is_market_wide": True,
    }
    assert -110_000 < last.details["market"]["median_return_ppm"] < -80_000


def test_one_stocks_fall_is_found_and_no_market_wide_one(app: Connection[Any], detect: Connection[Any]) -> None:
    day = "2000-09-29"
    fold(detect, *by_time(one for symbol in ("IBM", "MSFT", "AAPL") for one in until(symbol, day)))
    assert found(app, day) == {("AAPL", "return"): ("detected", pytest.approx(-16.5, abs=2))}
    [last] = [one for one in told(app) if one.occurred_at == opening(day)]
    assert last.figure == pytest.approx(-518_692, abs=1000)
    assert not last.details["market"]["is_market_wide"]


def test_the_flash_crash_is_an_anomaly_of_the_range(app: Connection[Any], detect: Connection[Any]) -> None:
    day = "2010-05-06"
    fold(detect, *until("AAPL", day))
    assert found(app, day) == {("AAPL", "range"): ("detected", pytest.approx(80, abs=30))}
    [last] = [one for one in told(app) if one.occurred_at == opening(day)]
    assert (last.details["side"], last.figure) == ("low", pytest.approx(-190_863, abs=1000))


@pytest.mark.parametrize("comes_first", [True, False], ids=["told_before_its_bar", "told_after_its_bar"])
def test_a_split_sized_fall_is_explained_by_the_split(
    app: Connection[Any], detect: Connection[Any], comes_first: bool
) -> None:
    day = "2005-02-28"
    bars = until("AAPL", day)
    its_split = detection.event(CorporateSplit(numerator=2, denominator=1), opening(day))
    fold(detect, *bars[:-1], *((its_split, bars[-1]) if comes_first else (bars[-1], its_split)))
    assert found(app, day) == {("AAPL", "return"): ("explained", pytest.approx(0.1, abs=0.5))}
    [(details,)] = app.execute("SELECT details FROM detector_anomalies WHERE state = 'explained'").fetchall()
    assert details["corporate_actions"] == [
        {"kind": "split", "occurred_at": "2005-02-28T14:30:00Z", "ratio_ppm": 2_000_000}
    ]
    assert (details["as_traded_ppm"], details["return_ppm"]) == (
        pytest.approx(-495_898, abs=1000),
        pytest.approx(8203, abs=1000),
    )
    about_it = [one.is_withdrawn for one in told(app) if one.occurred_at == opening(day)]
    assert about_it == ([] if comes_first else [False, True])
    assert [key for key in stands_told(app) if key[2] == opening(day)] == []


# What is told, and to whom


FALL = [*quiet(60), bar(50.0, 60)]


def test_an_anomaly_is_told_to_those_who_follow_and_who_decide(app: Connection[Any], detect: Connection[Any]) -> None:
    fold(detect, *FALL)
    rows = app.execute("SELECT topic, payload_json FROM outbox WHERE event_type = 'ANOMALY_DETECTED'").fetchall()
    assert sorted(topic for topic, _ in rows) == ["decisions.events", "decisions.work"]
    event = EVENT_TYPES.parse_event(json.dumps(rows[0][1]))
    assert (event.source, event.entity_id, event.entity_type) == ("decisions", "AAPL", "equity")
    assert (event.occurred_at, event.series, event.revision) == (NOON + 60 * MINUTE, "yfinance/1m/return", 0)
    assert event.trace_id == detection.TRACE
    assert event.ingested_at > event.occurred_at
    assert event.payload["observed_source"] == "yfinance"
    assert event.payload["series"] == "1m"
    assert event.payload["bar_event_id"] == str(FALL[-1].event_id)
    [(told_event_id,)] = app.execute("SELECT told_event_id FROM detector_anomalies").fetchall()
    assert told_event_id == event.event_id


def test_a_second_database_derives_the_same_event_ids(app: Connection[Any], detect: Connection[Any]) -> None:
    ids = []
    for _ in range(2):
        with emptied(app):
            fold(app, *FALL)
            ids.append(app.execute("SELECT told_event_id FROM detector_anomalies").fetchall())
    assert ids[0] == ids[1] != []


def test_a_redelivered_bar_tells_nothing_again(app: Connection[Any], detect: Connection[Any]) -> None:
    fold(detect, *FALL)
    before = standing(app)
    assert deliver(detect, *FALL) == [False] * len(FALL)
    assert (standing(app), len(told(app))) == (before, 1)


def test_a_corrected_bar_that_is_usual_withdraws_its_anomaly(app: Connection[Any], detect: Connection[Any]) -> None:
    fold(detect, *FALL, revised(FALL[-1], price=100.0, open=100.0, high=100.0, low=100.0))
    assert [(one.is_withdrawn, one.revision) for one in told(app)] == [(False, 0), (True, 1)]
    assert stands_told(app) == {}
    assert app.execute("SELECT state, told FROM detector_anomalies").fetchall() == [("withdrawn", 2)]


def test_a_corrected_bar_that_stays_unusual_is_told_anew(app: Connection[Any], detect: Connection[Any]) -> None:
    corrected = revised(FALL[-1], price=60.0, open=60.0, high=60.0, low=60.0)
    fold(detect, *FALL, corrected)
    assert [(one.bar_event_id, one.revision) for one in told(app)] == [
        (str(FALL[-1].event_id), 0),
        (str(corrected.event_id), 1),
    ]


def test_a_late_bar_withdraws_the_fall_that_it_explains(app: Connection[Any], detect: Connection[Any]) -> None:
    down = [bar(100 * 0.9975**n, 60 + n) for n in range(1, 30)]
    fold(detect, *quiet(61), down[-1], *down[:-1])
    assert [one.occurred_at for one in told(app) if one.occurred_at == down[-1].occurred_at]
    assert (down[-1].source, "AAPL", down[-1].occurred_at, "return") not in stands_told(app)


def test_fewer_bars_than_the_warm_up_find_nothing(app: Connection[Any], detect: Connection[Any]) -> None:
    with emptied(app):
        fold(app, *quiet(scoring.WARM_UP), bar(50.0, scoring.WARM_UP))
        assert told(app) == []
    with emptied(app):
        fold(app, *quiet(scoring.WARM_UP + 1), bar(50.0, scoring.WARM_UP + 1))
        assert len(told(app)) == 1


def test_a_return_over_night_is_compared_with_its_like_alone(app: Connection[Any], detect: Connection[Any]) -> None:
    night = 12 * 60
    with emptied(app):
        fold(app, *quiet(60), *quiet(20, start=60 + night, base=80.0))
        assert told(app) == []
    nights = [bar(100 * (1 + 0.01 * (-1) ** n), night * n) for n in range(1, 51)]
    with emptied(app):
        fold(app, *nights, bar(90.0, night * 51))
        assert [(one.occurred_at, one.details["follows_gap"]) for one in told(app)] == [
            (NOON + 51 * night * MINUTE, True)
        ]


def test_a_dividend_explains_the_fall_that_it_makes(app: Connection[Any], detect: Connection[Any]) -> None:
    fold(detect, *quiet(60), dividend(9.0, minute=60), bar(91.0, 60))
    assert app.execute("SELECT state FROM detector_anomalies").fetchall() == [("explained",)]
    assert told(app) == []


@pytest.mark.parametrize(
    "action", [dividend(9.0, minute=60, currency="GBp"), dividend(900.0, minute=60), split(1, 2, minute=60)]
)
def test_an_action_that_does_not_fit_explains_nothing(
    app: Connection[Any], detect: Connection[Any], action: Event
) -> None:
    fold(detect, *quiet(60), action, bar(91.0, 60))
    assert [one.is_withdrawn for one in told(app)] == [False]


def test_a_split_that_the_source_has_put_into_its_prices_counts_once(
    app: Connection[Any], detect: Connection[Any]
) -> None:
    fold(detect, *quiet(60), split(2, minute=60), bar(100.0, 60))
    assert told(app) == []


@pytest.mark.parametrize("price", [1e300, 5e-324, -37.63, 1e-300])
def test_an_absurd_price_breaks_nothing(app: Connection[Any], detect: Connection[Any], price: float) -> None:
    fold(
        detect, *quiet(60), bar(price, 60), split(1e6, 1e-6, minute=61), dividend(1e11, minute=61), *quiet(3, start=61)
    )
    for one in told(app):
        assert isinstance(one.figure, int)


def test_other_events_are_left_alone(app: Connection[Any], detect: Connection[Any]) -> None:
    assert detector.consume(detect, bar(1.0).model_copy(update={"schema_version": 2})) is False
    with pytest.raises(ContractViolation, match="entity_id"):
        detector.consume(detect, bar(1.0, entity=None))
    assert app.execute("SELECT count(*) FROM processed_events").fetchone() == (0,)


# Any order


bars = st.builds(
    bar,
    st.sampled_from([100.0, 100.1, 99.9, 50.0, 200.0]),
    # Two sessions, with a night between.
    st.integers(0, 11).map(lambda n: n if n < 8 else n + 600),
    revision=st.integers(0, 2),
    entity=st.sampled_from(["AAPL", "AAPL", "AAPL", "MSFT"]),
    low=st.sampled_from([None, None, 40.0]),
)
actions = st.one_of(
    st.builds(split, st.sampled_from([2, 4]), minute=st.integers(0, 8), revision=st.integers(0, 1)),
    st.builds(dividend, st.sampled_from([1.0, 50.0]), minute=st.integers(0, 8), revision=st.integers(0, 1)),
)


def identity(event: Event) -> tuple[Any, ...]:
    """What no two events share."""
    return event.event_type, event.source, event.entity_id, event.series, event.occurred_at, event.revision


deliveries = st.tuples(
    st.lists(bars, min_size=6, max_size=20, unique_by=identity), st.lists(actions, max_size=3, unique_by=identity)
).flatmap(
    lambda both: st.tuples(
        st.just([*both[0], *both[1]]),
        st.permutations([*both[0], *both[1]]),
        st.lists(st.sampled_from([*both[0], *both[1]]), max_size=4),
    )
)


def winners(events: list[Event]) -> list[Event]:
    """The latest revision of each, in order of time, an action before the bar of its instant."""
    best = {identity(one)[:-1]: one for one in sorted(events, key=lambda one: one.revision)}
    return sorted(best.values(), key=lambda one: (one.occurred_at, one.event_type, one.entity_id or ""))


@pytest.fixture
def short_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "WINDOW", 5)
    monkeypatch.setattr(scoring, "WARM_UP", 3)


@pytest.mark.usefixtures("short_windows")
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(given_deliveries=deliveries)
def test_any_order_ends_in_the_same_tables_and_tells_the_same(
    app: Connection[Any], given_deliveries: tuple[list[Event], list[Event], list[Event]]
) -> None:
    events, order, again = given_deliveries
    with emptied(app):
        deliver(app, *winners(events))
        rows, said = standing(app), stands_told(app)
    with emptied(app):
        deliver(app, *order, *again)
        assert standing(app) == rows
        assert stands_told(app) == said
        assert {key[:2] for key in said} <= {("yfinance", "AAPL"), ("yfinance", "MSFT")}
        revisions: defaultdict[Any, list[int]] = defaultdict(list)
        for one in told(app):
            revisions[one.entity_id, one.occurred_at, one.kind].append(one.revision)
        assert all(numbers == list(range(len(numbers))) for numbers in revisions.values())


def expected(events: list[Event]) -> dict[Any, tuple[str, float]]:
    """What is to be found, computed over whole lists; of one entity and interval."""
    ordered = [one for one in winners(events) if one.event_type == MarketTick.event_type]
    known = [
        Action("split", one.occurred_at, one.payload["numerator"] / one.payload["denominator"], None)
        if "numerator" in one.payload
        else Action("dividend", one.occurred_at, one.payload["amount"], one.payload["currency"])
        for one in winners(events)
        if one.event_type != MarketTick.event_type
    ]
    by_kind: dict[bool, tuple[list[float | None], list[float | None]]] = {False: ([], []), True: ([], [])}
    result = {}
    previous: Prices | None = None
    for one in ordered:
        prices = Prices(one.occurred_at, *(one.payload[name] for name in ("open", "high", "low", "price", "currency")))
        between = [
            action
            for action in known
            if previous is not None and previous.occurred_at < action.occurred_at <= one.occurred_at
        ]
        measures = scoring.measure(previous, prices, between, "1m")
        returns, excursions = by_kind[measures.follows_gap]
        judged = Judged(one.occurred_at, one.event_id, one.revision, measures)
        for finding in scoring.findings(judged, returns, excursions):
            state = "explained" if finding.is_explained else "detected"
            result[one.occurred_at, finding.kind] = (state, finding.score)
        returns.append(measures.log_return)
        excursions.append(measures.excursion)
        previous = prices
    return result


@pytest.mark.usefixtures("short_windows")
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(given_deliveries=deliveries)
def test_what_is_found_is_what_whole_lists_give(
    app: Connection[Any], given_deliveries: tuple[list[Event], list[Event], list[Event]]
) -> None:
    _, order, _ = given_deliveries
    order = [one for one in order if one.entity_id == "AAPL"]
    with emptied(app):
        deliver(app, *order)
        rows = app.execute("SELECT occurred_at, kind, state, score FROM detector_anomalies WHERE state <> 'withdrawn'")
        assert {(at, kind): (state, score) for at, kind, state, score in rows} == expected(order)


def test_a_window_ends_where_it_should_when_a_late_bar_enters_it(app: Connection[Any], detect: Connection[Any]) -> None:
    order = [*quiet(30), *quiet(270, start=31, base=101.0), bar(95.0, 301), bar(100.5, 30), bar(101.0, 302)]
    fold(detect, *order)
    rows = app.execute("SELECT occurred_at, kind, state, score FROM detector_anomalies WHERE state <> 'withdrawn'")
    assert {(at, kind): (state, score) for at, kind, state, score in rows} == expected(order)


def test_intervals_and_sources_have_windows_of_their_own(app: Connection[Any], detect: Connection[Any]) -> None:
    fold(detect, *quiet(60), bar(50.0, 60, source="yfinance-replay"), bar(50.0, 60, interval="5m"))
    assert told(app) == []


def test_two_deliveries_of_one_entity_wait_for_each_other(app: Connection[Any], database: TestDatabase) -> None:
    with connect(database.url("acp_detect"), application_name="test") as other:
        other.execute("SET lock_timeout = '200ms'")
        with app.transaction():
            deliver(app, bar(1.0))
            with pytest.raises(Exception, match="lock timeout"):
                deliver(other, bar(2.0, 1))
            assert deliver(other, bar(2.0, 1, entity="MSFT")) == [True]


def test_days_follow_each_other_whatever_lies_between() -> None:
    assert not scoring.follows_gap(NOON, NOON + timedelta(days=4), "1d")
    assert not scoring.follows_gap(NOON, NOON + timedelta(minutes=30), "1m")
    assert scoring.follows_gap(NOON, NOON + timedelta(minutes=31), "1m")
    assert not scoring.follows_gap(None, NOON, "1m")
