"""Ways round the gate: only the gatekeeper releases, by a verdict of its own; what is broken releases nothing."""

import ast
import inspect
import json
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from psycopg import Connection, errors
from tests.conftest import ROLES
from tests.integration.gatekeeper.world import World, in_threads, without
from tests.judgements import AT, market_wide_case

from control_plane.decisions import gatekeeper, judgement, policy
from control_plane.decisions.emit import emit, message
from control_plane.decisions.switches import list_switches, set_switch
from control_plane.model.decision_events import CLIENT_ACTIONS, ActionReleased
from control_plane.platform.database import connect
from domains.finance import approval_text, evidence_check, gate
from domains.finance.gate import FinanceGate

REFUSALS = (
    errors.InsufficientPrivilege,
    errors.CheckViolation,
    errors.ForeignKeyViolation,
    errors.NotNullViolation,
    errors.RaiseException,
)

RELEASES = {
    "an action without a verdict": (
        "INSERT INTO actions (action_id, decision_id, idempotency_key, domain, action_type, account, action_sha256,"
        " verdict_id, event_id, expires_at) SELECT gen_random_uuid(), decision_id, 'k', 'finance', 'HEDGE', 'paper',"
        " output_sha256, gen_random_uuid(), gen_random_uuid(), now() + interval '1 hour' FROM decision_steps"
        " WHERE kind = 'proposal'"
    ),
    "a message without an action": "SELECT * FROM insert_decision_events(%(client)s::json)",
    "a message beside another topic": "SELECT * FROM insert_decision_events(%(beside)s::json)",
    "a message as a source's": "SELECT * FROM insert_events(%(client)s::json)",
    "a message as a backfill's": "SELECT * FROM insert_unpromised_events(%(client)s::json)",
    "a message past the owner's functions": "SELECT * FROM write_events(%(client)s::json)",
    "a row of the outbox": (
        "INSERT INTO outbox (event_id, topic, event_type, schema_version, trace_id, payload_json)"
        " SELECT event_id, 'client.actions', 'ACTION_RELEASED', 1, trace_id, '{}' FROM events LIMIT 1"
    ),
    "a delivery": "INSERT INTO pending_deliveries (outbox_id, subscription) VALUES (1, 'actions')",
    "a topic that is renamed": "UPDATE outbox SET topic = 'client.actions'",
    "a trigger that is off": "ALTER TABLE actions DISABLE TRIGGER ALL",
    "triggers that are skipped": "SET session_replication_role = replica",
    "an execution": "INSERT INTO executions (action_id, outcome) VALUES (gen_random_uuid(), 'executed')",
    "a state": "UPDATE decisions SET state = 'released'",
    "a verdict by hand": (
        "INSERT INTO verdicts (verdict_id, decision_id, proposal_seq, verdict, is_shadow, reasons, errors)"
        " SELECT gen_random_uuid(), decision_id, 1, 'permitted', false, '[]', '[]' FROM decisions"
    ),
}


def released_message(**changes: Any) -> list[dict[str, Any]]:
    payload = ActionReleased(
        decision_id=str(uuid4()),
        action_id=str(uuid4()),
        action_type="HEDGE",
        account="paper",
        action_sha256="0" * 64,
        expires_at=datetime(2026, 1, 6, tzinfo=UTC),
    )
    made = message(payload, entity_id="AAPL", series="x", at=AT, trace_id=uuid4())
    return [{"topic": CLIENT_ACTIONS, "also_topics": [], "raw_payload_id": None, "message": made.message} | changes]


@pytest.mark.parametrize("way", RELEASES)
def test_no_role_releases_past_the_gate(world: World, way: str) -> None:
    world.propose()
    values = {
        "client": json.dumps(released_message()),
        "beside": json.dumps(released_message(topic="decisions.events", also_topics=[CLIENT_ACTIONS])),
    }
    for role in ROLES:
        with world.as_role(role) as connection, pytest.raises(REFUSALS):
            connection.execute(RELEASES[way].encode(), values if "%(" in RELEASES[way] else None)
    assert releases(world) == (0, 0)


