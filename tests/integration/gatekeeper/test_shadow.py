"""Policies in shadow: what they would have decided is on record, and changes nothing of what is enforced."""

import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from functools import partial
from typing import Any
from uuid import UUID

import psycopg
import pytest
from psycopg import errors
from tests.integration.functions.invoked import FakeContext, Function
from tests.integration.gatekeeper.test_gatekeeper_approvals import Person, make_person
from tests.integration.gatekeeper.test_gatekeeper_function import asked
from tests.integration.gatekeeper.world import GATE, Proposed, World
from tests.judgements import AT, Case, market_wide_case

from control_plane.decisions import shadow
from control_plane.decisions.audit import audit
from control_plane.decisions.gatekeeper import judge, verdict_id_of
from control_plane.decisions.shadow import judge_in_shadow
from control_plane.model.deciding import Deciding, Judged
from control_plane.platform.child import ChildFailed, run_in_child
from control_plane.platform.database import connect
from domains.finance.gate import FinanceGate

STRICTER = GATE.policies + '@id("nothing_now") forbid (principal, action, resource);'
ERRING = (
    GATE.policies + '@id("errs") forbid (principal, action, resource)'
    " when { context.quantity_micros * 4611686018427387904 == 5 };"
)


class Blind(FinanceGate):
    """Would see a verdict in shadow, if it were shown one."""

    def check_evidence(self, connection: psycopg.Connection[Any], judged: Judged) -> Sequence[str]:
        assert judged.record.last("verdict") is not None
        assert judged.record.last("shadow_verdict") is None
        return super().check_evidence(connection, judged)


