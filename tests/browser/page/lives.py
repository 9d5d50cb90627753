"""One event and one decision to which everything happened, made by the functions and services that make it happen."""

from __future__ import annotations

import json
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from tests.integration import seeds
from tests.integration.decisions.finance import LAST, SOURCE, STOCKS, closes, hold, instant, past, wobble
from tests.integration.functions.invoked import VARIABLES, Function, failures, record

from backtest.services import QUERIES, Services, plug_ins
from control_plane.model.decision_events import AgentFailed
from control_plane.model.lifecycle import Accepted, Failed
from control_plane.platform.database import connect

if TYPE_CHECKING:
    from collections.abc import Iterator
    from uuid import UUID

    from psycopg import Connection
    from tests.conftest import TestDatabase
    from tests.integration.ops_api.server import ApiServer

    from control_plane.model.contract import Event
    from control_plane.model.lifecycle import Outcome

SUBSCRIPTION = "signal_lab"
REFUSED = "the queue refused it: <b>SerializationError</b>"
HEADLINE = '{"headline": 7, "text": "<script>alert(1)</script>"}'


def live_event(database: TestDatabase, api: ApiServer, *, entity_id: str = "NVDA") -> UUID:
    """Makes an event whose relay failed twice, that was given up on, redriven and delivered; whose consumer failed
    twice, and gave it up; that was redriven and delivered again, and processed once, though it was handed out twice.
    """
    with (
        connect(database.app_url, application_name="test") as app,
        connect(database.owner_url, application_name="test") as owner,
    ):
        # Whatever else is pending stays as it is.
        owner.execute("UPDATE pending_deliveries SET next_attempt_at = next_attempt_at + interval '1 day'")
        [event_id] = seeds.store(app, seeds.ticks(1, entity_id=entity_id))
        for _ in range(2):
            _attempt(app, owner, event_id, Failed(REFUSED))
        _redrive(api, event_id)
        _attempt(app, owner, event_id, Accepted("m-1"))
        row = app.execute("SELECT payload_json::text FROM outbox WHERE event_id = %s", [event_id]).fetchone()
        assert row is not None
        with loaded("signal_lab", database.url("acp_consume")) as consumer:
            owner.execute("ALTER TABLE signal_lab_bars ADD CONSTRAINT poison CHECK (price < 0) NOT VALID")
            message = record(row[0], 1, event_id=str(event_id))
            for received in ("1", "2"):
                message["attributes"]["ApproximateReceiveCount"] = received
                assert failures(consumer({"Records": [message]})) == [message["messageId"]]
            owner.execute("ALTER TABLE signal_lab_bars DROP CONSTRAINT poison")
            queues = {
                "DEAD_LETTER_QUEUES": json.dumps({SUBSCRIPTION: "ticks-dead"}),
                "FAILED_INVOCATIONS_QUEUE": "failed",
            }
            with loaded("dead_letter", database.url("acp_maintain"), **queues) as moving:
                given_up = message | {"eventSourceARN": "arn:aws:sqs:us-east-1:123456789012:ticks-dead"}
                assert failures(moving({"Records": [given_up]})) == []
            _redrive(api, event_id)
            _attempt(app, owner, event_id, Accepted("m-2"))
            for _ in range(2):
                assert failures(consumer({"Records": [record(row[0], 2, event_id=str(event_id))]})) == []
        owner.execute("UPDATE pending_deliveries SET next_attempt_at = next_attempt_at - interval '1 day'")
    return event_id


def _attempt(app: Connection[Any], owner: Connection[Any], event_id: UUID, outcome: Outcome) -> None:
    """Makes an attempt of the relay on this event alone, with two attempts as the most."""
    owner.execute(
        "UPDATE pending_deliveries SET next_attempt_at = now() FROM outbox WHERE id = outbox_id AND event_id = %s",
        [event_id],
    )
    claim = seeds.claim(app, max_attempts=2, subscriptions=[SUBSCRIPTION])
    assert seeds.settle(app, claim, outcome, max_attempts=2) == [event_id]


