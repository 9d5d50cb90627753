"""The engine from an anomaly to the end, with everything around it, messages doubled and shuffled."""

import json
import random
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from tests.integration.decisions import toy
from tests.integration.decisions.world import World, anomaly, kinds, last_body

from acp_cli.decision_tree import is_other_policy
from control_plane.decisions.audit import audit
from control_plane.decisions.engine import Engine
from control_plane.decisions.reading import read_tree
from control_plane.decisions.record import Loaded
from control_plane.decisions.steps import EnginePolicy, Hold
from control_plane.model.contract import Event
from control_plane.model.decision_events import AGENT_WORK, DECISION_WORK, GATEKEEPER_WORK
from control_plane.model.errors import PlaybookFault

pytestmark = pytest.mark.usefixtures("replays_are_identical")

type MakeWorld = Callable[..., World]


def path(world: World) -> list[str]:
    """The states that the engine moved the decision through after its proposal."""
    return [step.body["state"] for step in world.record().steps if step.kind in ("state", "closed")]


# To the end


@pytest.mark.parametrize("seed", range(3))
def test_a_permitted_decision_is_executed_and_scored(make_world: MakeWorld, seed: int) -> None:
    world = make_world(luck=random.Random(seed))
    world.detect(anomaly())
    world.run()
    assert world.record().decision.state == "scored"
    assert path(world) == ["released", "executed", "scored"]
    assert world.rows("SELECT outcome FROM executions") == [("executed",)]
    assert world.rows("SELECT agent, brier FROM agent_scores") == [("namer", 0.09)]
    assert len(world.calls) == 3
    assert kinds(world.record())[:4] == ["opened", "anomaly", "evidence", "calls"]
    assert last_body(world.record(), "closed") == {"state": "scored", "reason": "the horizon is over"}


def test_every_fact_is_an_event_once(world: World) -> None:
    world.detect(anomaly())
    world.run(times=3)
    events = world.events()
    assert sorted(event for event in events if events.count(event) > 1) == [
        *["AGENT_ANSWERED"] * 3, *["AGENT_CALL_REQUESTED"] * 3,
    ]  # fmt: skip
    assert {
        "DECISION_OPENED", "IMPACT_SIMULATED", "HYPOTHESIS_PROPOSED", "DECISION_PROPOSED", "VERDICT_REQUESTED",
        "ACTION_RELEASED", "ACTION_EXECUTED", "OUTCOME_OBSERVED",
    } <= set(events)  # fmt: skip


def test_what_decides_is_pinned_once_by_its_hash(world: World) -> None:
    world.detect(anomaly(entity="A"), anomaly(entity="B"))
    world.run()
    one, two = world.records()
    assert one.decision.pins_sha256 == two.decision.pins_sha256
    assert world.rows("SELECT count(*) FROM artifacts WHERE kind IN ('pins', 'source')") == [(3,)]
    assert b'"prompt":' in one.artifacts[one.decision.pins_sha256]


def test_policies_are_pinned_as_they_were_at_the_opening(world: World) -> None:
    world.detect(anomaly())
    world.run()
    decision, artifacts = world.record().decision, world.record().artifacts
    names = json.loads(artifacts[decision.pins_sha256])["policy"]
    stored = world.rows(
        "SELECT kind, bytes FROM artifacts WHERE sha256 = ANY(%s)", list(map(bytes.fromhex, names.values()))
    )
    assert sorted(stored) == [("policy", toy.ToyGate.policies.encode()), ("policy_schema", toy.ToyGate.schema.encode())]
    assert audit(world.owner).findings == []


def test_policies_that_cannot_be_read_do_not_keep_a_decision_from_its_record(make_world: MakeWorld) -> None:
    class Unreadable(toy.ToyGate):
        @property
        def policies(self) -> str:  # type: ignore[override]
            raise FileNotFoundError

    plug_ins = {"toy": replace(toy.deciding()["toy"], gate=Unreadable())}
    world = make_world(deciding=plug_ins, verdict="refused")
    world.detect(anomaly())
    world.run()
    assert path(world) == ["refused", "scored"]
    decision, artifacts = world.record().decision, world.record().artifacts
    assert json.loads(artifacts[decision.pins_sha256])["policy"] == {}


def test_a_refused_decision_is_observed_and_scored(make_world: MakeWorld) -> None:
    world = make_world(verdict="refused")
    world.detect(anomaly())
    world.run()
    assert path(world) == ["refused", "scored"]
    assert world.rows("SELECT count(*) FROM actions") == [(0,)]


