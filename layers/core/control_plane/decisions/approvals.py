"""Approvals: what people are asked, and their answers.

Who answers is the login of the database session, or the token that CommandApiFunction names.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from psycopg import Connection
from psycopg.rows import class_row

from control_plane.decisions.emit import message
from control_plane.model.decision_events import ApprovalDenied, ApprovalGiven
from control_plane.platform.messages import one_as_json
from control_plane.platform.queries import load_queries

QUERIES: Final = load_queries(__package__)

_BEGINNING: Final = re.compile(r"[0-9a-f-]{8,36}")
"""So much of an id names a request; less of it, or a pattern, could be anything."""

WHY_NOT: Final = {
    "unknown": "there is no such request",
    "answered": "it was answered before; an answer stands",
    "changed": "the action is not the one that was shown",
    "expired": "its time is over, which is a no",
    "own": "whoever proposed it, or could act as that login or as a function's role, may not approve it",
}
"""What answer_approval in the database returns for an answer that does not count, and why."""


@dataclass(frozen=True, slots=True)
class ApprovalRequest:
    """What a person is asked about exactly one action."""

    approval_id: UUID
    decision_id: UUID
    action_sha256: bytes
    requested_at: datetime
    expires_at: datetime
    proposed_by: str
    shown: str
    domain: str
    playbook: str
    entity_id: str
    trace_id: UUID


@dataclass(frozen=True, slots=True)
class Answered:
    """What became of an answer: ``given``, ``denied``, or one of WHY_NOT."""

    outcome: str
    by: str

    @property
    def counts(self) -> bool:
        """Whether it was recorded."""
        return self.outcome not in WHY_NOT


def open_requests(connection: Connection[Any]) -> Sequence[ApprovalRequest]:
    """Returns what people are asked now, the most urgent first. Raises psycopg.Error."""
    with connection.cursor(row_factory=class_row(ApprovalRequest)) as cursor:
        return cursor.execute(QUERIES["open_approval_requests"].sql).fetchall()


def find_requests(connection: Connection[Any], beginning: str) -> Sequence[ApprovalRequest]:
    """Returns up to two open requests whose id begins so: two, where that is not enough to tell. Raises psycopg.Error.

    Eight characters are the fewest. A whole id finds its request even where it is answered or has expired.
    """
    beginning = beginning.lower()
    if _BEGINNING.fullmatch(beginning) is None:
        return []
    with connection.cursor(row_factory=class_row(ApprovalRequest)) as cursor:
        return cursor.execute(QUERIES["approval_request"].sql, {"beginning": beginning}).fetchall()


def answer(
    connection: Connection[Any],
    request: ApprovalRequest,
    *,
    action_sha256: bytes,
    gives: bool,
    reason: str = "",
    token: str | None = None,
) -> Answered:
    """Records a person's answer about the action with this hash, once, as a role of acp_command.

    ``action_sha256`` is that of the action which the person was shown. ``token`` is the name of the token by which they
    answer, where that is not their own login. Raises psycopg.Error.
    """
    with connection.transaction():
        who, now = _who(connection, token)
        payload = (ApprovalGiven if gives else ApprovalDenied)(
            decision_id=str(request.decision_id), approval_id=str(request.approval_id), decided_by=who
        )
        told = message(
            payload,
            entity_id=request.entity_id,
            series=f"{request.decision_id}:approval:{request.approval_id}",
            at=now,
            trace_id=request.trace_id,
        )
        row = connection.execute(
            QUERIES["answer_approval"].sql,
            {
                "approval_id": request.approval_id,
                "action_sha256": action_sha256,
                "gives": gives,
                "reason": reason,
                "event": one_as_json(told),
                "token": token,
            },
        ).fetchone()
    assert row is not None
    return Answered(row[0], who)


def _who(connection: Connection[Any], token: str | None) -> tuple[str, datetime]:
    row = connection.execute(QUERIES["who_asks"].sql, {"token": token}).fetchone()
    assert row is not None
    return row[0], row[1]
