"""Derives an entity's observations again from the raw payloads that they were read from."""

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from psycopg import Connection

from control_plane.ingestion.judgement import Question, judge
from control_plane.ingestion.source import Json, Source
from control_plane.ingestion.store import QUERIES, Chains, Look, LookOutcome
from control_plane.model.contract import EventTypes
from control_plane.model.errors import SourceError

_AT_A_TIME: Final = 50
"""How many raw payloads are held in memory at a time; one payload may have several megabytes."""

logger: Final = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """One observation that was derived again from a raw payload."""

    look: Look
    revision: int

    @property
    def event_id(self) -> UUID:
        """The id that its event had; deriving it again gives the same id."""
        return self.look.event_id(self.revision)


def rebuild_observations(
    connection: Connection[Any], source: Source, event_types: EventTypes, *, entity_id: str
) -> Iterator[Rebuilt]:
    """Yields an entity's observations, revision by revision, in the order in which they were first stored.

    They have the ids of the events that ingestion stored, provided that all raw payloads of the entity are kept and
    that ``source`` still reads them in the same way. Answers that cannot be read, and observations that the contract
    refuses, yield nothing. Nothing is changed. Payloads that are stored during the call may be included or not. Raises
    psycopg.Error.
    """
    chains = Chains()
    for raw_payload_id, question, stored in _answers(connection, source.name, entity_id):
        try:
            raw = from_stored_raw(stored)
            fetched = source.read(raw, symbol=question.symbol, since=question.since, asked_at=question.asked_at)
            judgement = judge(fetched, question, source=source, event_types=event_types, raw_payload_id=raw_payload_id)
        except SourceError:
            continue  # A failed fetch is an event of its own, and has no observations.
        except Exception:
            # Ingestion could not judge this answer either, and stored that failure as an event.
            logger.exception("an answer cannot be judged, raw payload %s", raw_payload_id)
            continue
        for look in judgement.observations:
            outcome, head = chains.add(look)
            if outcome is LookOutcome.NEW:
                yield Rebuilt(look, head.revision)


def _answers(connection: Connection[Any], source: str, entity_id: str) -> Iterator[tuple[UUID, Question, Json]]:
    after = 0
    while True:
        rows = connection.execute(
            QUERIES["raw_payloads_in_order"].sql,
            {"source": source, "entity_id": entity_id, "after": after, "limit": _AT_A_TIME},
        ).fetchall()
        for seq, raw_payload_id, observed_at, window_since, trace_id, payload in rows:
            yield raw_payload_id, Question(entity_id, window_since, observed_at, trace_id), payload
            after = seq
        if len(rows) < _AT_A_TIME:
            return


def from_stored_raw(stored: Json) -> Json:
    """Returns the answer that was given to ``to_stored_raw``."""
    if isinstance(stored, dict) and stored.keys() == {"status", "content_type", "body"} and stored["status"] is None:
        answer: Json = json.loads(str(stored["body"]))
        return answer
    return stored