def test_a_decision_in_shadow_is_judged_and_never_released(make_world: MakeWorld) -> None:
    world = make_world(policy=EnginePolicy(shadow_playbooks=frozenset({"nudging"})))
    world.detect(anomaly())
    world.run()
    assert path(world) == ["scored"]
    assert last_body(world.record(), "verdict")["verdict"] == "permitted"
    assert world.rows("SELECT count(*) FROM actions") == [(0,)]


def test_an_approved_decision_is_judged_again_and_released(make_world: MakeWorld) -> None:
    world = make_world(verdict="needs_approval")
    world.detect(anomaly())
    world.run()
    assert world.record().decision.state == "awaiting_approval"
    assert world.approve(world.record().decision.decision_id) == "given"
    assert world.approve(world.record().decision.decision_id) == "answered"
    world.run()
    assert path(world) == ["awaiting_approval", "approved", "released", "executed", "scored"]
    assert [step.body["verdict"] for step in world.record().all("verdict")] == ["needs_approval", "permitted"]


def test_a_denied_decision_releases_nothing(make_world: MakeWorld) -> None:
    world = make_world(verdict="needs_approval")
    world.detect(anomaly())
    world.run()
    world.approve(world.record().decision.decision_id, gives=False)
    world.run()
    assert path(world) == ["awaiting_approval", "denied", "scored"]


def test_silence_is_a_no(make_world: MakeWorld) -> None:
    world = make_world(verdict="needs_approval", approval_seconds=0.3)
    world.detect(anomaly())
    world.run()
    world.run_until("scored")
    assert path(world) == ["awaiting_approval", "expired", "scored"]
    assert world.events().count("APPROVAL_EXPIRED") == 1


@pytest.mark.parametrize("answer", [None, False])
def test_a_no_is_scored_even_past_the_deadline(make_world: MakeWorld, answer: bool | None) -> None:
    world = make_world(verdict="needs_approval", approval_seconds=0 if answer is None else 300)

    def pass_deadline(topic: str, event: Event) -> None:
        if event.event_type == "APPROVAL_REQUESTED" and topic == DECISION_WORK:
            if answer is not None:
                world.approve(world.record().decision.decision_id, gives=answer)
            world.pass_deadline()

    world.detect(anomaly())
    world.run(before=pass_deadline)
    how = "expired" if answer is None else "denied"
    assert path(world) == ["awaiting_approval", how, "scored"]
    assert f"APPROVAL_{how.upper()}" in world.events()
    assert world.rows("SELECT count(*) FROM agent_scores") == [(1,)]


def test_an_approval_past_the_deadline_is_abandoned(make_world: MakeWorld) -> None:
    world = make_world(verdict="needs_approval")
    world.detect(anomaly())
    world.run()
    world.approve(world.record().decision.decision_id)
    world.pass_deadline()
    world.run()
    assert path(world) == ["awaiting_approval", "abandoned"]


def test_a_horizon_that_is_not_over_is_looked_at_again(make_world: MakeWorld) -> None:
    playbook = toy.Nudging(observed=None)
    world = make_world(deciding=toy.deciding(playbook), policy=EnginePolicy(observe_seconds=0.2))
    world.detect(anomaly())
    world.run()
    assert world.record().decision.state == "observing"
    assert world.rows("SELECT count(*) FROM timers WHERE kind = 'observe'") == [(1,)]
    playbook.observed = {"state": "observed", "moved_ppm": 1}
    world.run_until("scored")


def test_a_horizon_beyond_its_ceiling_is_unobservable(make_world: MakeWorld) -> None:
    playbook = toy.Nudging(observed=None, ceiling=timedelta(seconds=0))
    world = make_world(deciding=toy.deciding(playbook))
    world.detect(anomaly())
    world.run()
    assert world.record().decision.state == "scored"
    assert world.rows("SELECT state FROM outcomes") == [("unobservable",)]


# Which anomalies


def test_an_anomaly_that_is_too_old_is_recorded(world: World) -> None:
    world.detect(anomaly(age=timedelta(days=2)))
    world.run()
    assert world.record().decision.state == "recorded"
    assert world.calls == []


def test_an_anomaly_that_nobody_handles_opens_nothing(world: World) -> None:
    world.detect(anomaly(kind="earthquake"))
    world.run()
    assert world.records() == []


def test_a_withdrawn_anomaly_opens_nothing(world: World) -> None:
    world.detect(anomaly(is_withdrawn=True))
    world.run()
    assert world.records() == []


