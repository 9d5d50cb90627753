"""Reading decisions back: the list, and one decision's tree. Everything here reads, as any role that may."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from psycopg import Connection
from psycopg.rows import class_row, dict_row

from control_plane.platform.queries import load_queries

QUERIES: Final = load_queries(__package__)


@dataclass(frozen=True, slots=True)
class DecisionSummary:
    """A decision on one line."""

    decision_id: UUID
    entity_id: str
    anomaly_kind: str
    occurred_at: datetime
    playbook: str
    state: str
    is_shadow: bool
    opened_at: datetime
    closed_at: datetime | None
    deadline: datetime
    steps: int
    cost_micros: int
    action_type: str | None


@dataclass(frozen=True, slots=True)
class TreeStep:
    """One step as it is shown, with the steps below it."""

    seq: int
    parent: int | None
    kind: str
    author: str
    at: datetime
    cost_micros: int
    body: Mapping[str, Any]
    output_sha256: str | None
    output: str | None
    """Its output as text, with U+FFFD for what is none; None where it has no output, or one of more than 64 KiB."""


@dataclass(frozen=True, slots=True)
class DecisionTree:
    """One decision: its row, and its steps in order; a step's parent says where it hangs."""

    facts: Mapping[str, Any]
    steps: Sequence[TreeStep]

    def below(self, parent: int | None) -> Sequence[TreeStep]:
        """The steps that hang from one, in order; from None those at the top."""
        return [step for step in self.steps if step.parent == parent]


def list_decisions(
    connection: Connection[Any], *, limit: int, state: str | None = None, entity_id: str | None = None
) -> Sequence[DecisionSummary]:
    """Returns the newest decisions, the newest first."""
    with connection.cursor(row_factory=class_row(DecisionSummary)) as cursor:
        values = {"limit": limit, "state": state, "entity_id": entity_id}
        return cursor.execute(QUERIES["list_decisions"].sql, values).fetchall()


def read_tree(connection: Connection[Any], decision_id: UUID) -> DecisionTree | None:
    """Returns a decision with all its steps; None where there is no such decision."""
    with connection.cursor(row_factory=dict_row) as cursor:
        facts = cursor.execute(QUERIES["decision_facts"].sql, {"decision_id": decision_id}).fetchone()
        if facts is None:
            return None
        rows = cursor.execute(QUERIES["tree_of_steps"].sql, {"decision_id": decision_id}).fetchall()
    return DecisionTree(facts, [_step(row) for row in rows])


def _step(row: Mapping[str, Any]) -> TreeStep:
    output = None if row["output"] is None else bytes(row["output"]).decode("utf-8", "replace")
    return TreeStep(**{**row, "body": json.loads(row["body"]), "output": output})
