"""Everything around the engine, in-process: messages are delivered from the outbox, twice, in any order."""

import json
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

from psycopg import Connection
from psycopg.types.json import Jsonb
from tests.conftest import TestDatabase

from control_plane.decisions.emit import emit, message
from control_plane.decisions.engine import Engine
from control_plane.decisions.opening import open_or_join
from control_plane.decisions.record import load_record, store_artifact
from control_plane.decisions.steps import EnginePolicy
from control_plane.decisions.timers import wake_due
from control_plane.model.contract import Event, Payload
from control_plane.model.deciding import AgentResult, Deciding, Record, derived_id
from control_plane.model.decision_events import (
    AGENT_WORK,
    CLIENT_ACTIONS,
    DECISION_WORK,
    GATEKEEPER_WORK,
    ActionExecuted,
    ActionRefused,
    ActionReleased,
    AgentAnswered,
    AgentFailed,
    AnomalyDetected,
    ApprovalDenied,
    ApprovalGiven,
    ApprovalRequested,
    SwitchSet,
)
from control_plane.platform.database import connect
from control_plane.platform.messages import NewMessage, one_as_json
from control_plane.platform.telemetry import Telemetry
from domains import EVENT_TYPES

WORK = (DECISION_WORK, AGENT_WORK, GATEKEEPER_WORK, CLIENT_ACTIONS)


def anomaly(
    *, entity: str = "W", age: timedelta = timedelta(), revision: int = 0, told: int = 0, **changes: Any
) -> NewMessage:
    """An ANOMALY_DETECTED of a bar; a revised bar's has another ``revision`` and the same instant.

    ``told`` says how often it was told before of the same revision.
    """
    at = changes.pop("at", None) or datetime.now(UTC) - age
    given: dict[str, Any] = {
        "kind": "wobble", "detector": "toy", "observed_source": "toy", "series": "1m", "bar_event_id": str(uuid4()),
        "bar_revision": revision, "score": 5.0, "threshold": 4.0, "details": {},
    }  # fmt: skip
    return message(
        AnomalyDetected(**(given | changes)),
        entity_id=entity,
        series=f"anomaly:{entity}:{revision}:{changes.get('is_withdrawn', False)}",
        at=at,
        trace_id=uuid4(),
        revision=told,
    )


class Connections(dict[str, Any]):
    """A connection per role, opened when it is first asked for; acp_decide2 is a second of acp_decide's."""

    wrap: Callable[[str, Any], Any] = staticmethod(lambda role, connection: connection)

    def __init__(self, database: TestDatabase) -> None:
        super().__init__()
        self._database = database

    def __missing__(self, role: str) -> Any:
        opened = connect(self._database.url(role.removesuffix("2")), application_name="test")
        self[role] = self.wrap(role, opened)
        return self[role]

    def close(self) -> None:
        for connection in self.values():
            connection.close()
        self.clear()


