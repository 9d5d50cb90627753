"""Reads what was counted. Whoever reads within one snapshot sees each occurrence once, folded or not."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

from psycopg import Connection
from psycopg.rows import dict_row

from control_plane.flow.folding import QUERIES
from control_plane.platform.backlog import limit_statements

STATEMENT_TIMEOUT_SECONDS = 2.0
"""How long a statement may take: a caller waits for the answer."""


class Count(NamedTuple):
    """How often something ever happened."""

    stage: str
    name: str
    """The part of the stage: a subscription, a topic, a consumer, a source, a playbook, an agent, a type of action."""
    outcome: str
    bucket: int | None
    """How many of the bounds the durations exceed; None where none was measured."""
    n: int
    seconds: float | None
    """The sum of the durations."""
    newest_at: datetime

    @property
    def key(self) -> tuple[str, str, str, int | None]:
        """What is counted, by its bucket."""
        return self[:4]


class Example(NamedTuple):
    """One of those that were counted, with what it took."""

    trace_id: UUID
    seconds: float


@dataclass(frozen=True, slots=True)
class Hour:
    """What happened in the last hour, by stage, name and outcome."""

    minutes: dict[tuple[str, str, str], list[int]]
    """Per minute, the last full one last."""
    current: dict[tuple[str, str, str], int]
    """In the minute that is not over yet."""
    last_minute: dict[tuple[str, str, str], int]
    """In the last sixty seconds."""


@contextmanager
def one_snapshot(connection: Connection[Any]) -> Iterator[None]:
    """Opens a transaction whose statements all see the same rows, and may not take long."""
    with connection.transaction():
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        limit_statements(connection, STATEMENT_TIMEOUT_SECONDS)
        yield


def read_counts(connection: Connection[Any]) -> Sequence[Count]:
    """Returns how often everything ever happened."""
    with connection.cursor(row_factory=lambda _: Count._make) as cursor:
        return cursor.execute(QUERIES["counts"].sql).fetchall()


def read_examples(connection: Connection[Any]) -> dict[tuple[str, str, str, int | None], Example]:
    """Returns one of those that were counted, by what was counted and its bucket."""
    rows = connection.execute(QUERIES["examples"].sql).fetchall()
    return {(stage, name, outcome, bucket): Example(*rest) for stage, name, outcome, bucket, *rest in rows}


def read_bounds(connection: Connection[Any]) -> Sequence[float]:
    """Returns the upper bounds of the buckets, in seconds, without the last, which has none."""
    row = connection.execute(QUERIES["bounds"].sql).fetchone()
    assert row is not None, "a function's value is a row"
    bounds: Sequence[float] = row[0]
    return bounds


def read_hour(connection: Connection[Any]) -> Hour:
    """Returns what happened in each of the last sixty minutes, and in the last sixty seconds."""
    hour = Hour({}, {}, {})
    for stage, name, outcome, ago, n in connection.execute(QUERIES["minutes"].sql):
        if ago == 0:
            hour.current[stage, name, outcome] = n
        elif 0 < ago <= 60:
            hour.minutes.setdefault((stage, name, outcome), [0] * 60)[60 - ago] = n
    for stage, name, outcome, n in connection.execute(QUERIES["last_minute"].sql):
        hour.last_minute[stage, name, outcome] = n
    return hour


def read_rows(connection: Connection[Any], query: str) -> Sequence[dict[str, Any]]:
    """Returns the rows of a named query as objects."""
    with connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(QUERIES[query].sql).fetchall()


def read_tuples(connection: Connection[Any], query: str) -> Sequence[tuple[Any, ...]]:
    """Returns the rows of a named query."""
    return connection.execute(QUERIES[query].sql).fetchall()
