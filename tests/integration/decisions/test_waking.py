"""Whatever dies or is lost, and whenever: a decision is looked at again, and one that cannot go on is closed."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any

import pytest
from tests.integration.decisions import toy
from tests.integration.decisions.world import World, anomaly, last_body

from control_plane.decisions import moves, next_move, timers
from control_plane.decisions.audit import audit
from control_plane.decisions.record import load
from control_plane.decisions.replay import replay
from control_plane.decisions.steps import EnginePolicy
from control_plane.model.deciding import Command, JsonObject, Record
from control_plane.model.decision_events import AGENT_WORK, CLIENT_ACTIONS, GATEKEEPER_WORK
from control_plane.model.errors import PlaybookFault
from control_plane.platform.database import connect
from control_plane.platform.telemetry import Telemetry

type MakeWorld = Callable[..., World]


def test_a_message_while_the_holder_leaves_is_not_lost(world: World) -> None:
    world.deaf = {GATEKEEPER_WORK}
    world.detect(anomaly())
    world.run()
    decision_id = world.record().decision.decision_id
    claim = "SELECT fence FROM claim_decision(%s, 'holder', 60)"
    row = world.decide.execute(claim, [decision_id]).fetchone()
    ((wake_seq,),) = world.rows("SELECT wake_seq FROM decisions")
    assert row is not None
    with (
        connect(world.database.url("acp_decide"), application_name="other") as other,
        ThreadPoolExecutor(1) as executor,
    ):
        with world.decide.transaction():
            left = world.decide.execute("SELECT leave_decision(%s, %s, %s)", [decision_id, row[0], wake_seq]).fetchone()
            assert left == ("left",)
            # It sees the lease as held until this commits, and waits for the row in the end.
            claimed = executor.submit(lambda: other.execute(claim, [decision_id]).fetchone())
            while world.rows("SELECT cardinality(pg_blocking_pids(%s))", other.info.backend_pid) != [(1,)]:
                assert not claimed.done()
        assert claimed.result() == (row[0] + 1,), "nobody looks at what the message was about"


# What cannot go on is closed


def still_identical(world: World) -> bool:
    """Whether the only decision is decided the same way from its record."""
    loaded = load(world.decide, world.record().decision.decision_id)
    assert loaded is not None
    return replay(loaded, world.deciding["toy"]).difference is None


def advance(world: World) -> bool:
    return world.engine.advance(world.decide, world.record().decision.decision_id)


def pass_time(world: World) -> None:
    """Whatever the only decision waits for is over since long ago."""
    world.owner.execute("UPDATE decisions SET deadline = clock_timestamp() - interval '1 day'")


def test_a_decision_whose_playbook_is_gone_ends_at_its_deadline(world: World) -> None:
    world.deaf = {AGENT_WORK}
    world.detect(anomaly())
    world.run()
    kept, world.deciding = world.deciding, toy.deciding(toy.Nudging(version="2"))
    world.engine = world.another_engine()
    with pytest.raises(PlaybookFault):
        advance(world)
    world.pass_deadline()
    advance(world)
    closed = last_body(world.record(), "closed")
    assert closed["state"] == "abandoned"
    assert "nudging 1, which is gone" in closed["reason"]
    assert world.wake() == 0
    world.deciding = kept
    assert still_identical(world)


def test_a_playbook_in_circles_ends_at_its_deadline(make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(next_move, "MOST_STEPS", 10)
    world = make_world(verdict="refused")
    world.detect(anomaly())
    with pytest.raises(PlaybookFault, match="circles"):
        world.run()
    world.pass_deadline()
    advance(world)
    assert last_body(world.record(), "closed") == {"state": "abandoned", "reason": "deadline"}


class FailsAfter(toy.Nudging):
    """Fails once its decision is in a state."""

    fails_in = ""

    def next(self, record: Record) -> Command:
        if record.decision.state == self.fails_in:
            raise ZeroDivisionError
        return super().next(record)

    def observe(self, connection: Any, record: Record, bars: int, now: datetime) -> JsonObject | None:
        if self.fails_in == "observing":
            raise ZeroDivisionError
        return super().observe(connection, record, bars, now)


@pytest.mark.parametrize("state", ["refused", "executed", "observing"])
def test_a_playbook_that_fails_for_good_is_given_up(
    make_world: MakeWorld, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    playbook = FailsAfter(ceiling=timedelta(0))
    playbook.fails_in = state
    verdict = "refused" if state == "refused" else "permitted"
    world = make_world(deciding=toy.deciding(playbook), verdict=verdict)
    world.detect(anomaly())
    for _ in range(20):
        with suppress(ZeroDivisionError):
            world.run(times=1)
    assert world.record().decision.state == state
    with pytest.raises(ZeroDivisionError):
        advance(world)
    pass_time(world)
    monkeypatch.setattr(moves, "GIVEN_UP_AFTER", timedelta(0))
    advance(world)
    assert last_body(world.record(), "closed") == {"state": "scored", "reason": "given up: ZeroDivisionError"}
    assert still_identical(world)
    assert world.wake() == 0


def test_an_agents_second_forecast_of_an_event_is_not_scored(make_world: MakeWorld) -> None:
    class Doubling(toy.Nudging):
        def observe(self, connection: Any, record: Record, bars: int, now: datetime) -> JsonObject | None:
            observed = super().observe(connection, record, bars, now)
            assert observed is not None
            (forecast,) = observed["forecasts"]
            return {**observed, "forecasts": [forecast, {**forecast, "probability": 0.1}]}

    world = make_world(deciding=toy.deciding(Doubling()))
    world.detect(anomaly())
    world.run()
    assert world.record().decision.state == "scored"
    assert world.rows("SELECT agent, brier FROM agent_scores") == [("namer", 0.09)]
    assert audit(world.owner).findings == []


# Anchors


class Growing(Telemetry):
    """Every chain that is anchored has grown again before the next anchor."""

    def __init__(self, world: World) -> None:
        super().__init__("growing")
        self.world, self.anchors = world, 0
        self.logger = self  # type: ignore[assignment]

    def info(self, message: str, **fields: Any) -> None:
        assert message == "anchored"
        self.anchors += 1
        assert self.anchors <= 10, "it does not end"
        for line in fields["heads"]:
            self.world.owner.execute("SELECT append_step(%s, 'joined', 'engine', 0, '{}')", [line.split()[0]])

    def warning(self, message: str, **fields: Any) -> None:
        assert message == "anchoring goes on in the next run"


@pytest.fixture
def opened(world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    """Three decisions, and anchors of one head each."""
    monkeypatch.setattr(timers, "MOST_HEADS", 1)
    world.deaf = {AGENT_WORK}
    world.detect(anomaly(entity="A"), anomaly(entity="B"), anomaly(entity="C"))
    world.run()
    return world


def test_anchoring_ends_though_chains_grow(opened: World) -> None:
    assert timers.anchor(opened.decide, Growing(opened)) == 3
    assert timers.anchor(opened.decide, Growing(opened)) == 3


def test_anchoring_stops_before_its_time_is_over(opened: World) -> None:
    left = iter([60.0, 14.0])
    assert timers.anchor(opened.decide, Growing(opened), remaining_seconds=lambda: next(left)) == 2


# What stands still is looked at


def lose_answers(world: World) -> None:
    """The agents answer, and then DecisionFunction dies before it claims the decision."""
    for (call_id,) in world.rows("SELECT call_id FROM agent_calls WHERE outcome IS NULL"):
        world.answer(call_id)
    world.new_messages()


def test_an_answer_that_nobody_took_up_is_found(world: World) -> None:
    world.deaf = {AGENT_WORK}
    world.detect(anomaly())
    world.run()
    assert world.wake(idle_seconds=0) == 0  # an agent is at work
    lose_answers(world)
    assert world.wake() == 0  # not yet
    assert world.wake(idle_seconds=0) == 1
    world.deaf = set()
    world.run()
    assert world.record().decision.state == "scored"


@pytest.mark.parametrize("nth", [0, 1])
def test_a_verdict_that_did_not_come_is_asked_for_again(make_world: MakeWorld, nth: int) -> None:
    world = make_world(policy=EnginePolicy(ask_again_seconds=0), verdict="needs_approval" if nth else "permitted")
    if nth:
        world.detect(anomaly())
        world.run()
        world.approve(world.record().decision.decision_id)
    world.deaf = {GATEKEEPER_WORK}
    if not nth:
        world.detect(anomaly())
    world.run(times=1)
    assert world.record().decision.state == ("approved" if nth else "proposed")
    before = world.events().count("VERDICT_REQUESTED")
    assert world.wake(idle_seconds=0) == 1
    world.deaf = set()
    world.run()
    assert world.events().count("VERDICT_REQUESTED") > before
    assert len(world.record().all("verdict")) == 1 + nth
    assert world.rows("SELECT count(*) FROM actions") == [(1,)]
    assert world.record().decision.state == "scored"


def test_a_verdict_is_not_asked_for_twice_at_once(world: World) -> None:
    world.deaf = {GATEKEEPER_WORK}
    world.detect(anomaly())
    world.run(times=3)
    assert not advance(world)
    assert world.events().count("VERDICT_REQUESTED") == 1


def test_an_approval_that_nobody_took_up_is_found(make_world: MakeWorld) -> None:
    world = make_world(verdict="needs_approval")
    world.detect(anomaly())
    world.run()
    assert world.record().decision.state == "awaiting_approval"
    assert world.wake(idle_seconds=0) == 0  # a person is asked, until the request expires
    world.approve(world.record().decision.decision_id)
    world.new_messages()
    assert world.wake(idle_seconds=0) == 1
    world.run()
    assert world.record().decision.state == "scored"


def test_a_released_action_is_its_clients_to_take_up(world: World) -> None:
    world.deaf = {CLIENT_ACTIONS}
    world.detect(anomaly())
    world.run()
    assert world.record().decision.state == "released"
    assert world.wake(idle_seconds=0) == 0
    world.pass_deadline()
    assert world.wake(idle_seconds=0) == 1  # its deadline's own timer
    assert world.wake(idle_seconds=0) == 0


def test_what_does_not_move_is_looked_at_less_and_less(world: World) -> None:
    world.deaf = {AGENT_WORK}
    world.detect(anomaly())
    world.run()
    lose_answers(world)
    pass_time(world)
    for pauses in range(1, 10):
        assert world.wake() == 1
        assert world.wake() == 0
        ((held_back, longest),) = world.rows(
            "SELECT count(*), extract(epoch FROM max(due_at) - clock_timestamp())::float "
            "FROM timers WHERE kind = 'retry'"
        )
        assert held_back == pauses
        assert 0.9 * 30 * 2 ** min(pauses - 1, 7) < longest <= 30 * 2 ** min(pauses - 1, 7)
        world.owner.execute(
            "UPDATE timers SET due_at = clock_timestamp() - make_interval(secs => %s) WHERE fired_at IS NULL "
            "AND kind = 'retry'",
            [pauses],
        )