def releases(world: World) -> tuple[int, int]:
    """How many actions are released, and how many messages for clients there are."""
    row = world.owner.execute(
        "SELECT (SELECT count(*) FROM actions), (SELECT count(*) FROM outbox WHERE topic LIKE 'client.%')"
    ).fetchone()
    assert row is not None
    return row[0], row[1]


def insert_action(world: World, decision_id: Any, verdict_id: Any, **changes: Any) -> None:
    """An action as the gatekeeper's role, with a verdict that exists."""
    row = world.owner.execute(
        "SELECT output_sha256 FROM decision_steps WHERE decision_id = %s AND kind = 'proposal'", [decision_id]
    ).fetchone()
    assert row is not None
    values = {
        "decision_id": decision_id,
        "verdict_id": verdict_id,
        "domain": "finance",
        "sha256": row[0],
        "hours": 1,
    } | changes
    world.gatekeeper.execute(
        "INSERT INTO actions (action_id, decision_id, idempotency_key, domain, action_type, account, action_sha256,"
        " verdict_id, event_id, expires_at) VALUES (gen_random_uuid(), %(decision_id)s, 'k', %(domain)s, 'HEDGE',"
        " 'paper', %(sha256)s, %(verdict_id)s, gen_random_uuid(), now() + make_interval(hours => %(hours)s))",
        values,
    )


def record_verdict(world: World, decision_id: Any, verdict: str = "permitted", **changes: Any) -> Any:
    """A verdict as the gatekeeper's role may record it."""
    verdict_id = uuid4()
    world.gatekeeper.execute(
        "SELECT record_verdict(%(verdict_id)s, %(decision_id)s, 1, output_sha256, %(verdict)s, %(shadow)s,"
        " %(approval)s, output_sha256, output_sha256, output_sha256, '[]', '[]') FROM decision_steps"
        " WHERE decision_id = %(decision_id)s AND kind = 'proposal'",
        {"verdict_id": verdict_id, "decision_id": decision_id, "verdict": verdict, "shadow": False, "approval": None}
        | changes,
    )
    return verdict_id


def release_by_hand(world: World, decision_id: Any, recorded: Any = None, inserted: Any = None) -> None:
    """A verdict and its action as the gatekeeper's role could write them without judging."""
    with world.gatekeeper.transaction():
        insert_action(world, decision_id, record_verdict(world, decision_id, **(recorded or {})), **(inserted or {}))


@pytest.mark.parametrize(
    ("recorded", "inserted"),
    [
        ({"verdict": "refused"}, {}),
        ({"verdict": "needs_approval"}, {}),
        ({"shadow": True}, {}),
        ({"approval": uuid4()}, {}),
        ({}, {"domain": "other"}),
        ({}, {"hours": -1}),
        ({}, {"sha256": b"x"}),
    ],
)
def test_the_gatekeepers_role_needs_a_verdict_that_fits(
    world: World, recorded: dict[str, Any], inserted: dict[str, Any]
) -> None:
    proposed = world.propose()
    with pytest.raises(REFUSALS):
        release_by_hand(world, proposed.decision_id, recorded, inserted)
    assert releases(world) == (0, 0)


def test_a_verdict_of_an_earlier_transaction_releases_nothing(world: World) -> None:
    proposed = world.propose()
    verdict_id = record_verdict(world, proposed.decision_id)
    with pytest.raises(errors.InsufficientPrivilege, match="no positive verdict of its own"):
        insert_action(world, proposed.decision_id, verdict_id)
    other = world.propose(entity="MSFT")
    with pytest.raises(errors.InsufficientPrivilege), world.gatekeeper.transaction():
        insert_action(world, other.decision_id, record_verdict(world, proposed.decision_id))
    [(pins,)] = proposed.rows("SELECT pins_sha256 FROM decisions WHERE decision_id = %(id)s")
    with pytest.raises(errors.InsufficientPrivilege):
        release_by_hand(world, other.decision_id, inserted={"sha256": pins})
    assert releases(world) == (0, 0)


@pytest.mark.parametrize("state", ["opened", "refused", "denied", "abandoned", "observing", "approved"])
def test_a_decision_in_another_state_releases_nothing(world: World, state: str) -> None:
    proposed = world.propose()
    world.owner.execute("UPDATE decisions SET state = %s", [state])
    with pytest.raises(errors.InsufficientPrivilege):
        release_by_hand(world, proposed.decision_id)
    assert releases(world) == (0, 0)


