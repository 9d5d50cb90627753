"""The services around the engine within one process: whatever a queue would deliver is delivered here, at once."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, Self
from uuid import UUID

from control_plane.decisions.emit import message
from control_plane.decisions.engine import Engine
from control_plane.decisions.gatekeeper import judge
from control_plane.decisions.record import load_record
from control_plane.decisions.steps import EnginePolicy
from control_plane.model.decision_events import (
    AGENT_WORK,
    CLIENT_ACTIONS,
    DECISION_WORK,
    GATEKEEPER_WORK,
    AgentAnswered,
    ApprovalGiven,
)
from control_plane.platform.database import connect
from control_plane.platform.messages import one_as_json
from control_plane.platform.queries import load_queries
from control_plane.platform.telemetry import Telemetry
from domains import EVENT_TYPES, load_deciding
from domains.finance import paper_account
from domains.finance.deciding.playbook import UnusualBar

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from psycopg import Connection

    from control_plane.model.contract import Event, Payload
    from control_plane.model.deciding import Deciding

QUERIES: Final = load_queries("backtest")
TOPICS: Final = (DECISION_WORK, AGENT_WORK, GATEKEEPER_WORK, CLIENT_ACTIONS)
ROLES: Final = ("acp_decide", "acp_agent", "acp_gatekeeper", "acp_action", "acp_command")
_LEASE_SECONDS: Final = 30.0


def open_connection(url: str) -> Connection[Any]:
    """Returns a connection on which statements are prepared once they repeat: there is no pooler in between."""
    connection = connect(url, application_name="acp-backtest")
    connection.prepare_threshold = 3
    return connection


class PatientPlaybook(UnusualBar):
    """The playbook as it is, acting on anomalies of any age: these are years old."""

    limits = replace(UnusualBar.limits, oldest=timedelta(days=365_000))


def plug_ins() -> dict[str, Deciding]:
    """Returns what the domains plug in, with the playbook that takes its time."""
    return {name: replace(found, playbooks=(PatientPlaybook(),)) for name, found in load_deciding().items()}


class Services:
    """The engine, the agents, the gatekeeper, a client, and a person who approves whatever is asked.

    The client is the paper account where no other is given.
    """

    def __init__(
        self,
        url_of_role: Callable[[str], str],
        deciding: Mapping[str, Deciding],
        *,
        client: Callable[[Connection[Any], Event], bool] = paper_account.consume,
    ) -> None:
        self._client = client
        self._stack = ExitStack()
        self._as_role = {role: self._stack.enter_context(open_connection(url_of_role(role))) for role in ROLES}
        self._deciding = deciding
        self._agents = {agent.name: agent for found in self._deciding.values() for agent in found.agents}
        self._engine = Engine(self._deciding, policy=EnginePolicy(), telemetry=Telemetry("backtest"), name="backtest")
        self._seen = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def decide(self) -> Connection[Any]:
        """The engine's connection."""
        return self._as_role["acp_decide"]

    def skip_messages(self, connection: Connection[Any]) -> None:
        """Forgets what was stored before: anomalies are handed in one by one."""
        for number, _, _ in self._new_messages(connection):
            self._seen = number

    def show_bars(self, owner: Connection[Any], *, until: datetime | None = None) -> None:
        """Lets SignalLab know the bars up to an instant, or all of them, and fill the orders that they are due at."""
        owner.execute(QUERIES["show_bars"].sql, {"until": until})
        for source, entity_id, series in owner.execute(QUERIES["open_orders"].sql).fetchall():
            paper_account.fill_orders(self._as_role["acp_action"], source=source, entity_id=entity_id, series=series)

    def decide_on(self, reader: Connection[Any], anomaly: str) -> None:
        """Lets an anomaly, given as its message, be decided on until nothing is left to deliver."""
        self._deliver(DECISION_WORK, anomaly)
        while messages := self._new_messages(reader):
            for number, topic, text in messages:
                self._seen = number
                self._deliver(topic, text)

    def _new_messages(self, reader: Connection[Any]) -> list[tuple[int, str, str]]:
        rows: list[tuple[int, str, str]] = reader.execute(
            QUERIES["new_messages"].sql, {"topics": list(TOPICS), "after": self._seen}
        ).fetchall()
        return rows

    def _deliver(self, topic: str, text: str) -> None:
        event = EVENT_TYPES.parse_event(text)
        match topic:
            case "decisions.work":
                if event.event_type == "APPROVAL_REQUESTED":
                    self._engine.consume(self.decide, event)
                    self._approve(event)
                else:
                    self._engine.consume(self.decide, event)
            case "agents.work":
                self._answer(event)
            case "gatekeeper.work":
                self._judge(event)
            case "client.actions":
                self._client(self._as_role["acp_action"], event)

    def _judge(self, event: Event) -> None:
        decision_id, payload = UUID(event.payload["decision_id"]), event.payload
        record = load_record(self.decide, decision_id)
        assert record is not None
        gate = self._deciding[record.decision.domain].gate
        judge(self._as_role["acp_gatekeeper"], gate, decision_id, payload["proposal_seq"], payload["nth"])

    def _answer(self, event: Event) -> None:
        connection, call_id = self._as_role["acp_agent"], event.payload["call_id"]
        claim = {"call_id": call_id, "lease_seconds": _LEASE_SECONDS}
        row = connection.execute(QUERIES["claim_call"].sql, claim).fetchone()
        if row is None:
            return
        fence, name, attempt, request = row
        result = self._agents[name].call(bytes(request), attempt=attempt, seconds_left=_LEASE_SECONDS)
        about = {"decision_id": event.payload["decision_id"], "call_id": call_id, "agent": name}
        told = self._about(AgentAnswered(**about), event, f"answer:{call_id}")
        answer = {"call_id": call_id, "fence": fence, "answer": result.answer, "event": told}
        connection.execute(QUERIES["answer_call"].sql, answer)

    def _approve(self, event: Event) -> None:
        connection = self._as_role["acp_command"]
        about = {"decision_id": event.payload["decision_id"]}
        row = connection.execute(QUERIES["approval_request"].sql, about).fetchone()
        assert row is not None
        approval_id, action_sha256 = row
        given = ApprovalGiven(**about, approval_id=str(approval_id), decided_by="acp_command")
        told = self._about(given, event, f"approval:{approval_id}")
        connection.execute(
            QUERIES["answer_approval"].sql,
            {"approval_id": approval_id, "action_sha256": action_sha256, "event": told},
        )

    def _about(self, payload: Payload, event: Event, what: str) -> str:
        return one_as_json(
            message(
                payload,
                entity_id=event.entity_id,
                series=f"{event.payload['decision_id']}:{what}",
                at=datetime.now(UTC),
                trace_id=event.trace_id,
            )
        )
