"""Approvals on a real database: of exactly one action, once, in time, and by nobody who proposed it."""

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from psycopg import Connection, errors, sql
from tests.conftest import PASSWORD, ROLES
from tests.integration.gatekeeper.world import Proposed, World, in_threads
from tests.judgements import market_wide_case

from control_plane.decisions import approvals
from control_plane.decisions.approvals import answer, find_requests, open_requests
from control_plane.platform.database import connect
from control_plane.platform.messages import one_as_json
from domains.finance.gate import FinanceGate

FORGED_APPROVAL = (
    "INSERT INTO approvals (approval_id, decision_id, action_sha256, is_given, decided_by, expires_at)"
    " SELECT approval_id, decision_id, action_sha256, true, 'me', 'infinity' FROM approval_requests"
)


def make_person(world: World, name: str, *also_in: str) -> str:
    """Makes a login in acp_command; returns its URL."""
    with psycopg.connect(world.database.admin_url, autocommit=True) as admin:
        if admin.execute("SELECT FROM pg_roles WHERE rolname = %s", [name]).fetchone() is None:
            admin.execute(
                sql.SQL("CREATE ROLE {} LOGIN PASSWORD {} IN ROLE {}").format(
                    sql.Identifier(name),
                    sql.Literal(PASSWORD),
                    sql.SQL(", ").join(map(sql.Identifier, ("acp_command", *also_in))),
                )
            )
    return world.database.url(name)


@dataclass
class Person:
    """Somebody with a login."""

    connection: Connection[Any]

    def answer(self, proposed: Proposed, *, gives: bool = True, action: bytes | None = None) -> str:
        approval_id, action_sha256, _ = proposed.approval()
        [request] = find_requests(self.connection, str(approval_id))
        answered = answer(self.connection, request, action_sha256=action or action_sha256, gives=gives, reason="why")
        return answered.outcome


@pytest.fixture
def ada(world: World) -> Iterator[Person]:
    with connect(make_person(world, "person_ida"), application_name="test") as connection:
        yield Person(connection)


@pytest.fixture
def asked(world: World) -> Proposed:
    """A decision that waits for a person."""
    proposed = world.propose(market_wide_case())
    assert proposed.judge().verdict == "needs_approval"
    proposed.move("awaiting_approval")
    return proposed


def test_what_is_approved_is_judged_again_and_released(world: World, asked: Proposed, ada: Person) -> None:
    assert ada.answer(asked) == "given"
    assert not asked.is_released(), "an answer releases nothing by itself"
    asked.move("approved")
    assert asked.judge(nth=1).is_released
    assert asked.judge(nth=1).verdict is None
    assert asked.rows("SELECT decided_by, reason FROM approvals WHERE decision_id = %(id)s") == [("person_ida", "why")]
    [(recorded,)] = asked.rows("SELECT approval_id FROM verdicts WHERE decision_id = %(id)s AND verdict = 'permitted'")
    assert recorded == asked.approval()[0]
    assert asked.messages()["APPROVAL_GIVEN"] == {"decisions.events", "decisions.work"}


def test_what_is_denied_is_never_released(world: World, asked: Proposed, ada: Person) -> None:
    assert ada.answer(asked, gives=False) == "denied"
    assert ada.answer(asked) == "answered"
    asked.move("denied")
    assert asked.judge(nth=1).verdict is None
    assert not asked.is_released()


def test_two_clicks_at_once_have_one_effect(world: World, asked: Proposed, ada: Person) -> None:
    url = make_person(world, "person_ida")
    with ExitStack() as stack:
        people = [Person(stack.enter_context(connect(url, application_name="test"))) for _ in range(8)]
        outcomes = in_threads(8, lambda number: people[number].answer(asked, gives=number % 2 == 0))
    assert sorted(outcomes).count("answered") == 7
    assert len(asked.rows("SELECT FROM approvals WHERE decision_id = %(id)s")) == 1
    told = asked.messages().keys() & {"APPROVAL_GIVEN", "APPROVAL_DENIED"}
    assert len(told) == 1


def test_silence_is_a_no(world: World, ada: Person) -> None:
    class Hasty(FinanceGate):
        approval_within = timedelta(milliseconds=1)

    proposed = world.propose(market_wide_case())
    assert proposed.judge(gate=Hasty()).verdict == "needs_approval"
    assert ada.answer(proposed) == "expired"
    assert open_requests(ada.connection) == []
    proposed.move("awaiting_approval", "expired")
    assert proposed.judge(nth=1).verdict is None


def test_an_approval_ends_before_its_decision_does(world: World, asked: Proposed) -> None:
    [(is_before,)] = asked.rows(
        "SELECT expires_at < deadline FROM approval_requests JOIN decisions USING (decision_id)"
        " WHERE decision_id = %(id)s"
    )
    assert is_before