@pytest.mark.parametrize(
    "changes",
    [{"revision": 1}, {"told": 1, "score": 4.5}, {"told": 1, "is_withdrawn": True}],
    ids=["revised bar", "another figure", "withdrawn"],
)
def test_what_is_told_anew_before_the_release_abandons(make_world: MakeWorld, changes: dict[str, Any]) -> None:
    class Picky(toy.Nudging):
        def handles(self, anomaly: Any) -> bool:
            return super().handles(anomaly) and anomaly["score"] >= 5 and not anomaly["is_withdrawn"]

    world, at = make_world(deciding=toy.deciding(Picky()), deaf={GATEKEEPER_WORK}), datetime.now(UTC)
    world.detect(anomaly(at=at))
    world.run()
    assert world.record().decision.state == "proposed"
    world.detect(anomaly(at=at, **changes))
    world.run()
    assert last_body(world.record(), "closed") == {"state": "abandoned", "reason": "superseded"}
    assert len(world.record().all("joined")) == 1
    assert world.events().count("DECISION_ABANDONED") == 1


def test_a_superseded_decision_is_not_released_before_the_engine_looks(world: World) -> None:
    at = datetime.now(UTC)
    world.deaf = {GATEKEEPER_WORK}
    world.detect(anomaly(at=at))
    world.run()
    world.detect(anomaly(at=at, revision=1))
    (_, text), *_ = world.new_messages()
    world.join(text)
    with pytest.raises(psycopg.errors.InsufficientPrivilege, match="superseded"):
        world.judge(world.record().decision.decision_id, 0)


def test_a_revision_after_the_release_is_on_record_alone(world: World) -> None:
    at = datetime.now(UTC)
    world.detect(anomaly(at=at))
    world.run()
    world.detect(anomaly(at=at, revision=1))
    world.run()
    assert world.record().decision.state == "scored"
    assert kinds(world.record())[-1] == "joined"


def test_an_earlier_revision_that_comes_late_changes_nothing(world: World) -> None:
    at = datetime.now(UTC)
    world.deaf = {GATEKEEPER_WORK}
    world.detect(anomaly(at=at, revision=2))
    world.run()
    world.deaf = set()
    world.detect(anomaly(at=at, revision=1))
    world.run()
    assert len(world.records()) == 1
    assert world.record().last("joined") is not None
    assert world.record().decision.state == "proposed"


# Ends before the release


def test_a_decision_is_abandoned_at_its_deadline(make_world: MakeWorld) -> None:
    world = make_world(deaf={GATEKEEPER_WORK})
    world.detect(anomaly())
    world.run()
    assert world.record().decision.state == "proposed"
    world.pass_deadline()
    assert world.wake() == 1
    world.run()
    assert last_body(world.record(), "closed") == {"state": "abandoned", "reason": "deadline"}


def test_a_decision_whose_wake_up_was_lost_is_woken_again(make_world: MakeWorld) -> None:
    world = make_world(deaf={GATEKEEPER_WORK})
    world.detect(anomaly())
    world.run()
    world.pass_deadline()
    assert world.wake() == 1
    world.new_messages()  # they go nowhere
    assert world.wake() == 1
    world.run()
    assert world.record().decision.state == "abandoned"
    assert world.wake() == 0


@pytest.mark.parametrize("scope", ["all", "domain:toy", "playbook:nudging"])
def test_a_switch_that_is_off_abandons_what_it_covers(world: World, scope: str) -> None:
    world.deaf = {GATEKEEPER_WORK}
    world.detect(anomaly())
    world.run()
    world.switch(scope, off=True)
    world.engine.advance(world.decide, world.record().decision.decision_id)
    assert last_body(world.record(), "closed") == {"state": "abandoned", "reason": f"switched off: {scope}"}


def test_a_switch_of_something_else_changes_nothing(world: World) -> None:
    world.switch("playbook:another", off=True)
    world.switch("domain:toy", off=True)
    world.switch("domain:toy", off=False)
    world.detect(anomaly())
    world.run()
    assert world.record().decision.state == "scored"


def test_an_agent_that_is_off_counts_as_failed(world: World) -> None:
    world.switch("agent:checker", off=True)
    world.detect(anomaly())
    world.run()
    assert last_body(world.record(), "agent_failed")["outcome"] == "switched_off"
    assert world.record().decision.state == "scored"


# Races


