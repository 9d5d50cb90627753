"""A version of a playbook in shadow decides beside the enforced one, up to the verdict, and holds nothing up."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

import psycopg
import pytest
from tests.integration.decisions import toy
from tests.integration.decisions.world import World, anomaly, kinds, last_body

from control_plane.decisions import engine
from control_plane.decisions.audit import audit
from control_plane.decisions.opening import open_or_join
from control_plane.decisions.record import store_artifact
from control_plane.model.deciding import Command, Deciding, JsonObject, Record, derived_id
from domains import EVENT_TYPES

pytestmark = pytest.mark.usefixtures("replays_are_identical")

type MakeWorld = Callable[..., World]


def deciding(*shadows: Any, **changes: dict[str, Any]) -> Mapping[str, Deciding]:
    return {"toy": replace(toy.deciding(**changes)["toy"], shadow_playbooks=shadows or (toy.Nudging(version="2"),))}


def both(world: World) -> tuple[Record, Record]:
    """The enforced decision, and the one in shadow."""
    enforced, shadow = sorted(world.records(), key=lambda record: record.decision.is_shadow)
    return enforced, shadow


def test_both_decide_and_one_releases(make_world: MakeWorld) -> None:
    world = make_world(deciding=deciding())
    world.detect(anomaly())
    world.run(times=3)
    enforced, shadow = both(world)
    assert (enforced.decision.playbook_version, shadow.decision.playbook_version) == ("1", "2")
    assert (enforced.decision.state, shadow.decision.state) == ("scored", "scored")
    assert last_body(shadow, "verdict")["verdict"] == "permitted"
    assert world.rows("SELECT decision_id FROM actions") == [(enforced.decision.decision_id,)]
    assert "released" not in kinds(shadow)
    assert audit(world.owner).findings == []


def test_nobody_is_asked_about_the_one_in_shadow(make_world: MakeWorld) -> None:
    world = make_world(deciding=deciding(), verdict="needs_approval")
    world.detect(anomaly())
    world.run()
    enforced, shadow = both(world)
    assert (enforced.decision.state, shadow.decision.state) == ("awaiting_approval", "scored")
    assert world.rows("SELECT decision_id FROM approval_requests") == [(enforced.decision.decision_id,)]


def test_it_asks_no_agent_that_costs(make_world: MakeWorld) -> None:
    world = make_world(deciding=deciding(checker={"costs": 50}))
    world.detect(anomaly())
    world.run()
    enforced, shadow = both(world)
    assert (enforced.decision.state, shadow.decision.state) == ("scored", "scored")
    assert "budget_exhausted" in kinds(shadow)
    assert "budget_exhausted" not in kinds(enforced)
    assert world.rows("SELECT spent_micros, reserved_micros FROM budgets") == [(50, 0)]


def test_a_withdrawal_reaches_both(make_world: MakeWorld) -> None:
    world = make_world(deciding=deciding(), deaf={"agents.work"})
    world.detect(anomaly())
    world.run()
    withdraw(world)
    world.run()
    assert [record.decision.state for record in both(world)] == ["abandoned", "abandoned"]


def withdraw(world: World) -> None:
    """The anomaly is taken back."""
    [(at, payload)] = world.rows("SELECT occurred_at, payload_json FROM events WHERE event_type = 'ANOMALY_DETECTED'")
    given = {name: value for name, value in payload.items() if name not in ("is_withdrawn", "bar_revision")}
    world.detect(anomaly(at=at, revision=1, is_withdrawn=True, **given))


# What fails in shadow


@dataclass
class Failing(toy.Nudging):
    """Raises in one of its methods."""

    version: str = "2"
    where: str = "next"

    def handles(self, anomaly: JsonObject) -> bool:
        self.fail_in("handles")
        return super().handles(anomaly)

    def next(self, record: Record) -> Command:
        self.fail_in("next")
        return super().next(record)

    def sources(self) -> Mapping[str, bytes]:
        self.fail_in("sources")
        return super().sources()

    def fail_in(self, where: str) -> None:
        if self.where == where:
            raise ZeroDivisionError(where)


@pytest.mark.parametrize("where", ["handles", "sources", "next"])
def test_one_that_fails_holds_nothing_up(make_world: MakeWorld, where: str) -> None:
    world = make_world(deciding=deciding(Failing(where=where)))
    world.detect(anomaly())
    deliver_but_the_shadows(world)
    enforced = next(record for record in world.records() if not record.decision.is_shadow)
    assert enforced.decision.state == "scored"
    assert len(world.records()) == (2 if where == "next" else 1)


def deliver_but_the_shadows(world: World) -> None:
    """Delivers every message; those of a decision in shadow may fail, each by itself."""
    while batch := world.new_messages():
        for topic, text in batch:
            event = EVENT_TYPES.parse_event(text)
            of = event.payload.get("decision_id")
            is_shadow = world.rows("SELECT is_shadow FROM decisions WHERE decision_id::text = %s", of) == [(True,)]
            if is_shadow and topic == "decisions.work":
                with pytest.raises(ZeroDivisionError):
                    world.deliver(topic, event)
            else:
                world.deliver(topic, event)


def test_both_are_opened_or_none(make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """An instance is killed between the two: its transaction is gone, and the message comes again."""
    world = make_world(deciding=deciding())
    opened: list[bool] = []

    def killed_at_the_second(*given: Any, **options: Any) -> Any:
        opened.append(options["is_beside"])
        if options["is_beside"]:
            raise psycopg.OperationalError("killed")
        return open_or_join(*given, **options)

    world.detect(anomaly())
    with monkeypatch.context() as patched:
        patched.setattr(engine, "open_or_join", killed_at_the_second)
        with pytest.raises(psycopg.OperationalError):
            world.run()
    assert opened[:2] == [False, True]
    assert world.records() == []
    world._seen.clear()  # the message comes again
    world.run()
    assert [record.decision.state for record in both(world)] == ["scored", "scored"]


# Policies in shadow, beside the engine


@dataclass
class Nosy(toy.Nudging):
    """Would decide by what was judged in shadow, if it saw it."""

    def next(self, record: Record) -> Command:
        assert record.last("shadow_verdict") is None
        return super().next(record)

    def simulate(self, record: Record, spec: JsonObject) -> JsonObject:
        assert record.last("shadow_verdict") is None
        return super().simulate(record, spec)

    def observe(self, connection: Any, record: Record, bars: int, now: Any) -> JsonObject | None:
        assert record.last("shadow_verdict") is None
        return super().observe(connection, record, bars, now)


@pytest.mark.parametrize("verdict", ["permitted", "refused", "needs_approval"])
def test_a_record_with_shadow_verdicts_is_decided_again_to_the_byte(
    make_world: MakeWorld, verdict: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world(deciding=toy.deciding(Nosy()), verdict=verdict)
    judge = world.judge

    def judge_both(decision_id: UUID, nth: int) -> None:
        judge(decision_id, nth)
        record = next(one for one in world.records() if one.decision.decision_id == decision_id)
        connection = world.as_role["acp_gatekeeper"]
        seq = record.all("proposal")[-1].seq
        policy = store_artifact(connection, "policy", b"forbid")
        connection.execute(
            "SELECT record_shadow_verdict(%s, %s, %s, 'permitted', 'refused', '[\"it\"]', '[]')",
            [derived_id("verdict", decision_id, seq, nth), policy, policy],
        )

    monkeypatch.setattr(world, "judge", judge_both)
    world.detect(anomaly())
    world.run()
    if verdict == "needs_approval":
        world.approve(world.record().decision.decision_id)
        world.run()
    record = world.record()
    assert record.decision.state == "scored"
    assert len(record.all("shadow_verdict")) == len(record.all("verdict"))
    assert audit(world.owner).findings == []