def unreadable() -> str:
    raise OSError("it is gone")


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine has the time to answer."""
    monkeypatch.setattr(shadow, "MOST_SECONDS", 60.0)


def in_shadow(world: World, proposed: Proposed, text: str = STRICTER, *, nth: int = 0) -> shadow.ShadowVerdict | None:
    verdict_id = verdict_id_of(proposed.decision_id, proposed.seq, nth)
    return judge_in_shadow(world.gatekeeper, GATE, lambda: text, verdict_id)


def recorded(proposed: Proposed) -> list[dict[str, Any]]:
    """The bodies of the steps."""
    rows = proposed.rows(
        "SELECT convert_from(body, 'UTF8') FROM decision_steps WHERE decision_id = %(id)s AND kind = 'shadow_verdict'"
        " ORDER BY seq"
    )
    return [json.loads(body) for (body,) in rows]


def enforced(proposed: Proposed) -> Any:
    """All that is stored about a decision but what is in shadow, without what differs from decision to decision."""
    return (
        proposed.verdicts(),
        proposed.rows("SELECT state, superseded_by FROM decisions WHERE decision_id = %(id)s"),
        proposed.rows("SELECT action_type, account FROM actions WHERE decision_id = %(id)s"),
        len(proposed.rows("SELECT FROM approval_requests WHERE decision_id = %(id)s")),
        proposed.messages(),
    )


@pytest.mark.usefixtures("patience")
def test_the_same_request_is_judged_again_and_changes_nothing(world: World) -> None:
    proposed = world.propose()
    assert proposed.judge().is_released
    before = enforced(proposed)
    said = in_shadow(world, proposed)
    assert said is not None
    assert (said.enforced, said.verdict, said.reasons, said.errors) == ("permitted", "refused", ("nothing_now",), ())
    assert said.differs
    assert enforced(proposed) == before
    [body] = recorded(proposed)
    [(verdict, policy, request, parent, kind)] = proposed.rows(
        "SELECT v.verdict_id::text, convert_from(a.bytes, 'UTF8'), s.input_sha256 = v.request_sha256, p.kind, s.author"
        " FROM verdicts AS v JOIN decision_steps AS s USING (decision_id)"
        " JOIN artifacts AS a ON a.sha256 = s.output_sha256"
        " JOIN decision_steps AS p ON p.decision_id = s.decision_id AND p.seq = s.parent"
        " WHERE v.decision_id = %(id)s AND s.kind = 'shadow_verdict'"
    )
    assert (body["verdict_id"], policy, request, parent, kind) == (verdict, STRICTER, True, "verdict", "gatekeeper")
    assert audit(world.owner).findings == []


@pytest.mark.usefixtures("patience")
def test_it_is_recorded_once(world: World) -> None:
    proposed = world.propose()
    assert in_shadow(world, proposed) is None  # nothing was judged yet
    proposed.judge()
    assert in_shadow(world, proposed) is not None
    assert in_shadow(world, proposed, GATE.policies) is None
    assert len(recorded(proposed)) == 1


def test_the_database_takes_one_a_verdict(world: World) -> None:
    proposed = world.propose()
    proposed.judge()
    answers = [
        world.gatekeeper.execute(
            "SELECT record_shadow_verdict(%s, NULL, NULL, 'refused', 'permitted', '[]', '[]')",
            [verdict_id_of(proposed.decision_id, proposed.seq, nth)],
        ).fetchone()
        for nth in (0, 0, 1)
    ]
    assert answers == [(True,), (False,), (False,)]
    assert len(recorded(proposed)) == 1


@pytest.mark.usefixtures("patience")
def test_a_shadows_policies_and_schema_are_audited(world: World) -> None:
    proposed = world.propose()
    proposed.judge()
    other = type("Other", (type(GATE),), {"schema": property(lambda _: f"{GATE.schema}// another")})()
    verdict_id = verdict_id_of(proposed.decision_id, proposed.seq, 0)
    said = judge_in_shadow(world.gatekeeper, other, lambda: STRICTER, verdict_id)
    assert said is not None
    assert not said.errors
    world.owner.execute("ALTER TABLE artifacts DISABLE TRIGGER USER")
    world.owner.execute("ALTER TABLE artifacts DROP CONSTRAINT artifacts_are_named_by_their_content")
    for text in (STRICTER, other.schema):
        world.owner.execute("UPDATE artifacts SET bytes = bytes || '\\x2f2f' WHERE bytes = %s", [text.encode()])
    assert [finding.where for finding in audit(world.owner).findings] == ["artifacts", "artifacts"]


@pytest.mark.usefixtures("patience")
def test_what_no_policy_was_asked_for_is_not_judged(world: World) -> None:
    case = Case()
    case.body = b"{}"
    broken = world.propose(case)
    assert broken.judge().verdict == "refused"
    assert in_shadow(world, broken) is None


@pytest.mark.usefixtures("patience")
def test_the_verdict_after_an_approval_is_judged_as_approved(world: World) -> None:
    proposed = world.propose(market_wide_case())
    assert proposed.judge().verdict == "needs_approval"
    said = in_shadow(world, proposed, GATE.policies)
    assert said is not None
    assert (said.enforced, said.verdict, said.differs) == ("needs_approval", "needs_approval", False)
    proposed.move("awaiting_approval")
    with connect(make_person(world, "person_ida"), application_name="test") as person:
        assert Person(person).answer(proposed) == "given"
    proposed.move("approved")
    assert proposed.judge(nth=1, gate=Blind()).is_released
    said = in_shadow(world, proposed, GATE.policies, nth=1)
    assert said is not None
    assert (said.enforced, said.verdict) == ("permitted", "permitted")
    assert len(recorded(proposed)) == 2


# What is wrong with a shadow is its own affair.


FAULTS: dict[str, tuple[Callable[[], Any], str]] = {
    "an error of evaluation": (lambda: ERRING, "overflow"),
    "unreadable": (unreadable, "OSError: it is gone"),
    "empty": (lambda: "", "there are no policies"),
    "not Cedar": (lambda: "permit (", "cannot be parsed"),
    "of another schema": (lambda: '@id("x") permit (principal, action, resource) when { context.no };', "schema"),
    "too long": (lambda: "/" * 70_000, "65536 is the most"),
    "no text": (lambda: None, "TypeError"),
}


@pytest.mark.usefixtures("patience")
@pytest.mark.parametrize("name", FAULTS)
def test_a_shadow_that_errs_says_so_and_changes_nothing(world: World, name: str) -> None:
    read, error = FAULTS[name]
    proposed = world.propose()
    assert proposed.judge().is_released
    before = enforced(proposed)
    said = judge_in_shadow(world.gatekeeper, GATE, read, verdict_id_of(proposed.decision_id, proposed.seq, 0))
    assert said is not None
    assert (said.enforced, said.verdict, said.differs) == ("permitted", "refused", True)
    assert any(error in one for one in said.errors), said.errors
    assert enforced(proposed) == before
    [body] = recorded(proposed)
    assert body["errors"] == list(said.errors)
    assert audit(world.owner).findings == []


def hang(*_: Any, **__: Any) -> bytes:
    time.sleep(60)
    return b"{}"


def end(*_: Any, **__: Any) -> bytes:
    os.kill(os.getpid(), 9)
    return b"{}"


@pytest.mark.parametrize("way", ["slow", "crashes"])
def test_a_shadow_that_is_slow_or_crashes_is_ended(world: World, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    proposed = world.propose()
    assert proposed.judge().is_released
    before = enforced(proposed)
    seconds, error = (0.2, "no answer within") if way == "slow" else (60.0, "signal 9")
    monkeypatch.setattr(shadow, "MOST_SECONDS", seconds)
    monkeypatch.setattr(shadow, "_answer", hang if way == "slow" else end)
    said = in_shadow(world, proposed)
    assert said is not None
    assert any(error in one for one in said.errors)
    assert enforced(proposed) == before


# The function


@pytest.fixture
def gatekeeper(world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[Function]:
    monkeypatch.setenv("DATABASE_URL", world.database.url("acp_gatekeeper"))
    monkeypatch.delenv("DATABASE_SECRET_ARN", raising=False)
    function = Function("gatekeeper")

    def load_deciding() -> Mapping[str, Deciding]:
        return {"finance": Deciding((), (), GATE, shadow_policies=lambda: STRICTER)}

    monkeypatch.setattr(function.module, "load_deciding", load_deciding)
    yield function
    function.module.database().close()


def deliver(function: Function, proposed: Proposed) -> Any:
    return function.module.handler({"Records": [asked(proposed)]}, FakeContext())


@pytest.mark.usefixtures("patience")
def test_killed_between_both_verdicts_it_makes_the_second_when_the_message_comes_again(
    world: World, gatekeeper: Function
) -> None:
    proposed = world.propose()
    assert judge(world.gatekeeper, GATE, proposed.decision_id, proposed.seq, 0).is_released  # and then it was killed
    before = enforced(proposed)
    for _ in range(3):
        assert deliver(gatekeeper, proposed) == {"batchItemFailures": []}
    assert [body["verdict"] for body in recorded(proposed)] == ["refused"]
    assert enforced(proposed) == before


@pytest.mark.usefixtures("patience")
def test_killed_after_any_statement_both_verdicts_are_there_once_in_the_end(world: World) -> None:
    kills: list[str] = []
    is_done = False
    while not is_done:
        proposed = world.propose(at=AT + timedelta(days=len(kills)))
        try:
            is_done = run_in_child(partial(judge_both, world, proposed, len(kills)), 120) == b"done"
        except ChildFailed as error:
            kills.append(str(error))
        assert judge_both(world, proposed, -1) == b"done"
        [(verdict, _, _)] = proposed.verdicts()
        [body] = recorded(proposed)
        assert (body["enforced"], body["verdict"]) == (verdict, "refused")
        assert proposed.is_released() == (verdict == "permitted")
    assert len(kills) > 15
    assert {kill[-8:] for kill in kills} == {"signal 9"}
    assert audit(world.owner).findings == []


def judge_both(world: World, proposed: Proposed, killed_after: int) -> bytes:
    """Does what the function does for a message, by a connection of its own that ends the process after a statement."""

    class Killing(psycopg.Connection[Any]):
        statements = 0

        def cursor(self, *given: Any, **options: Any) -> Any:
            # Each statement is one of a new cursor's; the one before has been executed, and perhaps committed.
            if Killing.statements == killed_after:
                os.kill(os.getpid(), signal.SIGKILL)
            Killing.statements += 1
            return super().cursor(*given, **options)

    with Killing.connect(world.database.url("acp_gatekeeper"), autocommit=True) as connection:
        judge(connection, GATE, proposed.decision_id, proposed.seq, 0)
        verdict_id = verdict_id_of(proposed.decision_id, proposed.seq, 0)
        judge_in_shadow(connection, GATE, lambda: STRICTER, verdict_id)
        connection.cursor()
    return b"done"


@pytest.mark.usefixtures("patience")
def test_both_verdicts_are_counted(world: World, gatekeeper: Function) -> None:
    proposed = world.propose()
    gatekeeper.forget_logs()
    deliver(gatekeeper, proposed)
    lines = {line["message"]: line for line in gatekeeper.logs if "message" in line}
    assert lines["verdict"]["is_released"]
    assert (lines["verdict in shadow"]["verdict"], lines["verdict in shadow"]["enforced"]) == ("refused", "permitted")
    counted = world.owner.execute(
        "SELECT name, outcome, sum(n) FROM flow_deltas WHERE stage = 'verdict' GROUP BY name, outcome ORDER BY name"
    ).fetchall()
    assert counted == [("binding", "permitted", 1), ("shadow_policy", "refused", 1)]


def test_a_shadow_verdict_that_cannot_be_recorded_holds_nothing_up(
    world: World, gatekeeper: Function, monkeypatch: pytest.MonkeyPatch
) -> None:
    proposed = world.propose()

    def fails(*_: Any) -> None:
        raise errors.CheckViolation

    monkeypatch.setattr(gatekeeper.module, "judge_in_shadow", fails)
    assert deliver(gatekeeper, proposed) == {"batchItemFailures": []}
    assert proposed.is_released()
    assert recorded(proposed) == []


# Ways round


@pytest.mark.usefixtures("patience")
def test_a_permitting_shadow_releases_nothing_that_is_refused(world: World) -> None:
    stricter = type("Stricter", (type(GATE),), {"policies": property(lambda _: STRICTER)})()
    proposed = world.propose()
    assert proposed.judge(gate=stricter).verdict == "refused"
    said = in_shadow(world, proposed, GATE.policies)
    assert said is not None
    assert (said.enforced, said.verdict) == ("refused", "permitted")
    [(judged,)] = proposed.rows("SELECT verdict_id FROM verdicts WHERE decision_id = %(id)s")
    for verdict_id in (judged, recorded(proposed)[0]["verdict_id"]):
        with pytest.raises(psycopg.Error):
            insert_action(world, proposed, verdict_id)
    assert not proposed.is_released()


def insert_action(world: World, proposed: Proposed, verdict_id: UUID) -> None:
    world.gatekeeper.execute(
        "INSERT INTO actions (action_id, decision_id, idempotency_key, domain, action_type, account, action_sha256,"
        " verdict_id, event_id, expires_at) SELECT gen_random_uuid(), decision_id, 'k', 'finance', 'HEDGE', 'paper',"
        " output_sha256, %(verdict)s, gen_random_uuid(), now() + interval '1 hour' FROM decision_steps"
        " WHERE decision_id = %(id)s AND kind = 'proposal'",
        {"id": proposed.decision_id, "verdict": verdict_id},
    )


@pytest.mark.parametrize("is_shadow", [False, True])
def test_a_decision_in_shadow_releases_nothing_whatever_its_verdict_says(world: World, is_shadow: bool) -> None:
    proposed = world.propose(is_shadow=is_shadow)
    verdict_id = UUID(int=5)

    def by_hand() -> None:
        with world.gatekeeper.transaction():
            world.gatekeeper.execute(
                "SELECT record_verdict(%(v)s, %(id)s, 1, output_sha256, 'permitted', false, NULL, output_sha256,"
                " output_sha256, output_sha256, '[]', '[]') FROM decision_steps"
                " WHERE decision_id = %(id)s AND kind = 'proposal'",
                {"v": verdict_id, "id": proposed.decision_id},
            )
            insert_action(world, proposed, verdict_id)
            raise NotRefusedError

    with pytest.raises(errors.InsufficientPrivilege if is_shadow else NotRefusedError):
        by_hand()
    assert not proposed.is_released()


class NotRefusedError(Exception):
    """Rolls the transaction back."""


def test_nobody_is_asked_about_a_decision_in_shadow(world: World) -> None:
    proposed = world.propose(market_wide_case(), is_shadow=True)
    assert proposed.judge().verdict == "needs_approval"
    assert proposed.rows("SELECT FROM approval_requests") == []
    ask = (
        "SELECT ask_approval(gen_random_uuid(), decision_id, output_sha256, now() + interval '1 minute', 'x')"
        " FROM decision_steps WHERE decision_id = %s AND kind = 'proposal'"
    )
    with pytest.raises(errors.InsufficientPrivilege, match="in shadow"):
        world.gatekeeper.execute(ask, [proposed.decision_id])
    binding = world.propose(market_wide_case(), entity="MSFT", at=AT + timedelta(hours=3))
    assert world.gatekeeper.execute(ask, [binding.decision_id]).fetchone() == (True,)


@pytest.mark.parametrize("role", ["acp_decide", "acp_agent", "acp_action", "acp_command", "acp_reader", "acp_detect"])
def test_only_the_gatekeeper_records_one(world: World, role: str) -> None:
    proposed = world.propose()
    proposed.judge()
    with world.as_role(role) as connection, pytest.raises(errors.InsufficientPrivilege):
        connection.execute(
            "SELECT record_shadow_verdict(%s, NULL, NULL, 'refused', 'permitted', '[]', '[]')",
            [verdict_id_of(proposed.decision_id, proposed.seq, 0)],
        )


@pytest.mark.parametrize(
    "values",
    ["'x', 'refused', '[]', '[]'", "'refused', 'x', '[]', '[]'", "'refused', 'permitted', '[]', '[\"it erred\"]'"],
)
def test_what_is_no_verdict_is_refused(world: World, values: str) -> None:
    proposed = world.propose()
    proposed.judge()
    with pytest.raises(errors.CheckViolation):
        world.gatekeeper.execute(
            f"SELECT record_shadow_verdict(%s, NULL, NULL, {values})".encode(),
            [verdict_id_of(proposed.decision_id, proposed.seq, 0)],
        )


def test_the_engine_cannot_write_such_a_step(world: World) -> None:
    proposed = world.propose()
    row = world.decide.execute("SELECT fence FROM claim_decision(%s, 'test', 60)", [proposed.decision_id]).fetchone()
    assert row is not None
    with pytest.raises(errors.InsufficientPrivilege):
        world.decide.execute(
            "SELECT new_seq FROM advance_decision(%s, %s, 'shadow_verdict', 0, '{}', NULL, NULL, NULL, 60)",
            [proposed.decision_id, row[0]],
        )


@pytest.mark.parametrize("is_shadow", [True, False])
def test_a_decision_in_shadow_begins_no_cool_down(world: World, is_shadow: bool) -> None:
    assert world.propose(is_shadow=is_shadow).judge().verdict == "permitted"
    assert world.propose(at=AT + timedelta(minutes=3)).judge().is_released == is_shadow
