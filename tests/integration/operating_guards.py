"""Rows of the API's and the backfill's tables, sound and with one flaw each, that the database refuses or takes."""

import hashlib
from typing import Any

PIECE = '[{"entity_id": "AAPL"}]'
HASH = b"h" * 32


def piece(body: str) -> dict[str, object]:
    return {"body": body, "sha256": hashlib.sha256(body.encode()).hexdigest()}


SOUND: dict[str, dict[str, Any]] = {
    "api_tokens": {"name": "kim", "sha256": HASH, "scopes": ["read"], "created_by": "root"},
    "api_audit": {
        "token": "kim", "address": "", "agent": "", "route": "POST /x", "reason": "why", "idempotency_key": "k",
        "status": 200,
    },
    "idempotency_keys": {"token": "kim", "key": "k", "request_sha256": HASH},
    "backfill_pieces": {"file_sha256": "a" * 64, "number": 1, "observations": 1, **piece(PIECE)},
    "trace_cursor": {"stored_by": "1", "seq": 0},
    "waiting_traces": {"kind": "event", "id": "00000000-0000-4000-8000-000000000000"},
}  # fmt: skip

REFUSED: list[tuple[str, str, dict[str, object]]] = [
    ("api_tokens", "api_tokens_name_check", {"name": "root"}),
    ("api_tokens", "api_tokens_revoked_by_somebody", {"revoked_by": "ada"}),
    ("api_tokens", "api_tokens_scopes_check", {"scopes": ["everything"]}),
    ("api_tokens", "api_tokens_sha256_check", {"sha256": b"short"}),
    ("api_audit", "api_audit_route_check", {"route": ""}),
    ("api_audit", "api_audit_status_check", {"status": 42}),
    ("api_audit", "api_audit_token_check", {"token": ""}),
    ("idempotency_keys", "idempotency_keys_request_sha256_check", {"request_sha256": b"short"}),
    ("backfill_pieces", "backfill_pieces_are_bounded", piece(f'[{{"x": "{"x" * 1024 * 1024}"}}]')),
    ("backfill_pieces", "backfill_pieces_are_whole", {"sha256": "b" * 64}),
    ("backfill_pieces", "backfill_pieces_file_sha256_check", {"file_sha256": "a.csv"}),
    ("backfill_pieces", "backfill_pieces_number_check", {"number": 0}),
    ("backfill_pieces", "backfill_pieces_observations_check", {"observations": 0, **piece("[]")}),
    ("backfill_pieces", "backfill_pieces_say_how_many", {"observations": 2}),
    ("trace_cursor", "trace_cursor_only_one_check", {"only_one": False}),
    ("trace_cursor", "trace_cursor_seq_check", {"seq": -1}),
    ("waiting_traces", "waiting_traces_kind_check", {"kind": "approval"}),
]
"""Table, constraint, what is wrong with the row."""