def _redrive(api: ApiServer, event_id: UUID) -> None:
    chosen = {"kind": "redrive", "filter": {"event_id": str(event_id)}, "reason": "its cause is mended"}
    operation_id = api.ask("POST", "/operations", chosen)["operation_id"]
    planned = api.ask("GET", f"/operations/{operation_id}")
    started = {"plan_hash": planned["plan_hash"], "reason": "its cause is mended"}
    api.ask("POST", f"/operations/{operation_id}/start", started)
    assert api.ask("GET", f"/operations/{operation_id}")["state"] == "done"


@contextmanager
def loaded(name: str, url: str, **variables: str) -> Iterator[Function]:
    """Loads a function with settings of its own, until the block ends."""
    with pytest.MonkeyPatch.context() as environ:
        for variable in VARIABLES:
            environ.delenv(variable, raising=False)
        for variable, value in ({"DATABASE_URL": url} | variables).items():
            environ.setenv(variable, value)
        function = Function(name)
        try:
            yield function
        finally:
            function.close()


class OnceWrong(Services):
    """Services with which one agent's first answer is none, so that it is asked again."""

    agent: str = "executive_summary"

    def _answer(self, event: Event) -> None:
        if self.agent and self._asked_of(event) == self.agent:
            self.agent = ""
            self._answer_wrongly(event)
            return
        super()._answer(event)

    def _asked_of(self, event: Event) -> str:
        query = "SELECT agent FROM agent_calls WHERE call_id = %s"
        row = self.decide.execute(query, [event.payload["call_id"]]).fetchone()
        assert row is not None
        return str(row[0])

    def _answer_wrongly(self, event: Event) -> None:
        connection, call_id = self._as_role["acp_agent"], event.payload["call_id"]
        row = connection.execute(QUERIES["claim_call"].sql, {"call_id": call_id, "lease_seconds": 30}).fetchone()
        assert row is not None
        said = "headline: Input should be a valid string"
        about = {"decision_id": event.payload["decision_id"], "call_id": call_id, "agent": row[1]}
        told = self._about(AgentFailed(**about, outcome="invalid", reason=said), event, f"answer:{call_id}")
        connection.execute(
            "SELECT answer_call(%s, %s, 'invalid', %s, %s, 1200, 900, 40, NULL, %s::json)",
            [call_id, row[0], HEADLINE.encode(), said, told],
        )


def live_decisions(database: TestDatabase) -> list[UUID]:
    """Makes finance decide on a falling market: the first decision was repaired once, approved, executed and scored;
    the others were refused. Returns their ids, in the order in which they were opened.
    """
    with (
        connect(database.owner_url, application_name="test") as owner,
        connect(database.app_url, application_name="test") as app,
        OnceWrong(database.url, plug_ins()) as services,
    ):
        for entity in STOCKS:
            values = wobble(LAST, entity=entity)
            past(owner, entity, values[:-1])
            closes(app, entity, values[-1:], first=LAST - 1)
        hold(owner, AAPL=100, IBM=100, MSFT=100)
        services.skip_messages(app)
        fallen = {entity: round(wobble(LAST, entity=entity)[-1] * 0.8, 4) for entity in STOCKS}
        for entity, close in fallen.items():
            closes(app, entity, [close], first=LAST)
        told = _anomalies(app)
        for entity, close in fallen.items():
            closes(app, entity, [round(close * step, 4) for step in (0.99, 0.97, 0.98, 0.95, 0.94)], first=LAST + 1)
        services.show_bars(app, until=instant(LAST))
        services.skip_messages(app)
        for text in told:
            services.decide_on(app, text)
        query = "SELECT decision_id FROM decisions WHERE source = %s ORDER BY opened_at"
        found = app.execute(query, [SOURCE]).fetchall()
        return [decision_id for (decision_id,) in found]


def _anomalies(app: Connection[Any]) -> list[str]:
    query = (
        "SELECT payload_json::text FROM outbox WHERE event_type = 'ANOMALY_DETECTED' AND topic = 'decisions.work'"
        " AND payload_json->'payload'->>'observed_source' = %s ORDER BY id"
    )
    return [text for (text,) in app.execute(query, [SOURCE]).fetchall()]