@dataclass
class World:
    """The services, each under its own role, and what they are told to do."""

    database: TestDatabase
    deciding: Mapping[str, Deciding]
    policy: EnginePolicy = field(default_factory=lambda: EnginePolicy(daily_budget_micros=1_000_000))
    verdict: str = "permitted"
    luck: random.Random = field(default_factory=lambda: random.Random(1))
    deaf: set[str] = field(default_factory=set)
    """Topics whose messages are lost."""
    calls: list[UUID] = field(default_factory=list)
    """Of agents, as they were made."""
    approval_seconds: float = 300
    steal: bool = False
    """Whether a test's playbook is to lose its lease."""

    def __post_init__(self) -> None:
        self.as_role = Connections(self.database)
        self.owner = connect(self.database.owner_url, application_name="test")
        self.telemetry = Telemetry("test")
        self.engine = self.another_engine()
        self._seen: set[int] = set()

    def another_engine(self, name: str = "test") -> Engine:
        return Engine(self.deciding, policy=self.policy, telemetry=self.telemetry, name=name)

    def close(self) -> None:
        self.as_role.close()
        self.owner.close()

    @property
    def decide(self) -> Connection[Any]:
        connection: Connection[Any] = self.as_role["acp_decide"]
        return connection

    # What is delivered

    def detect(self, *anomalies: NewMessage) -> None:
        emit(self.as_role["acp_detect"], *anomalies)

    def run(self, *, times: int = 2, before: Callable[[str, Event], None] = lambda topic, event: None) -> None:
        """Delivers every message of every topic of work, ``times`` times each, in any order, until none is new."""
        while batch := self.new_messages() * times:
            self.luck.shuffle(batch)
            for topic, text in batch:
                event = EVENT_TYPES.parse_event(text)
                before(topic, event)
                if topic not in self.deaf:
                    self.deliver(topic, event)

    def new_messages(self) -> list[tuple[str, str]]:
        rows = self.owner.execute(
            "SELECT id, topic, payload_json::text FROM outbox WHERE topic = ANY(%s) ORDER BY id", [list(WORK)]
        ).fetchall()
        new = [(topic, text) for number, topic, text in rows if number not in self._seen]
        self._seen |= {number for number, _, _ in rows}
        return new

    def deliver(self, topic: str, event: Event) -> None:
        match topic:
            case "decisions.work":
                self.engine.consume(self.decide, event)
            case "agents.work":
                self.answer(UUID(event.payload["call_id"]))
            case "gatekeeper.work":
                self.judge(UUID(event.payload["decision_id"]), event.payload["nth"])
            case "client.actions":
                self.execute(UUID(event.payload["action_id"]), UUID(event.payload["decision_id"]), event.entity_id)

    def wake(self, **options: float) -> int:
        return wake_due(self.decide, **options)

    def run_until(self, state: str, *, seconds: float = 30) -> None:
        """Fires timers and delivers messages until the only decision is in a state."""
        until = time.monotonic() + seconds
        while self.record().decision.state != state:
            assert time.monotonic() < until, f"it is {self.record().decision.state}, and not {state}"
            time.sleep(0.02)
            self.wake()
            self.run()

    def pass_deadline(self) -> None:
        """Its deadline is now."""
        self.owner.execute("UPDATE decisions SET deadline = clock_timestamp()")
        self.owner.execute("UPDATE timers SET due_at = clock_timestamp() WHERE kind = 'deadline'")

    def join(self, text: str) -> None:
        """Puts an anomaly on record, as the engine does before it looks at the decision."""
        self._join(self.decide, EVENT_TYPES.parse_event(text))

    def join_directly(self, given: NewMessage) -> None:
        """An anomaly that another instance puts on record meanwhile."""
        self._join(self.as_role["acp_decide2"], EVENT_TYPES.parse_event(given.message))

    def _join(self, connection: Any, event: Event) -> None:
        ((domain, playbook),) = [(name, one) for name, given in self.deciding.items() for one in given.playbooks]
        opened = open_or_join(
            connection,
            event,
            domain,
            playbook,
            is_shadow=False,
            now=datetime.now(UTC),
            claimant="another",
            lease_seconds=60,
        )
        if opened is not None and opened.fence is not None:
            connection.execute("SELECT leave_decision(%s, %s, 0)", [opened.decision_id, opened.fence])

    # The services that are not the engine

    def claim(self, call_id: UUID, lease_seconds: float = 5) -> Any:
        return (
            self.as_role["acp_agent"]
            .execute(
                "SELECT fence, decision_id, agent, attempt, request, trace_id, entity_id "
                "FROM claim_call(%s, 'test', %s)",
                [call_id, lease_seconds],
            )
            .fetchone()
        )

    def answer(self, call_id: UUID) -> None:
        if (claimed := self.claim(call_id)) is None:
            return
        self.calls.append(call_id)
        fence, decision_id, agent, attempt, request, trace_id, entity_id = claimed
        plug_in = next(one for domain in self.deciding.values() for one in domain.agents if one.name == agent)
        result = plug_in.call(bytes(request), attempt=attempt, seconds_left=5)
        self.report(call_id, fence, agent, result, (decision_id, trace_id, entity_id))

    def report(self, call_id: UUID, fence: int, agent: str, result: AgentResult, record: Any) -> bool:
        """Ends an attempt with its result; returns whether that counted."""
        decision_id = record.decision.decision_id if isinstance(record, Record) else record[0]
        about = {"decision_id": str(decision_id), "call_id": str(call_id), "agent": agent}
        said: Payload = (
            AgentAnswered(**about)
            if result.outcome == "answered"
            else AgentFailed(**about, outcome=result.outcome, reason=result.error or "none")  # type: ignore[arg-type]
        )
        woken = one_as_json(self.about(said, record, f"answer:{call_id}"))
        row = (
            self.as_role["acp_agent"]
            .execute(
                "SELECT answer_call(%s, %s, %s, %s, %s, %s, NULL, NULL, NULL, %s::json, NULL, %s)",
                [
                    call_id,
                    fence,
                    result.outcome,
                    result.answer,
                    result.error,
                    result.cost_micros,
                    woken,
                    result.retry_after_seconds,
                ],
            )
            .fetchone()
        )
        assert row is not None
        return bool(row[0])

    def judge(self, decision_id: UUID, nth: int) -> None:
        """Judges as it is told to; once per request, as the gatekeeper does."""
        connection = self.as_role["acp_gatekeeper"]
        record = load_record(connection, decision_id)
        assert record is not None
        proposal = record.all("proposal")[-1]
        verdict_id = derived_id("verdict", decision_id, proposal.seq, nth)
        with connection.transaction():
            if connection.execute("SELECT 1 FROM verdicts WHERE verdict_id = %s", [verdict_id]).fetchone():
                return
            approval = record.last("approval")
            verdict = "permitted" if self.verdict == "needs_approval" and approval is not None else self.verdict
            policy, request = (
                store_artifact(connection, "policy", b"permit"),
                store_artifact(connection, "request", b"{}"),
            )
            connection.execute(
                "SELECT record_verdict(%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, '[]', '[]')",
                [
                    verdict_id, decision_id, proposal.seq, proposal.output_sha256, verdict, record.decision.is_shadow,
                    approval and UUID(approval.body["approval_id"]), policy, policy, request,
                ],
            )  # fmt: skip
            self._follow(connection, record, "refused" if record.decision.is_shadow else verdict, verdict_id)

    def _follow(self, connection: Connection[Any], record: Record, verdict: str, verdict_id: UUID) -> None:
        decision_id, proposal = record.decision.decision_id, record.all("proposal")[-1]
        until = datetime.now(UTC) + timedelta(seconds=self.approval_seconds)
        assert proposal.output_sha256 is not None
        action = proposal.output_sha256.hex()
        match verdict:
            case "refused":
                said: Payload = ActionRefused(
                    decision_id=str(decision_id), verdict_id=str(verdict_id), reason="told to"
                )
            case "needs_approval":
                approval_id = derived_id("approval", decision_id, action)
                connection.execute(
                    "SELECT ask_approval(%s, %s, %s, %s, 'Nudge it?')",
                    [approval_id, decision_id, proposal.output_sha256, until],
                )
                said = ApprovalRequested(
                    decision_id=str(decision_id), approval_id=str(approval_id), action_sha256=action, expires_at=until
                )
            case _:
                action_id = derived_id("action", decision_id)
                said = ActionReleased(
                    decision_id=str(decision_id), action_id=str(action_id), action_type="NUDGE", account="toy",
                    action_sha256=action, expires_at=until,
                )  # fmt: skip
                told = self.about(said, record, "released")
                connection.execute(
                    "INSERT INTO actions (action_id, decision_id, idempotency_key, domain, action_type, account, "
                    "action_sha256, verdict_id, event_id, expires_at) "
                    "VALUES (%s, %s, %s, 'toy', 'NUDGE', 'toy', %s, %s, %s, %s)",
                    [
                        action_id,
                        decision_id,
                        str(decision_id),
                        proposal.output_sha256,
                        verdict_id,
                        told.message["event_id"],
                        until,
                    ],
                )
                emit(connection, told)
                return
        emit(connection, self.about(said, record, verdict))

    def approve(self, decision_id: UUID, *, gives: bool = True) -> str:
        record = load_record(self.decide, decision_id)
        assert record is not None
        asked = record.all("approval_asked")[-1].body
        made = ApprovalGiven if gives else ApprovalDenied
        said = made(decision_id=str(decision_id), approval_id=asked["approval_id"], decided_by="acp_command")
        told = self.about(said, record, "approval")
        row = (
            self.as_role["acp_command"]
            .execute(
                "SELECT answer_approval(%s, %s, %s, '', %s::json)",
                [asked["approval_id"], bytes.fromhex(asked["action_sha256"][2:]), gives, one_as_json(told)],
            )
            .fetchone()
        )
        assert row is not None
        return str(row[0])

    def may_execute(self) -> str:
        """What a client is told of the only action that was released."""
        ((action_id,),) = self.rows("SELECT action_id FROM actions")
        row = self.as_role["acp_action"].execute("SELECT begin_execution(%s)", [action_id]).fetchone()
        assert row is not None
        return str(row[0])

    def execute(self, action_id: UUID, decision_id: UUID, entity_id: str | None) -> None:
        connection = self.as_role["acp_action"]
        with connection.transaction():
            row = connection.execute("SELECT begin_execution(%s)", [action_id]).fetchone()
            if row == ("ready",):
                said = ActionExecuted(decision_id=str(decision_id), action_id=str(action_id))
                told = self.about(said, (decision_id, uuid4(), entity_id), "execution")
                connection.execute(
                    "SELECT record_execution(%s, 'executed', '', %s, %s::json)",
                    [action_id, Jsonb({"by": 1}), one_as_json(told)],
                )

    some_id = UUID(int=7)

    def switch(self, scope: str, *, off: bool) -> None:
        said = SwitchSet(scope=scope, is_off=off, set_by="acp_command", reason="")
        at = datetime.now(UTC)
        told = message(said, entity_id=None, series=f"switch:{scope}", at=at, trace_id=uuid4())
        self.as_role["acp_command"].execute("SELECT set_switch(%s, %s, '', %s::json)", [scope, off, one_as_json(told)])

    def about(self, said: Payload, record: Any, what: str) -> NewMessage:
        """An event of a decision, which is given by its row or by (id, trace, entity)."""
        decision_id, trace_id, entity_id = (
            (record.decision.decision_id, record.decision.trace_id, record.decision.entity_id)
            if isinstance(record, Record)
            else record
        )
        return message(
            said,
            entity_id=entity_id,
            series=f"{decision_id}:{what}",
            at=datetime.now(UTC),
            trace_id=trace_id,
        )

    # What is seen

    def records(self) -> list[Record]:
        rows = self.owner.execute("SELECT decision_id FROM decisions ORDER BY opened_at").fetchall()
        found = [load_record(self.decide, decision_id) for (decision_id,) in rows]
        return [record for record in found if record is not None]

    def record(self) -> Record:
        (record,) = self.records()
        return record

    def rows(self, sql: str, *given: Any) -> list[Any]:
        return self.owner.execute(sql.encode(), given).fetchall()

    def events(self) -> list[str]:
        return [row[0] for row in self.rows("SELECT event_type FROM events ORDER BY seq")]


def kinds(record: Record) -> list[str]:
    return [step.kind for step in record.steps]


def last_body(record: Record, kind: str) -> Any:
    step = record.last(kind)
    assert step is not None
    return json.loads(json.dumps(step.body))