def test_an_approval_that_has_expired_releases_nothing(world: World, asked: Proposed, ada: Person) -> None:
    assert ada.answer(asked) == "given"
    asked.move("approved")
    with world.owner.transaction():
        world.owner.execute("ALTER TABLE approvals DISABLE TRIGGER approvals_are_immutable")
        world.owner.execute("UPDATE approvals SET expires_at = now() - interval '1 second'")
        world.owner.execute("ALTER TABLE approvals ENABLE TRIGGER approvals_are_immutable")
    assert asked.judge(nth=1).reasons == (
        "approval: a person was asked, and none stands: not answered, denied or expired",
    )
    assert not asked.is_released()


def test_whoever_proposed_may_not_approve(world: World) -> None:
    url = make_person(world, "person_eve", "acp_decide")
    with connect(url, application_name="test") as connection:
        proposed = world.propose(market_wide_case(), opened_by=connection)
        assert proposed.judge().verdict == "needs_approval"
        assert Person(connection).answer(proposed) == "own"
        assert Person(connection).answer(proposed, gives=False) == "denied"


@pytest.mark.parametrize("role", [role for role in ROLES if role != "acp_command"])
def test_no_function_may_approve(world: World, asked: Proposed, role: str) -> None:
    approval_id, action, _ = asked.approval()
    with connect(world.database.url(role), application_name="test") as connection:
        for statement in (
            "SELECT answer_approval(%(id)s, %(action)s, true, '', '{}')",
            FORGED_APPROVAL,
        ):
            with pytest.raises(errors.InsufficientPrivilege):
                connection.execute(statement.encode(), {"id": approval_id, "action": action})


def test_a_person_can_neither_forge_nor_change_a_record(world: World, asked: Proposed, ada: Person) -> None:
    for statement in (
        FORGED_APPROVAL,
        "UPDATE approval_requests SET expires_at = 'infinity'",
        "INSERT INTO actions SELECT * FROM actions",
        "SELECT ask_approval(gen_random_uuid(), gen_random_uuid(), '', now(), 'x')",
        "SELECT * FROM insert_decision_events('[]')",
        "SELECT record_verdict(NULL, NULL, 1, NULL, 'permitted', false, NULL, NULL, NULL, NULL, '[]', '[]')",
    ):
        with pytest.raises(errors.InsufficientPrivilege):
            ada.connection.execute(statement.encode())


def test_the_event_of_an_answer_must_be_its_own(world: World, asked: Proposed, ada: Person, monkeypatch: Any) -> None:
    def forged(field: str, value: str) -> Any:
        def write(message: Any) -> str:
            text = json.loads(one_as_json(message))
            text["message"]["payload"][field] = value
            return json.dumps(text)

        return write

    forgeries = {"decided_by": "grace", "approval_id": asked.approval()[0].hex, "decision_id": "x"}
    for field, value in forgeries.items():
        monkeypatch.setattr(approvals, "one_as_json", forged(field, value))
        with pytest.raises(errors.CheckViolation):
            ada.answer(asked)
    monkeypatch.setattr(approvals, "one_as_json", one_as_json)
    assert ada.answer(asked) == "given"


def test_ten_thousand_other_hashes_approve_nothing(world: World, asked: Proposed, ada: Person) -> None:
    """Whoever was shown another action approves none."""
    approval_id, action, _ = asked.approval()
    changed = world.owner.execute(
        "SELECT array_agg(DISTINCT answer_approval(%(id)s, CASE"
        "  WHEN number < 32 THEN set_byte(%(action)s::bytea, number, get_byte(%(action)s::bytea, number) # 1)"
        "  ELSE sha256(convert_to(number::text, 'UTF8')) END, true, '', '{}')) FROM generate_series(0, 9999) AS number",
        {"id": approval_id, "action": action},
    ).fetchone()
    assert changed == (["changed"],)
    assert ada.answer(asked, action=b"x") == "changed"
    assert asked.rows("SELECT FROM approvals WHERE decision_id = %(id)s") == []


def test_an_approval_is_good_for_one_proposal_alone(world: World, asked: Proposed, ada: Person) -> None:
    """The engine never proposes twice; if it did, the same action in another account would need its own approval."""
    assert ada.answer(asked) == "given"
    asked.move("approved")
    asked.case.proposal["account"] = asked.case.evidence["portfolio"]["account"] = "other"
    with reopened(world, asked):
        asked.advance()
    assert asked.judge(nth=1).reasons == ("approval: a person was asked about this action in another proposal",)
    assert not asked.is_released()


@contextmanager
def reopened(world: World, proposed: Proposed) -> Iterator[None]:
    """Lets a decision propose again, which no sequence of states allows."""
    world.owner.execute("UPDATE decisions SET state = 'opened' WHERE decision_id = %s", [proposed.decision_id])
    yield


def test_requests_are_listed_until_they_are_answered(world: World, asked: Proposed, ada: Person) -> None:
    [request] = open_requests(ada.connection)
    assert request.decision_id == asked.decision_id
    assert request.shown.startswith("HEDGE: sell")
    assert request.proposed_by == "acp_decide"
    ada.answer(asked)
    assert open_requests(ada.connection) == []