def test_a_message_that_finds_it_held_has_its_holder_look_again(world: World) -> None:
    woken: list[bool] = []

    class Interrupted(toy.Nudging):
        def simulate(self, record: Any, spec: Any) -> Any:
            # Another instance gets a message while this one is busy.
            if not woken:
                woken.append(
                    world.another_engine("other").advance(world.as_role["acp_decide2"], record.decision.decision_id)
                )
            return super().simulate(record, spec)

    world.deciding = toy.deciding(Interrupted())
    world.engine = world.another_engine()
    world.detect(anomaly())
    world.run()
    assert woken == [False]
    assert world.rows("SELECT wake_seq > 0 FROM decisions") == [(True,)]
    assert world.record().decision.state == "scored"


def test_a_message_just_before_the_holder_leaves_is_not_lost(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    leave, left, is_interrupted = Engine._leave, list[bool](), list[bool]()

    def interrupted(engine: Engine, connection: Any, hold: Hold, loaded: Loaded) -> bool:
        if not is_interrupted:
            is_interrupted.append(True)
            world.another_engine("other").advance(world.as_role["acp_decide2"], hold.decision_id)
        left.append(leave(engine, connection, hold, loaded))
        return left[-1]

    monkeypatch.setattr(Engine, "_leave", interrupted)
    world.detect(anomaly())
    world.run()
    assert left[:2] == [False, True]  # the other found it held, and had the holder look again
    assert world.record().decision.state == "scored"


def test_what_is_added_while_deciding_is_decided_on_again(world: World) -> None:
    at = datetime.now(UTC)
    seen: list[int] = []

    class Overtaken(toy.Nudging):
        def simulate(self, record: Any, spec: Any) -> Any:
            seen.append(len(record.steps))
            if len(seen) == 1:
                world.join_directly(anomaly(at=at, revision=0))
            return super().simulate(record, spec)

    world.deciding = toy.deciding(Overtaken())
    world.engine = world.another_engine()
    world.detect(anomaly(at=at, revision=1))
    world.run()
    assert seen == [seen[0], seen[0] + 1]
    assert world.record().decision.state == "scored"


def test_a_holder_that_lost_its_lease_stops_quietly(world: World) -> None:
    class Slow(toy.Nudging):
        def simulate(self, record: Any, spec: Any) -> Any:
            if world.steal:
                world.steal = False
                world.owner.execute("UPDATE decisions SET lease_until = now() - interval '1 second'")
                world.another_engine("other").advance(world.as_role["acp_decide2"], record.decision.decision_id)
            return super().simulate(record, spec)

    world.steal = True
    world.deciding = toy.deciding(Slow())
    world.engine = world.another_engine()
    world.detect(anomaly())
    world.run()
    assert world.record().decision.state == "scored"
    assert kinds(world.record()).count("simulation") == 1


def test_a_playbook_that_raises_gives_its_lease_back(world: World) -> None:
    class Broken(toy.Nudging):
        def simulate(self, record: Any, spec: Any) -> Any:
            raise ZeroDivisionError

    world.deciding = toy.deciding(Broken())
    world.engine = world.another_engine()
    world.detect(anomaly())
    with pytest.raises(ZeroDivisionError):
        world.run(times=1)
    assert world.rows("SELECT held_by FROM decisions") == [(None,)]


def test_a_version_that_is_gone_is_named(world: World) -> None:
    world.deaf = {AGENT_WORK}
    world.detect(anomaly())
    world.run()
    world.deciding = toy.deciding(toy.Nudging(version="2"))
    with pytest.raises(PlaybookFault, match="nudging 1, which is gone"):
        world.another_engine().advance(world.decide, world.record().decision.decision_id)


def test_a_decision_that_is_not_there_is_nothing(world: World) -> None:
    world.detect(anomaly())
    (topic, _), *_ = world.new_messages()
    assert topic == DECISION_WORK
    assert not world.engine.advance(world.decide, world.some_id)


def test_a_verdict_by_other_policies_than_were_pinned_is_told(world: World) -> None:
    world.detect(anomaly())
    world.run()
    tree = read_tree(world.decide, world.record().decision.decision_id)
    assert tree is not None
    verdict = next(step for step in tree.steps if step.kind == "verdict")
    assert is_other_policy(tree.steps[0], verdict)
    ((pinned, schema),) = world.rows(
        "SELECT encode(sha256(%s), 'hex'), encode(sha256(%s), 'hex')",
        toy.ToyGate.policies.encode(),
        toy.ToyGate.schema.encode(),
    )
    same = {**verdict.body, "policy_sha256": f"\\x{pinned}", "schema_sha256": f"\\x{schema}"}
    assert not is_other_policy(tree.steps[0], replace(verdict, body=same))
