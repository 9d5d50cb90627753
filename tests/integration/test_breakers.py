"""Circuit breakers over a real Postgres: every transition, and who may probe when several ask."""

import re
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from psycopg import Connection, Cursor
from tests.conftest import TestDatabase

from control_plane.platform.breakers import Breaker, BreakerPolicy, Breakers, hold, read_breakers, resume
from control_plane.platform.database import connect

COOL_DOWN = 1000.0
"""Seconds; much longer than a test takes. Only ``pass_time`` makes it pass."""
POLICY = BreakerPolicy(failure_threshold=3, cool_down_seconds=COOL_DOWN)


@pytest.fixture
def breakers(app: Connection[Any]) -> Breakers:
    return Breakers(lambda: app, POLICY)


@pytest.fixture
def others(database: TestDatabase) -> Iterator[Breakers]:
    """The breakers of another function, on a connection of its own."""
    with connect(database.app_url, application_name="test") as connection:
        yield Breakers(lambda: connection, POLICY)


def pass_time(connection: Connection[Any], seconds: float) -> None:
    """Moves every stored instant into the past, as if the time had passed."""
    connection.execute(
        "UPDATE circuit_breakers SET opened_at = opened_at - passed, retry_at = retry_at - passed"
        " FROM make_interval(secs => %s) AS passed",
        [seconds],
    )


def open_breaker(breakers: Breakers, name: str = "q") -> None:
    for _ in range(POLICY.failure_threshold):
        breakers.failed(name, "timed out")


def look(breakers: Breakers, name: str = "q") -> Breaker:
    return breakers.read([name])[name]


def test_a_breaker_without_a_row_is_closed(breakers: Breakers) -> None:
    assert breakers.read([]) == {}
    assert breakers.read(["q", "yfinance"]) == {"q": Breaker("q"), "yfinance": Breaker("yfinance")}
    assert look(breakers).is_closed
    assert not look(breakers).probe_is_due
    assert not breakers.try_probe("q")


def test_a_breaker_opens_at_the_threshold_with_its_reason(breakers: Breakers) -> None:
    states = [breakers.failed("q", f"timed out\n{number}") for number in (1, 2, 3)]
    assert [state.state for state in states] == ["closed", "closed", "open"]
    assert [state.consecutive_failures for state in states] == [1, 2, 3]
    assert [state.last_error for state in states] == ["timed out 1", "timed out 2", "timed out 3"]
    assert [state.opened_at is None for state in states] == [True, True, False]
    assert [state.retry_in_seconds for state in states] == [None, None, COOL_DOWN]
    seen = look(breakers)
    assert seen.opened_at is not None
    assert abs((datetime.now(UTC) - seen.opened_at).total_seconds()) < 60
    assert not seen.probe_is_due


def test_a_threshold_of_one_opens_at_the_first_failure(app: Connection[Any]) -> None:
    opened = Breakers(lambda: app, BreakerPolicy(1, COOL_DOWN)).failed("q", "denied")
    assert opened == replace(opened, state="open", retry_in_seconds=COOL_DOWN)
    assert opened.opened_at is not None


def test_a_success_in_between_starts_the_count_again(breakers: Breakers) -> None:
    for _ in range(4):
        breakers.failed("q", "timed out")
        breakers.failed("q", "timed out")
        breakers.succeeded("q")
    assert look(breakers) == Breaker("q")


def test_breakers_do_not_touch_each_other(breakers: Breakers) -> None:
    open_breaker(breakers, "q")
    breakers.failed("p", "timed out")
    breakers.succeeded("r")
    seen = breakers.read(["r", "q", "p"])
    assert [(name, seen[name].state, seen[name].consecutive_failures) for name in seen] == [
        ("r", "closed", 0),
        ("q", "open", 3),
        ("p", "closed", 1),
    ]


def test_a_success_while_all_is_well_costs_no_round_trip(app: Connection[Any], breakers: Breakers) -> None:
    class CountingCursor(Cursor[Any]):
        executed = 0

        def execute(self, *args: Any, **kwargs: Any) -> Any:
            CountingCursor.executed += 1
            return super().execute(*args, **kwargs)

    app.cursor_factory = CountingCursor
    breakers.read(["q", "p"])
    CountingCursor.executed = 0
    for _ in range(10):
        breakers.succeeded("q")
        breakers.succeeded("p")
    assert CountingCursor.executed == 0
    breakers.failed("q", "timed out")
    breakers.succeeded("q")
    breakers.succeeded("q")
    assert CountingCursor.executed == 3
    assert look(breakers) == Breaker("q")


