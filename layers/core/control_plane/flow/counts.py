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


class Unfolded(NamedTuple):
    """How often something happened in a minute, as far as it is not folded yet."""

    stage: str
    name: str
    outcome: str
    ago: int
    """How many minutes ago; 0 is the minute that is not over yet."""
    n: int
    n_last_minute: int
    """How much of it in the last sixty seconds."""
    newest_at: datetime


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

    def add(self, key: tuple[str, str, str], ago: int, n: int) -> None:
        """Adds what happened so many minutes ago."""
        if ago == 0:
            self.current[key] = self.current.get(key, 0) + n
        elif 0 < ago <= 60:
            self.minutes.setdefault(key, [0] * 60)[60 - ago] += n


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


def read_unfolded(connection: Connection[Any]) -> Sequence[Unfolded]:
    """Returns what is counted and not folded yet."""
    with connection.cursor(row_factory=lambda _: Unfolded._make) as cursor:
        return cursor.execute(QUERIES["unfolded"].sql).fetchall()


def read_hour(connection: Connection[Any], unfolded: Sequence[Unfolded]) -> Hour:
    """Returns what happened in each of the last sixty minutes, and in the last sixty seconds."""
    hour = Hour({}, {}, {})
    for stage, name, outcome, ago, n in connection.execute(QUERIES["folded_minutes"].sql):
        hour.add((stage, name, outcome), ago, n)
    for one in unfolded:
        key = (one.stage, one.name, one.outcome)
        hour.add(key, one.ago, one.n)
        if one.n_last_minute:
            hour.last_minute[key] = hour.last_minute.get(key, 0) + one.n_last_minute
    return hour


def read_parts(
    connection: Connection[Any], unfolded: Sequence[Unfolded], *, since: datetime
) -> dict[tuple[str, str], datetime | None]:
    """Returns when each stage's parts last succeeded, of those that something happened to after ``since``."""
    newest, succeeded = {}, {}
    for stage, name, newest_at, succeeded_at in connection.execute(QUERIES["folded_parts"].sql):
        newest[stage, name], succeeded[stage, name] = newest_at, succeeded_at
    for one in unfolded:
        part = (one.stage, one.name)
        newest[part] = max(newest.get(part) or one.newest_at, one.newest_at)
        if one.outcome == "fetched":
            succeeded[part] = max(succeeded.get(part) or one.newest_at, one.newest_at)
    return {part: succeeded.get(part) for part in sorted(newest) if newest[part] > since}


def read_rows(connection: Connection[Any], query: str) -> Sequence[dict[str, Any]]:
    """Returns the rows of a named query as objects."""
    with connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(QUERIES[query].sql).fetchall()


def read_tuples(connection: Connection[Any], query: str) -> Sequence[tuple[Any, ...]]:
    """Returns the rows of a named query."""
    return connection.execute(QUERIES[query].sql).fetchall()
