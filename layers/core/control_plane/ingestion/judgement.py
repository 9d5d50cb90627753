"""Judges a source's answer by the event contract: observations become looks, and what does not fit is reported."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID

from control_plane.ingestion.source import Entity, Fetched, Gap, Observation, Source
from control_plane.ingestion.store import Key, Look
from control_plane.model.contract import (
    EventTypes,
    Payload,
    SignalRejected,
    SourceFetchFailed,
    SourceGapDetected,
    parse_payload,
)
from control_plane.model.errors import ContractViolation, SourceError
from control_plane.model.text import readable

OVERLAP: Final = timedelta(minutes=15)
"""How long before the newest stored observation a fetch begins, so that a correction is seen."""


@dataclass(frozen=True, slots=True)
class Question:
    """What a source was asked about one symbol, and when."""

    symbol: str
    since: datetime | None
    """The start of the requested time; None for the most recent hour."""
    asked_at: datetime
    """The time of the request, by the run's clock; it becomes the looks' ``observed_at``."""
    trace_id: UUID


@dataclass(frozen=True, slots=True)
class Judgement:
    """The looks that an answer gives, each with a payload that the contract accepts."""

    observations: Sequence[Look] = ()
    """The looks of the observations that the contract accepts, in the answer's order."""
    rejections: Sequence[Look] = ()
    """One look for each observation that the contract refuses."""
    notices: Sequence[Look] = ()
    """Looks that report a failed fetch, or a gap that the source can no longer fill."""
    repeated: int = 0
    """How many observations were dropped because a later one in the same answer has the same instant."""


def judge(
    fetched: Fetched,
    question: Question,
    *,
    source: Source,
    event_types: EventTypes,
    raw_payload_id: UUID | None = None,
) -> Judgement:
    """Returns the judgement of an answer. It is the same at any time, so a rebuild finds the same looks.

    Where an answer has two values for one instant, only the last one counts; otherwise each run would store both again.
    Raises ContractViolation if the entity or an instant fits no event, and whatever the source's ``describe`` raises.
    """
    entity = source.describe(fetched)

    def look(payload: Payload, occurred_at: datetime, series: str) -> Look:
        return _valid_look(
            payload,
            question,
            source.name,
            entity,
            occurred_at=occurred_at,
            series=series,
            raw_payload_id=raw_payload_id,
        )

    observations: dict[Key, Look] = {}
    rejections: dict[Key, Look] = {}
    for observation in fetched.observations:
        try:
            payload = parse_payload(event_types.newest(observation.event_type), observation.payload)
        except ContractViolation as violation:
            # The type and the series tell two refused observations of one instant apart.
            series = readable(f"{observation.event_type}/{observation.series}")[:128]
            refused = look(_rejection(question.symbol, observation, violation), observation.occurred_at, series)
            rejections[refused.key] = refused
        else:
            accepted = look(payload, observation.occurred_at, observation.series)
            observations[accepted.key] = accepted
    followed = [look for look in observations.values() if look.payload.event_type == source.event_type]
    gap = None if fetched.gap is None else _gap_to_report(fetched.gap, question, followed)
    return Judgement(
        observations=tuple(observations.values()),
        rejections=tuple(rejections.values()),
        notices=()
        if gap is None
        else (
            look(SourceGapDetected(symbol=question.symbol, since=gap.since, until=gap.until), gap.since, source.series),
        ),
        repeated=len(fetched.observations) - len(observations) - len(rejections),
    )


def judge_failure(
    error: SourceError, question: Question, *, source: Source, raw_payload_id: UUID | None = None
) -> Judgement:
    """Returns the look that reports that a symbol could not be fetched."""
    failure = SourceFetchFailed(symbol=question.symbol, kind=error.kind, reason=readable(error.reason) or error.kind)
    look = _valid_look(
        failure,
        question,
        source.name,
        None,
        occurred_at=question.asked_at,
        series=source.series,
        raw_payload_id=raw_payload_id,
    )
    return Judgement(notices=(look,))


def _valid_look(
    payload: Payload,
    question: Question,
    source_name: str,
    entity: Entity | None,
    *,
    occurred_at: datetime,
    series: str,
    raw_payload_id: UUID | None,
) -> Look:
    look = Look(
        payload,
        source=source_name,
        entity_id=question.symbol,
        entity_type=None if entity is None else entity.entity_type,
        occurred_at=occurred_at,
        observed_at=question.asked_at,
        trace_id=question.trace_id,
        series=series,
        raw_payload_id=raw_payload_id,
    )
    # This look is stored in one transaction with many others; if it did not fit the contract, none would be stored.
    look.to_event(revision=0, ingested_at=question.asked_at)
    return look


def _gap_to_report(gap: Gap, question: Question, accepted: Iterable[Look]) -> Gap | None:
    """Returns the look that reports a gap, or None if there is nothing to report yet.

    While no newer observation is accepted, each run asks again from the same instant on, and the source meanwhile
    forgets more. The end of such a gap is rounded to a day, so that not every run reports a new gap.
    """
    newest = question.asked_at if question.since is None else question.since + OVERLAP
    moves_on = any(look.occurred_at > newest for look in accepted)
    until = gap.until
    if not moves_on:
        until = until.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return Gap(gap.since, until) if until > gap.since else None


def _rejection(symbol: str, observation: Observation, violation: ContractViolation) -> SignalRejected:
    return SignalRejected(
        symbol=symbol,
        rejected_event_type=observation.event_type,
        field=readable(violation.field),
        value=readable(repr(violation.value)),
        reason=readable(violation.reason),
    )
