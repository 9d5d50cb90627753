"""What becomes of an answer with good bars, bad bars, gaps or repetitions."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg import Connection
from tests.integration import seeds
from tests.integration.fakes import FakeSource
from tests.integration.ingestion.runs import SourceBug, events, run

from control_plane.ingestion.source import Entity, Fetched, Json, Observation
from control_plane.ingestion.store import LARGEST_RAW_PAYLOAD
from control_plane.model.errors import SourceError

# One symbol's failure stays its own


def test_a_failing_symbol_is_an_event_and_stops_nobody(app: Connection[Any]) -> None:
    source = FakeSource(
        {
            "AAPL": seeds.bars(2),
            "SLOW": SourceError("SLOW", "rate_limited", "asks for fewer\nrequests", raw={"code": 429}),
        }
    )
    result = run(app, source, "SLOW", "AAPL", "NOPE")
    assert (result.ingested, result.failed_symbols) == (2, ["SLOW", "NOPE"])
    assert dict(events(app, "SOURCE_FETCH_FAILED")) == {
        "SLOW": {"symbol": "SLOW", "kind": "rate_limited", "reason": "asks for fewer requests"},
        "NOPE": {"symbol": "NOPE", "kind": "unknown_symbol", "reason": "not traded here"},
    }
    raws = app.execute("SELECT raw.payload_json FROM events JOIN raw_payloads AS raw ON raw_payload_id = raw.id"
                       " WHERE event_type = 'SOURCE_FETCH_FAILED'")  # fmt: skip
    assert {"code": 429} in [row[0] for row in raws]


def test_a_bug_with_one_symbol_spares_the_others(app: Connection[Any]) -> None:
    result = run(app, FakeSource({"AAPL": seeds.bars(2), "ODD": SourceBug("what is this?")}), "ODD", "AAPL")
    assert (result.ingested, result.failed_symbols) == (2, ["ODD"])
    ((entity_id, payload),) = events(app, "SOURCE_FETCH_FAILED")
    assert (entity_id, payload["kind"]) == ("ODD", "malformed")
    assert payload["reason"] == "SourceBug: what is this?"


class MisdescribingSource(FakeSource):
    """A source that fetches well, and fails when it describes its own answer."""

    def describe(self, fetched: Fetched) -> Entity:
        if fetched.symbol == "ODD":
            raise SourceBug("no such field")
        return super().describe(fetched)


class MislabellingSource(FakeSource):
    """A source that describes an entity in words that no event may hold."""

    def describe(self, fetched: Fetched) -> Entity:
        return Entity(fetched.symbol, "equ\x00ity" if fetched.symbol == "ODD" else "equity", None)


class LocalTimeSource(FakeSource):
    """A source that forgets the time zone."""

    def fetch(self, symbol: str, since: datetime | None, asked_at: datetime) -> Fetched:
        fetched = super().fetch(symbol, since, asked_at)
        if symbol != "ODD":
            return fetched
        naive = tuple(
            Observation(bar.event_type, bar.occurred_at.replace(tzinfo=None), bar.payload, bar.series)
            for bar in fetched.observations
        )
        return Fetched(fetched.symbol, fetched.raw, naive)


@pytest.mark.parametrize("kind", [MisdescribingSource, MislabellingSource, LocalTimeSource])
def test_an_unjudgeable_answer_fails_alone_and_is_kept(app: Connection[Any], kind: Callable[..., FakeSource]) -> None:
    result = run(app, kind({"ODD": seeds.bars(2), "AAPL": seeds.bars(3)}), "ODD", "AAPL")
    assert (result.ingested, result.failed_symbols) == (3, ["ODD"])
    ((entity_id, payload),) = events(app, "SOURCE_FETCH_FAILED")
    assert (entity_id, payload["kind"]) == ("ODD", "malformed")
    assert app.execute(
        "SELECT raw.payload_json ->> 'symbol' FROM events JOIN raw_payloads AS raw ON raw_payload_id = raw.id"
        " WHERE event_type = 'SOURCE_FETCH_FAILED'"
    ).fetchall() == [("ODD",)]


@pytest.mark.parametrize(
    ("changes", "field", "value"),
    [
        ({"price": float("nan")}, "payload.price", "nan"),
        ({"price": None}, "payload.price", "None"),
        ({"high": float("inf")}, "payload.high", "inf"),
        ({"volume": -1}, "payload.volume", "-1"),
        ({"currency": ""}, "payload.currency", "''"),
        ({"surprise": 1}, "payload.surprise", "1"),
        ({"currency": "U\x00D"}, "payload.currency", "'U\\x00D'"),
    ],
)
def test_a_bar_breaking_the_contract_is_reported_and_kept_raw(
    app: Connection[Any], changes: dict[str, Any], field: str, value: str
) -> None:
    source = FakeSource({"AAPL": [seeds.bar(0), seeds.bar(1, **changes), seeds.bar(2)]})
    result = run(app, source)
    assert (result.fetched, result.ingested, result.rejected, result.failed_symbols) == (3, 2, 1, [])
    ((entity_id, payload),) = events(app, "SIGNAL_REJECTED")
    assert (entity_id, payload["rejected_event_type"]) == ("AAPL", "MARKET_TICK_INGESTED")
    assert (payload["field"], payload["value"]) == (field, value)
    assert payload["reason"]
    kept = app.execute(
        "SELECT payload_json ->> 'symbol' FROM raw_payloads WHERE id = (SELECT raw_payload_id FROM events"
        " WHERE event_type = 'SIGNAL_REJECTED')"
    ).fetchone()
    assert kept == ("AAPL",)


def test_a_rejected_bar_that_comes_again_is_no_second_event(app: Connection[Any]) -> None:
    source = FakeSource({"AAPL": [seeds.bar(0), seeds.bar(1, price=float("nan"))]})
    first, second = run(app, source), run(app, source)
    assert (first.rejected, second.rejected) == (1, 1)
    assert len(events(app, "SIGNAL_REJECTED")) == 1
    assert seeds.counts(app) == (2, 2, 2)


def test_an_observation_of_an_unknown_type_is_rejected(app: Connection[Any]) -> None:
    assert run(app, FakeSource({"AAPL": [Observation("WEATHER_CHANGED", seeds.FIRST_BAR, {})]})).rejected == 1
    assert events(app, "SIGNAL_REJECTED")[0][1]["field"] == "event_type"


def test_a_gap_is_an_event(app: Connection[Any]) -> None:
    run(app, FakeSource({"AAPL": seeds.bars(1)}))
    until = seeds.bar(100).occurred_at
    source = FakeSource({"AAPL": seeds.bars(3, start=100)}, kept_from=until)
    result = run(app, source)
    assert (result.fetched, result.ingested, result.failed_symbols) == (3, 3, [])
    assert events(app, "SOURCE_GAP_DETECTED") == [
        ("AAPL", {"symbol": "AAPL", "since": "2026-01-05T14:17:00Z", "until": "2026-01-05T16:12:00Z"})
    ]


@pytest.mark.parametrize(
    "odd", [float("nan"), float("-inf"), "NUL \x00", "lone \ud800 surrogate", {"\x00": 1}, [2**70 + 1]], ids=repr
)
def test_a_raw_answer_unfit_for_jsonb_is_kept_as_text(app: Connection[Any], odd: Any) -> None:
    source = FakeSource({"AAPL": seeds.bars(1)})
    source.raws["AAPL"] = {"odd": odd}
    assert run(app, source).ingested == 1
    ((stored,),) = app.execute("SELECT payload_json FROM raw_payloads").fetchall()
    assert stored.keys() == {"status", "content_type", "body"}
    assert repr(json.loads(stored["body"])) == repr({"odd": odd})


def test_a_raw_answer_nested_without_end_harms_nobody(app: Connection[Any]) -> None:
    nested: Json = []
    for _ in range(5_000):
        nested = [nested]
    source = FakeSource({"ODD": seeds.bars(1), "AAPL": seeds.bars(2)})
    source.raws["ODD"] = nested
    result = run(app, source, "ODD", "AAPL")
    assert result.ingested >= 2
    assert app.execute("SELECT count(*) FROM raw_payloads").fetchone() == (2,)


@pytest.mark.parametrize("raw", ["x" * LARGEST_RAW_PAYLOAD, [1e300] * 60_000], ids=["text", "digits"])
def test_an_answer_too_large_to_keep_fails_its_symbol_alone(app: Connection[Any], raw: Json) -> None:
    class Large(FakeSource):
        def fetch(self, symbol: str, since: datetime | None, asked_at: datetime) -> Fetched:
            fetched = super().fetch(symbol, since, asked_at)
            return replace(fetched, raw=raw) if symbol == "IBM" else fetched

    result = run(app, Large({"AAPL": seeds.bars(3), "IBM": seeds.bars(3)}), "AAPL", "IBM")
    assert (result.ingested, result.failed_symbols) == (3, ["IBM"])
    ((entity_id, payload),) = events(app, "SOURCE_FETCH_FAILED")
    assert (entity_id, payload["kind"]) == ("IBM", "malformed")


# What did not change is not reported again

NOON = datetime(2026, 2, 10, 12, tzinfo=UTC)


def run_three_times(connection: Connection[Any], answer: Sequence[Observation]) -> list[int]:
    """Ingests one answer three times while the source forgets; returns how many events there are after each run."""
    numbers = []
    for minute in range(3):
        run(connection, FakeSource({"AAPL": answer}, kept_from=NOON + timedelta(minutes=minute)))
        numbers.append(seeds.counts(connection)[1])
    return numbers


def at_noon(observation: Observation) -> Observation:
    """Moves an observation to an hour after NOON, which the source has not forgotten."""
    return replace(observation, occurred_at=NOON + timedelta(hours=1))


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param([], id="no bar came"),
        pytest.param([at_noon(seeds.bar(price=None))], id="all bars were rejected"),
        pytest.param([at_noon(Observation("WEATHER_CHANGED", seeds.FIRST_BAR, {}))], id="nothing that we know came"),
    ],
)
def test_a_gap_without_an_accepted_bar_is_one_event(app: Connection[Any], answer: Sequence[Observation]) -> None:
    run(app, FakeSource({"AAPL": seeds.bars(1)}))
    run_three_times(app, answer)
    assert [payload["until"] for _, payload in events(app, "SOURCE_GAP_DETECTED")] == ["2026-02-10T00:00:00Z"]


def test_a_gap_before_the_newest_stored_bar_is_one_event(app: Connection[Any]) -> None:
    # The source forgets what lies within the overlap, and has nothing newer than what is stored.
    newest = replace(seeds.bar(), occurred_at=NOON + timedelta(minutes=5))
    run(app, FakeSource({"AAPL": [newest]}))
    first, second, third = run_three_times(app, [newest])
    assert (second, third) == (first, first)


def test_a_lasting_gap_is_reported_again_the_next_day(app: Connection[Any]) -> None:
    run(app, FakeSource({"AAPL": seeds.bars(1)}))
    for day in (0, 0, 1, 1):
        run(app, FakeSource({"AAPL": []}, kept_from=NOON + timedelta(days=day)))
    assert sorted(payload["until"] for _, payload in events(app, "SOURCE_GAP_DETECTED")) == [
        "2026-02-10T00:00:00Z",
        "2026-02-11T00:00:00Z",
    ]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        pytest.param([seeds.bar(price=1.0), seeds.bar(price=2.0)], 1, id="two values for one instant"),
        pytest.param([seeds.bar(price=None), seeds.bar(high=None)], 1, id="two refused values for one instant"),
        pytest.param([seeds.bar(price=None), seeds.bar(price=2.0)], 2, id="a refused and a good one"),
        pytest.param(
            [seeds.bar(price=None), replace(seeds.bar(high=None), series="1d")], 2, id="refused ones of two series"
        ),
        pytest.param(
            [seeds.bar(price=None), Observation("WEATHER_CHANGED", seeds.FIRST_BAR, {}, "1m")],
            2,
            id="refused ones of two types",
        ),
    ],
)
def test_a_contradictory_answer_is_stored_once(app: Connection[Any], answer: Sequence[Observation], said: int) -> None:
    for _ in range(3):
        assert run(app, FakeSource({"AAPL": answer})).fetched == len(answer)
        assert seeds.counts(app)[1] == said


def test_of_two_values_for_one_instant_the_last_stands(app: Connection[Any]) -> None:
    result = run(app, FakeSource({"AAPL": [seeds.bar(price=1.0), seeds.bar(price=2.0)]}))
    assert (result.fetched, result.ingested, result.duplicates) == (2, 1, 1)
    assert [payload["price"] for _, payload in events(app, "MARKET_TICK_INGESTED")] == [2.0]


SAID = st.lists(
    st.builds(
        lambda minute, changes, series: replace(seeds.bar(minute, **changes), series=series),
        st.integers(0, 2),
        st.sampled_from([{}, {"price": 1.0}, {"price": None}, {"high": float("nan")}, {"surprise": 1}]),
        st.sampled_from(["1m", "1d"]),
    ),
    max_size=6,
)


@given(answer=SAID)
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_same_answer_again_is_never_another_event(app: Connection[Any], answer: list[Observation]) -> None:
    with app.transaction(force_rollback=True):
        run(app, FakeSource({"AAPL": [*seeds.bars(1), *answer]}))
        first, second, third = run_three_times(app, answer)
        assert (second, third) == (first, first)
