"""SignalLab's paper account: what a released action does to it, once, and how its orders are filled. No money moves."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import UUID

from psycopg import Connection

from control_plane.consumers.once import once
from control_plane.model.contract import Event, new_event, parse_payload
from control_plane.model.decision_events import (
    DECISIONS_SOURCE,
    ActionExecuted,
    ActionFailed,
    ActionReleased,
)
from control_plane.model.errors import ContractViolation
from control_plane.platform.messages import NewMessage, one_as_json
from control_plane.platform.queries import load_queries
from domains.finance.paper_account.orders import Order, read_order

QUERIES: Final = load_queries(__package__)
CONSUMER: Final = "actions"


@dataclass(frozen=True, slots=True)
class Execution:
    """What came of one released action."""

    outcome: str
    """executed or failed."""
    reason: str = ""
    effect: Mapping[str, Any] = field(default_factory=dict)


def consume(connection: Connection[Any], event: Event) -> bool:
    """Executes a released action, once in effect; returns whether it was executed or failed now.

    What has expired or is switched off is not executed, however late or often its message comes: it failed, and says
    why. Another event type is none of its business. Raises ContractViolation for an action that nobody released,
    psycopg.Error where the database fails, which delivers the message again.
    """
    if (event.event_type, event.schema_version) != (ActionReleased.event_type, ActionReleased.schema_version):
        return False
    released = parse_payload(ActionReleased, event.payload)
    action_id = UUID(released.action_id)
    with once(connection, consumer=CONSUMER, event_id=event.event_id) as is_first:
        may = _one(connection, "begin_execution", action_id=action_id) if is_first else "done"
        if may == "done":
            return False
        if may == "unknown":
            raise ContractViolation("was never released", field="action_id", value=released.action_id)
        execution = _place(connection, action_id) if may == "ready" else Execution("failed", _REASONS.get(may, may))
        _one(
            connection,
            "record_execution",
            action_id=action_id,
            outcome=execution.outcome,
            reason=execution.reason,
            effect=json.dumps(execution.effect),
            wake_event=one_as_json(_told(event, released, execution)),
        )
    return True


def fill_orders(connection: Connection[Any], *, source: str, entity_id: str, series: str) -> int:
    """Fills the open orders of an instrument at its next bar, in the caller's transaction; returns how many."""
    filled: int = _one(connection, "fill_orders", source=source, entity_id=entity_id, series=series)
    return filled


_REASONS: Final = {
    "expired": "it was not executed before it expired",
    "superseded": "what it was decided on has been superseded since its release",
}


def _place(connection: Connection[Any], action_id: UUID) -> Execution:
    row = connection.execute(QUERIES["released_action"].sql, {"action_id": action_id}).fetchone()
    assert row is not None, "begin_execution has found it"
    _decision_id, account, action_type, body = row
    order = read_order(body)
    if order is None:
        return Execution("failed", f"the paper account knows no action like this {action_type}")
    currency = connection.execute(QUERIES["account_currency"].sql, {"account": account}).fetchone()
    if currency is None or currency[0] != order.currency:
        return Execution("failed", f"there is no account {account} in {order.currency}")
    newest = _one(connection, "newest_bar", source=order.source, entity_id=order.entity_id, series=order.series)
    if newest is None:
        return Execution("failed", f"SignalLab has no bar of {order.entity_id} yet, so that nothing tells its price")
    connection.execute(
        QUERIES["place_order"].sql,
        {
            "action_id": action_id,
            "account": account,
            "source": order.source,
            "entity_id": order.entity_id,
            "series": order.series,
            "side": order.side,
            "quantity_micros": order.quantity_micros,
            "fill_after": newest,
        },
    )
    return Execution("executed", effect=_effect(order))


def _effect(order: Order) -> Mapping[str, Any]:
    return {"order": {"side": order.side, "entity_id": order.entity_id, "quantity_micros": order.quantity_micros}}


def _told(released: Event, action: ActionReleased, execution: Execution) -> NewMessage:
    """The event that says so; its id follows from the release, so that a second run derives it again."""
    payload = (
        ActionExecuted(decision_id=action.decision_id, action_id=action.action_id)
        if execution.outcome == "executed"
        else ActionFailed(decision_id=action.decision_id, action_id=action.action_id, reason=execution.reason)
    )
    event = new_event(
        payload,
        source=DECISIONS_SOURCE,
        entity_id=released.entity_id,
        entity_type=released.entity_type,
        occurred_at=released.occurred_at,
        observed_at=released.observed_at,
        ingested_at=released.ingested_at,
        trace_id=released.trace_id,
        series=f"{action.decision_id}:execution",
    )
    return NewMessage(payload.topic, event.to_message(), payload.also_topics)


def _one(connection: Connection[Any], query: str, **values: Any) -> Any:
    row = connection.execute(QUERIES[query].sql, values).fetchone()
    assert row is not None, "it always has a row"
    return row[0]
