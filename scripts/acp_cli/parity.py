"""Which command does what each of the API's routes does. A test holds this against the routes and the commands."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

COMMAND_OF_ROUTE: Final[Mapping[str, str]] = {
    "GET /health": "status",
    "GET /whoami": "whoami",
    "GET /flow": "status",
    "GET /metrics": "metrics",
    "GET /events": "events",
    "GET /events/{event_id}": "trace",
    "GET /anomalies": "anomalies",
    "GET /decisions": "decisions",
    "GET /decisions/{decision_id}": "decision",
    "POST /decisions/{decision_id}/replay": "decision",
    "POST /policies/test": "policy test",
    "GET /policies/shadow": "policy shadow",
    "GET /artifacts/{sha256}": "artifact",
    "GET /approvals": "approvals",
    "GET /approvals/{approval_id}": "approvals",
    "POST /approvals/{approval_id}": "approve",
    "GET /switches": "switches",
    "PUT /switches/{scope}": "switch",
    "GET /subscriptions": "breakers",
    "POST /subscriptions/{name}/hold": "hold",
    "POST /subscriptions/{name}/resume": "resume",
    "GET /breakers": "breakers",
    "POST /breakers/{name}/hold": "hold",
    "POST /breakers/{name}/resume": "resume",
    "DELETE /breakers/{name}": "breakers forget",
    "GET /dead-letters": "dead-letters",
    "GET /dead-letters/{letter_id}": "dead-letters",
    "POST /dead-letters/discard": "discard",
    "GET /operations": "operations list",
    "GET /operations/{operation_id}": "operations show",
    "POST /operations": "operations plan",
    "POST /operations/{operation_id}/start": "operations start",
    "POST /operations/{operation_id}/pause": "operations pause",
    "POST /operations/{operation_id}/resume": "operations resume",
    "PUT /operations/{operation_id}/rate": "operations rate",
    "POST /operations/{operation_id}/cancel": "operations cancel",
    "POST /operations/{operation_id}/accept": "operations accept",
    "PUT /backfill-files/{file}/{number}": "backfill file",
    "GET /tokens": "tokens list",
    "POST /tokens": "tokens make",
    "GET /ui": "page",
    "DELETE /tokens/{name}": "tokens revoke",
    "GET /audit": "audit log",
    "POST /ingestion/run": "ingest",
    "POST /relay/run": "relay",
}
"""A route, as the API names it, and the command, with its subcommand where it has one."""

WITHOUT_COMMAND: Final[Mapping[str, str]] = {
    "GET /openapi.json": "it is for programs, which read it where it is",
    "GET /ui/{asset}": "it is for browsers",
}
"""The routes that no command asks, each with the reason."""
