"""Observations of an uploaded file, as if a source had answered them: they are judged and stored in the same way."""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NoReturn

from control_plane.ingestion.source import Entity, Fetched, Json, Observation
from control_plane.model.backfill import FileRow
from control_plane.model.errors import ContractViolation, SourceError
from control_plane.model.ids import canonical_instant

_FIELDS = frozenset({"entity_id", "entity_type", "event_type", "series", "occurred_at", "payload"})


def to_json(row: FileRow) -> dict[str, Any]:
    """Returns a row of a file as a piece of it holds it. Raises ContractViolation."""
    return {
        "entity_id": row.entity_id,
        "entity_type": row.entity_type,
        "event_type": row.event_type,
        "series": row.series,
        "occurred_at": canonical_instant(row.occurred_at),
        "payload": dict(row.payload),
    }


def by_entity(body: str) -> Mapping[str, list[Json]]:
    """Returns the observations of a piece by their entity, in the file's order. Raises SourceError."""
    found: dict[str, list[Json]] = {}
    for row in json.loads(body):
        if not isinstance(row, dict) or row.keys() != _FIELDS or not isinstance(row["entity_id"], str):
            raise SourceError("*", "malformed", "the piece is not as acp writes it: make it with acp backfill")
        found.setdefault(row["entity_id"], []).append(row)
    return found


class FileSource:
    """The source that a file's observations are said to be of. It is asked for nothing."""

    event_type = ""
    series = ""

    def __init__(self, name: str) -> None:
        self.name = name

    def fetch(self, symbol: str, since: datetime | None, asked_at: datetime) -> NoReturn:  # noqa: ARG002 – as Source has it
        """A file has been read; there is nothing to fetch."""
        raise SourceError(symbol, "unreachable", "a file is not asked: its observations were uploaded")

    def read(self, raw: Json, *, symbol: str, since: datetime | None, asked_at: datetime) -> Fetched:  # noqa: ARG002
        """See :class:`~control_plane.ingestion.source.Source`; ``raw`` is what a raw payload of a file holds."""
        return Fetched(symbol, raw, tuple(_observations(symbol, raw)))

    def describe(self, fetched: Fetched) -> Entity:
        """See :class:`~control_plane.ingestion.source.Source`."""
        rows = _rows(fetched.raw)
        return Entity(fetched.symbol, rows[0].get("entity_type") if rows else None, None)


def _rows(raw: Json) -> Sequence[Mapping[str, Any]]:
    rows = raw.get("observations") if isinstance(raw, dict) else None
    return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []


def _observations(symbol: str, raw: Json) -> Sequence[Observation]:
    try:
        return [
            Observation(row["event_type"], _instant(row["occurred_at"]), dict(row["payload"]), row["series"])
            for row in _rows(raw)
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise SourceError(symbol, "malformed", f"the piece is not as acp writes it: {error}", raw=raw) from error


def _instant(text: Any) -> datetime:
    instant = datetime.fromisoformat(str(text))
    if instant.utcoffset() is None:
        raise ContractViolation("is an instant without a time zone", field="occurred_at", value=text)
    return instant.astimezone(UTC)
