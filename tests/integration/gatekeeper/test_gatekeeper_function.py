"""GatekeeperFunction's handler on a real database, with messages as SQS hands them over."""

import json
from collections.abc import Iterator, Mapping
from typing import Any
from uuid import uuid4

import pytest
from tests.integration.functions.invoked import FakeContext, Function
from tests.integration.gatekeeper.world import GATE, Proposed, World
from tests.judgements import AT, Case

from control_plane.decisions.emit import message
from control_plane.model.deciding import Deciding
from control_plane.model.decision_events import VerdictRequested


@pytest.fixture
def gatekeeper(world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[Function]:
    monkeypatch.setenv("DATABASE_URL", world.database.url("acp_gatekeeper"))
    monkeypatch.delenv("DATABASE_SECRET_ARN", raising=False)
    function = Function("gatekeeper")

    def load_deciding() -> Mapping[str, Deciding]:
        return {"finance": Deciding((), (), GATE)}

    monkeypatch.setattr(function.module, "load_deciding", load_deciding)
    yield function
    function.module.database().close()


def asked(proposed: Proposed, *, nth: int = 0) -> dict[str, Any]:
    """A record of a batch that asks for a verdict."""
    payload = VerdictRequested(decision_id=str(proposed.decision_id), proposal_seq=proposed.seq, nth=nth)
    told = message(payload, entity_id="AAPL", series=f"x:{nth}", at=AT, trace_id=uuid4())
    return {"messageId": f"m-{proposed.seq}-{nth}", "body": json.dumps(told.message), "attributes": {}}


def test_a_batch_is_judged_and_what_fails_comes_again(world: World, gatekeeper: Function) -> None:
    good, bad = world.propose(), world.propose(Case(hypothesis="unexplained"), entity="MSFT")
    lost = asked(bad)
    lost["messageId"] = "lost"
    body = json.loads(lost["body"])
    broken = {"messageId": "broken", "body": "{", "attributes": {}}
    records = [asked(good), asked(good), asked(bad), broken]
    gatekeeper.forget_logs()
    answer = gatekeeper.module.handler({"Records": records}, FakeContext())
    assert answer == {"batchItemFailures": [{"itemIdentifier": "broken"}]}
    assert body["event_type"] == "VERDICT_REQUESTED"
    assert good.is_released()
    assert not bad.is_released()
    assert len(good.verdicts()) == len(bad.verdicts()) == 1
    event_id = json.loads(records[0]["body"])["event_id"]
    about = [line for line in gatekeeper.logs if line.get("event_id") == event_id]
    assert [line["message"] for line in about] == ["verdict", "consumed", "consumed"]
    assert {line["decision_id"] for line in about} == {str(good.decision_id)}


def test_a_domain_without_a_gate_is_refused(
    world: World, gatekeeper: Function, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gatekeeper.module, "load_deciding", dict)
    proposed = world.propose()
    assert gatekeeper.module.handler({"Records": [asked(proposed)]}, FakeContext()) == {"batchItemFailures": []}
    [(verdict, _, errors)] = proposed.verdicts()
    assert (verdict, errors) == ("refused", ["there is no gate for the domain finance"])