def test_another_functions_failures_are_forgotten_once_they_are_seen(breakers: Breakers, others: Breakers) -> None:
    look(breakers)
    others.failed("q", "timed out")
    assert look(breakers).consecutive_failures == 1
    breakers.succeeded("q")
    assert look(others).consecutive_failures == 0


def test_all_functions_share_a_breaker(breakers: Breakers, others: Breakers, app: Connection[Any]) -> None:
    breakers.failed("q", "timed out")
    others.failed("q", "timed out")
    assert breakers.failed("q", "timed out").state == "open"
    assert look(others).state == "open"
    pass_time(app, COOL_DOWN)
    assert look(others).probe_is_due
    assert others.try_probe("q")
    assert not breakers.try_probe("q")
    others.succeeded("q")
    assert look(breakers) == Breaker("q")


def test_nobody_probes_before_the_cool_down_is_over(breakers: Breakers, app: Connection[Any]) -> None:
    open_breaker(breakers)
    pass_time(app, COOL_DOWN - 60)
    assert not look(breakers).probe_is_due
    assert not breakers.try_probe("q")
    assert look(breakers).state == "open"


def test_a_successful_probe_closes_the_breaker(breakers: Breakers, app: Connection[Any]) -> None:
    open_breaker(breakers)
    pass_time(app, COOL_DOWN)
    assert breakers.try_probe("q")
    assert look(breakers).state == "half_open"
    breakers.succeeded("q")
    assert look(breakers) == Breaker("q")


def test_a_failed_probe_starts_another_cool_down(breakers: Breakers, app: Connection[Any]) -> None:
    open_breaker(breakers)
    since = look(breakers).opened_at
    assert since is not None
    for failures in (4, 5, 6):
        pass_time(app, COOL_DOWN)
        assert breakers.try_probe("q")
        again = breakers.failed("q", "still down")
        assert again == replace(again, state="open", consecutive_failures=failures, last_error="still down")
        assert again.retry_in_seconds == COOL_DOWN
    assert again.opened_at is not None
    assert (since - again.opened_at).total_seconds() == 3 * COOL_DOWN  # since the outage began, not the last probe


def test_late_failure_of_an_earlier_send_does_not_delay_probe(
    breakers: Breakers, others: Breakers, app: Connection[Any]
) -> None:
    open_breaker(breakers)
    pass_time(app, 400)
    late = others.failed("q", "timed out as well")
    assert late == replace(late, state="open", consecutive_failures=4, last_error="timed out as well")
    assert late.retry_in_seconds == pytest.approx(600, abs=60)


def test_exactly_one_of_eight_concurrent_callers_may_probe(database: TestDatabase, app: Connection[Any]) -> None:
    rounds = 20
    with ExitStack() as stack, ThreadPoolExecutor(8) as pool:
        connections = [
            stack.enter_context(connect(database.app_url, application_name="test")) for _ in range(pool._max_workers)
        ]
        start = Barrier(len(connections))

        def ask(connection: Connection[Any]) -> bool:
            breakers = Breakers(lambda: connection, POLICY)
            start.wait(60)
            return breakers.try_probe("q")

        open_breaker(Breakers(lambda: app, POLICY))
        for _ in range(rounds):
            pass_time(app, COOL_DOWN)
            assert sum(pool.map(ask, connections)) == 1


def test_dead_prober_is_replaced_after_a_cool_down(breakers: Breakers, others: Breakers, app: Connection[Any]) -> None:
    open_breaker(breakers)
    pass_time(app, COOL_DOWN)
    assert breakers.try_probe("q")
    pass_time(app, COOL_DOWN - 60)
    assert not others.try_probe("q")
    assert look(others).state == "half_open"
    pass_time(app, 60)
    assert others.try_probe("q")