def test_a_released_action_sends_no_other_message(world: World) -> None:
    proposed = world.propose()

    def release_and_send_another() -> None:
        payload = ActionReleased.model_validate(released_message()[0]["message"]["payload"])
        told = message(payload, entity_id="AAPL", series="y", at=AT, trace_id=uuid4())
        with world.gatekeeper.transaction():
            insert_action(world, proposed.decision_id, record_verdict(world, proposed.decision_id))
            emit(world.gatekeeper, told)

    with pytest.raises(errors.InsufficientPrivilege, match="released no such action"):
        release_and_send_another()
    assert releases(world) == (0, 0)


# Broken dependencies


def unreadable(_: Any) -> str:
    raise OSError("it is gone")


BROKEN: dict[str, dict[str, Any]] = {
    "policies missing": {"policies": property(unreadable)},
    "policies empty": {"policies": property(lambda _: "")},
    "policies that cannot be parsed": {"policies": property(lambda _: "permit (")},
    "a policy that errs": {
        "policies": property(
            lambda _: (
                FinanceGate().policies
                + '@id("e") forbid (principal, action, resource)'
                + " when { context.quantity_micros * 4611686018427387904 == 5 };"
            )
        )
    },
    "schema missing": {"schema": property(unreadable)},
    "schema of something else": {"schema": property(lambda _: "entity Playbook;")},
    "evidence that cannot be checked": {"check_evidence": unreadable},
    "a request that cannot be made": {"policy_request": lambda *_: unreadable(_)},
    "a request of another shape": {"policy_request": lambda *_: {"context": {}}},
    "no types of action": {"action_types": {}},
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_dependency_refuses_and_is_on_record(world: World, name: str) -> None:
    proposed = world.propose()
    verdict = proposed.judge(gate=type("Broken", (FinanceGate,), BROKEN[name])())
    assert (verdict.verdict, verdict.is_released) == ("refused", False)
    assert verdict.errors or name == "no types of action"
    assert releases(world) == (0, 0)


@pytest.mark.parametrize("table", ["switch_lock", "switches", "decisions"])
def test_a_lock_that_is_not_had_in_time_releases_nothing(
    world: World, table: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gatekeeper, "LOCK_TIMEOUT", "100ms")
    proposed = world.propose()
    with connect(world.database.owner_url, application_name="test") as other, other.transaction():
        other.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE".encode())
        with pytest.raises(errors.LockNotAvailable):
            proposed.judge()
    assert (proposed.verdicts(), releases(world)) == ([], (0, 0))
    assert proposed.judge().is_released


def test_switches_that_cannot_be_read_release_nothing(world: World) -> None:
    proposed = world.propose()
    world.owner.execute("ALTER TABLE switches RENAME TO gone")
    with pytest.raises(psycopg.Error):
        proposed.judge()
    assert releases(world) == (0, 0)


@pytest.mark.parametrize("module", [gatekeeper, judgement, policy, gate, evidence_check, approval_text])
def test_no_clock_but_the_databases_is_asked(module: Any) -> None:
    called = {node.attr for node in ast.walk(ast.parse(inspect.getsource(module))) if isinstance(node, ast.Attribute)}
    assert not called & {"utcnow", "today", "time", "monotonic", "perf_counter", "fromtimestamp"}
    assert "datetime.now" not in inspect.getsource(module)


# Switches


@pytest.mark.parametrize("scope", ["all", "domain:finance", "playbook:unusual_bar", "action:HEDGE"])
def test_what_is_switched_off_is_not_released(world: World, scope: str) -> None:
    proposed = world.propose()
    assert set_switch(world.owner, scope, off=True, reason="drill") == "acp_owner"
    assert proposed.judge().reasons == (f"switch: {scope} is switched off",)
    set_switch(world.owner, scope, off=False)
    assert world.propose(entity="MSFT").judge().is_released
    assert [(switch.scope, switch.is_off, switch.set_by) for switch in list_switches(world.owner)] == [
        (scope, False, "acp_owner")
    ]
    told = world.owner.execute(
        "SELECT payload_json -> 'is_off' FROM events WHERE event_type = 'SWITCH_SET' ORDER BY seq"
    )
    assert [row[0] for row in told] == [True, False]


def test_other_scopes_hold_nothing_back(world: World) -> None:
    proposed = world.propose()
    record_call(world, proposed.decision_id, "hypotheses", "1+gpt-4")
    record_call(world, proposed.decision_id, "executive_summary", "1+lost", outcome="unknown")
    others = ("domain:other", "playbook:other", "action:REDUCE", "agent:other", "agent:executive_summary")
    for scope in (*others, "model:gpt", "model:gpt-4o", "model:1", "model:lost"):
        set_switch(world.owner, scope, off=True)
    assert proposed.judge().is_released


@pytest.mark.parametrize("scope", ["agent:hypotheses", "model:acme/large:v1"])
def test_answers_of_what_is_off_release_nothing(world: World, scope: str) -> None:
    proposed, earlier = world.propose(), world.propose(entity="MSFT")
    for one in (proposed, earlier):
        record_call(world, one.decision_id, "hypotheses", "1+acme/large:v1")
    assert earlier.judge().is_released
    set_switch(world.owner, scope, off=True)
    assert proposed.judge().reasons == (f"switch: {scope} is switched off",)
    with world.as_role("acp_action") as client:
        [(action_id,)] = earlier.rows("SELECT action_id FROM actions WHERE decision_id = %(id)s")
        assert client.execute("SELECT begin_execution(%s)", [action_id]).fetchone() == (f"off: {scope}",)


def record_call(world: World, decision_id: Any, agent: str, version: str, *, outcome: str = "answered") -> None:
    """A call of an agent that ended."""
    world.owner.execute(
        "INSERT INTO agent_calls (call_id, decision_id, step_seq, agent, agent_version, attempt, request_sha256,"
        " deadline, outcome, answer_sha256, ended_at) SELECT gen_random_uuid(), decision_id, 1, %(agent)s, %(version)s,"
        " 1, pins_sha256, now(), %(outcome)s, pins_sha256, now() FROM decisions WHERE decision_id = %(id)s",
        {"agent": agent, "version": version, "outcome": outcome, "id": decision_id},
    )


def test_a_queued_action_is_held_back_at_its_execution(world: World) -> None:
    proposed = world.propose()
    assert proposed.judge().is_released
    set_switch(world.owner, "all", off=True)
    with world.as_role("acp_action") as client:
        [(action_id,)] = proposed.rows("SELECT action_id FROM actions WHERE decision_id = %(id)s")
        assert client.execute("SELECT begin_execution(%s)", [action_id]).fetchone() == ("off: all",)


def test_an_approved_action_is_held_back_by_a_switch(world: World) -> None:
    proposed = world.propose(market_wide_case())
    set_switch(world.owner, "action:HEDGE", off=True)
    assert proposed.judge().reasons == ("switch: action:HEDGE is switched off",)
    assert proposed.rows("SELECT FROM approval_requests") == []


def test_once_a_switch_is_set_no_release_is_committed(world: World) -> None:
    entities = ["AAPL", "MSFT", "IBM", "GOOG", "FB", "AMZN"]
    waiting = [world.propose(entity=entity) for entity in entities]
    many = type("Many", (FinanceGate,), {"policies": property(lambda _: without("daily_releases"))})()
    with ExitStack() as stack:
        connections = [
            stack.enter_context(connect(world.database.url("acp_gatekeeper"), application_name="test")) for _ in waiting
        ]
        command = stack.enter_context(connect(world.database.owner_url, application_name="test"))

        def work(number: int) -> Any:
            if number == len(waiting):
                set_switch(command, "all", off=True)
                return count(command)
            return waiting[number].judge(connection=connections[number], gate=many).verdict

        *verdicts, at_switch = in_threads(len(waiting) + 1, work)
    assert releases(world)[0] == at_switch == verdicts.count("permitted")


def count(connection: Connection[Any]) -> int:
    row = connection.execute("SELECT count(*) FROM actions").fetchone()
    assert row is not None
    return int(row[0])
