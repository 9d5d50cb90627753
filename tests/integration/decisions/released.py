"""A released action, made as its functions make one: each step under its own role."""

import hashlib
import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

from psycopg import Connection
from tests.conftest import TestDatabase

from control_plane.decisions.emit import emit, message
from control_plane.model.contract import Event
from control_plane.model.decision_events import ActionReleased
from control_plane.platform.database import connect
from domains import EVENT_TYPES
from domains.finance.paper_account.orders import Hedge

ORDER = Hedge(
    source="yfinance",
    entity_id="AAPL",
    series="1m",
    side="sell",
    quantity_micros=2_000_000,
    reference_price_micros=100_000_000,
    notional_micros=200_000_000,
    currency="USD",
).model_dump()
HOUR = timedelta(hours=1)


@dataclass(frozen=True)
class Released:
    """One released action, and the message that its client gets."""

    decision_id: UUID
    action_id: UUID
    event: Event


def keep(connection: Connection[Any], content: bytes, kind: str) -> bytes:
    """Stores an artifact; returns its hash."""
    sha256 = hashlib.sha256(content).digest()
    connection.execute(
        "INSERT INTO artifacts (sha256, kind, bytes) VALUES (%s, %s, %s) ON CONFLICT DO NOTHING",
        (sha256, kind, content),
    )
    return sha256


def release(database: TestDatabase, order: dict[str, Any] | None = None, *, expires_in: timedelta = HOUR) -> Released:
    """Opens a decision, has it proposed, permitted and released."""
    body = json.dumps(ORDER | (order or {})).encode()
    decision_id, action_id, verdict_id, trace_id = uuid4(), uuid4(), uuid4(), uuid4()
    now = datetime.now(UTC)
    with connect(database.url("acp_decide"), application_name="test") as decide:
        decide.execute(
            "SELECT open_decision(%s, 'finance', 'test', '1', %s, 'fall', 'yfinance', 'AAPL', '1m', %s, %s, %s,"
            " false, %s, 0)",
            (decision_id, keep(decide, b"{}", "pins"), now, uuid4(), trace_id, now + HOUR),
        )
        claimed = decide.execute("SELECT fence FROM claim_decision(%s, 'test', 60)", (decision_id,)).fetchone()
        assert claimed is not None
        for state in ("gathering", "hypothesising", "scoring", "simulating", "proposed"):
            decide.execute(
                "SELECT advance_decision(%s, %s, 'note', NULL, '{}', NULL, NULL, %s, 60)",
                (decision_id, claimed[0], state),
            )
    with connect(database.url("acp_gatekeeper"), application_name="test") as gatekeeper, gatekeeper.transaction():
        action = keep(gatekeeper, body, "action")
        gatekeeper.execute(
            "SELECT record_verdict(%s, %s, 5, %s, 'permitted', false, NULL, %s, %s, %s, '[]', '[]')",
            (
                verdict_id,
                decision_id,
                action,
                keep(gatekeeper, b"p", "policy"),
                keep(gatekeeper, b"s", "schema"),
                keep(gatekeeper, b"r", "request"),
            ),
        )
        released = message(
            ActionReleased(
                decision_id=str(decision_id), action_id=str(action_id), action_type="HEDGE", account="paper",
                action_sha256=action.hex(), expires_at=now + expires_in,
            ),
            entity_id="AAPL", series=str(decision_id), at=now, trace_id=trace_id,
        )  # fmt: skip
        gatekeeper.execute(
            "INSERT INTO actions (action_id, decision_id, idempotency_key, domain, action_type, account, action_sha256,"
            " verdict_id, event_id, expires_at) VALUES (%s, %s, %s, 'finance', 'HEDGE', 'paper', %s, %s, %s, %s)",
            (
                action_id,
                decision_id,
                str(action_id),
                action,
                verdict_id,
                released.message["event_id"],
                now + expires_in,
            ),
        )
        emit(gatekeeper, released)
    return Released(decision_id, action_id, EVENT_TYPES.parse_event(released.message))