def test_a_hold_stays_whatever_happens(breakers: Breakers, others: Breakers, app: Connection[Any]) -> None:
    hold(app, "q", by="Ada")
    held = look(others)
    assert held == replace(held, state="open", held_by="Ada", retry_in_seconds=None)
    assert held.opened_at is not None
    pass_time(app, 10 * COOL_DOWN)
    assert not held.probe_is_due
    assert not breakers.try_probe("q")
    breakers.succeeded("q")
    failed = breakers.failed("q", "timed out")
    assert (failed.state, failed.held_by, failed.retry_in_seconds) == ("open", "Ada", None)
    assert hold(app, "q", by="Grace", force=True) is None
    assert look(others).held_by == "Grace"
    assert not breakers.try_probe("q")


def test_a_hold_is_not_replaced_by_another_persons(others: Breakers, app: Connection[Any]) -> None:
    assert hold(app, "q", by="Ada") is None
    assert hold(app, "q", by="Ada") is None
    assert hold(app, "q", by="Grace") == "Ada"
    assert look(others).held_by == "Ada"


def test_a_hold_keeps_its_reason_until_it_ends(others: Breakers, app: Connection[Any]) -> None:
    hold(app, "q", by="Ada", reason=" the queue moves ")
    assert look(others).held_reason == "the queue moves"
    hold(app, "q", by="Ada", reason="it still moves")
    assert look(others).held_reason == "it still moves"
    hold(app, "q", by="Grace", force=True)
    assert look(others).held_reason is None, "her reason is not Ada's"
    hold(app, "q", by="Grace", reason="hers")
    resume(app, "q")
    assert (look(others).held_by, look(others).held_reason) == (None, None)


def test_a_probe_that_was_under_way_does_not_lift_a_hold(breakers: Breakers, app: Connection[Any]) -> None:
    open_breaker(breakers)
    pass_time(app, COOL_DOWN)
    since = look(breakers).opened_at
    assert breakers.try_probe("q")
    hold(app, "q", by="Ada")
    breakers.succeeded("q")
    held = look(breakers)
    assert held == replace(held, state="open", held_by="Ada", opened_at=since)


def test_a_holders_name_alone_keeps_a_breaker_open(breakers: Breakers, app: Connection[Any]) -> None:
    open_breaker(breakers)
    pass_time(app, COOL_DOWN)
    app.execute("UPDATE circuit_breakers SET held_by = 'Ada'")  # A person opened it by SQL, and forgot retry_at.
    assert not look(breakers).probe_is_due
    assert not breakers.try_probe("q")


def test_a_resumed_breaker_is_probed_at_once(breakers: Breakers, others: Breakers, app: Connection[Any]) -> None:
    hold(app, "q", by="Ada")
    assert look(breakers).held_by == "Ada"
    assert resume(app, "q")
    seen = look(breakers)
    assert (seen.state, seen.held_by, seen.probe_is_due) == ("half_open", None, True)
    assert breakers.try_probe("q")
    assert not others.try_probe("q")
    breakers.succeeded("q")
    assert look(others) == Breaker("q")


def test_resume_ends_cool_down_without_a_second_prober(breakers: Breakers, app: Connection[Any]) -> None:
    assert not resume(app, "q")
    open_breaker(breakers)
    assert resume(app, "q")
    assert breakers.try_probe("q")
    assert not resume(app, "q")
    assert not breakers.try_probe("q")
    breakers.succeeded("q")
    assert not resume(app, "q")


def test_every_stored_breaker_is_listed(breakers: Breakers, app: Connection[Any]) -> None:
    breakers.failed("q", "timed out")
    hold(app, "p", by="Ada")
    assert [breaker.name for breaker in read_breakers(app)] == ["p", "q"]


def test_the_statements_of_the_handbook_hold_and_resume(breakers: Breakers, app: Connection[Any]) -> None:
    page = (Path(__file__).parents[2] / "docs" / "operations.md").read_text(encoding="utf-8")
    block = re.search(r"^```sql\n(INSERT INTO circuit_breakers .*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert block is not None
    holding, resuming, _ = block[1].split(";")
    open_breaker(breakers, "signal_lab")
    app.execute(holding.encode())
    held = look(breakers, "signal_lab")
    assert held == replace(held, state="open", held_by="me", retry_in_seconds=None)
    app.execute(resuming.encode())
    assert look(breakers, "signal_lab").probe_is_due
    assert breakers.try_probe("signal_lab")


def test_changes_belong_to_the_callers_transaction(breakers: Breakers, others: Breakers, app: Connection[Any]) -> None:
    class Regret(Exception):
        pass

    def regret() -> None:
        with app.transaction():
            open_breaker(breakers)
            hold(app, "p", by="Ada")
            raise Regret

    with pytest.raises(Regret):
        regret()
    assert others.read(["q", "p"]) == {"q": Breaker("q"), "p": Breaker("p")}


def test_an_error_in_any_characters_is_kept_readable(breakers: Breakers) -> None:
    assert (
        breakers.failed("q", "NUL \x00, lone \ud800" + "!" * 5000).last_error == ("NUL  , lone  " + "!" * 5000)[:1024]
    )


@pytest.mark.parametrize("hours", [-24, 24])
def test_the_machines_clock_does_not_matter(
    breakers: Breakers, app: Connection[Any], monkeypatch: pytest.MonkeyPatch, hours: int
) -> None:
    for clock in ("time", "monotonic"):
        right: Callable[[], float] = getattr(time, clock)
        monkeypatch.setattr(time, clock, lambda right=right: right() + 3600 * hours)
    open_breaker(breakers)
    assert look(breakers).retry_in_seconds == pytest.approx(COOL_DOWN, abs=60)
    assert not breakers.try_probe("q")
    pass_time(app, COOL_DOWN)
    assert breakers.try_probe("q")
    breakers.succeeded("q")
    assert look(breakers) == Breaker("q")


class Model(RuleBasedStateMachine):
    """Compares one breaker, used by functions and a person, with a few lines of bookkeeping."""

    def __init__(self, name: str, connection: Connection[Any], functions: Sequence[Breakers]) -> None:
        super().__init__()
        self.name = name
        self.connection = connection
        self.functions = functions
        self.state, self.failures = "closed", 0
        self.held_by: str | None = None
        self.clock = self.retry_at = 0.0

    @property
    def probe_is_due(self) -> bool:
        return self.state != "closed" and self.held_by is None and self.clock >= self.retry_at

    @rule(who=st.integers(0, 1))
    def fail(self, who: int) -> None:
        self.failures += 1
        if self.state == "half_open" or (self.state == "closed" and self.failures >= POLICY.failure_threshold):
            self.state, self.retry_at = "open", self.clock + COOL_DOWN
        assert self.functions[who].failed(self.name, "timed out").state == self.state

    @rule(who=st.integers(0, 1))
    def succeed(self, who: int) -> None:
        if self.held_by is None:
            self.state, self.failures = "closed", 0
        self.functions[who].succeeded(self.name)

    @rule(who=st.integers(0, 1))
    def probe(self, who: int) -> None:
        may = self.probe_is_due
        if may:
            self.state, self.retry_at = "half_open", self.clock + COOL_DOWN
        assert self.functions[who].try_probe(self.name) == may

    @rule(by=st.sampled_from(["Ada", "Grace"]))
    def hold(self, by: str) -> None:
        if self.held_by is None:
            self.state, self.held_by = "open", by
        assert hold(self.connection, self.name, by=by) == (None if self.held_by == by else self.held_by)

    @rule()
    def resume(self) -> None:
        may = self.state == "open"
        if may:
            self.state, self.held_by, self.retry_at = "half_open", None, self.clock
        assert resume(self.connection, self.name) == may

    @rule()
    def wait(self) -> None:
        self.clock += 600
        pass_time(self.connection, 600)

    @invariant()
    def everyone_sees_the_same(self) -> None:
        for breakers in self.functions:
            seen = look(breakers, self.name)
            assert seen == replace(seen, state=self.state, consecutive_failures=self.failures, held_by=self.held_by)
            assert (seen.opened_at is None) == (self.state == "closed")
            assert seen.probe_is_due == self.probe_is_due


def test_any_sequence_of_calls_matches_the_model(app: Connection[Any], breakers: Breakers, others: Breakers) -> None:
    numbers = count()
    run_state_machine_as_test(
        lambda: Model(f"breaker-{next(numbers)}", app, [breakers, others]),  # type: ignore[arg-type]  # any factory does
        settings=hypothesis_settings(max_examples=60, stateful_step_count=20, deadline=None),
    )
