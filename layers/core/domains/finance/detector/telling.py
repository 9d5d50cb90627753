"""Tells what has become unusual, or is so no longer: stores ANOMALY_DETECTED."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from typing import Any, Final

from psycopg import Connection

from control_plane.decisions.emit import emit
from control_plane.model.contract import Event, new_event
from control_plane.model.decision_events import DECISION_WORK, DECISIONS_SOURCE, AnomalyDetected
from control_plane.platform.messages import NewMessage
from domains.finance.detector import scoring
from domains.finance.detector.folding import QUERIES, Judgement
from domains.finance.detector.scoring import Finding, Judged

DETECTOR: Final = "robust-z"
DOMAIN: Final = "finance"
_LONGEST_SERIES: Final = 128


@dataclass(frozen=True, slots=True)
class _Told:
    """What was said of a bar in one respect, of detector_told."""

    threshold: float
    told: int
    told_as: str | None


type _Key = tuple[str, datetime, str]
"""The series, the instant and the kind."""


def tell(connection: Connection[Any], event: Event, judgements: Sequence[Judgement]) -> None:
    """Tells where what stands told of the judged bars is not what was found, in the caller's transaction.

    The judgements are those of one event's fold, which holds its entity's lock. Raises psycopg.Error.
    """
    if judgements:
        _Telling(connection, event, judgements).tell(judgements)


class _Telling:
    """Tells of one entity's bars on behalf of the event that had them judged."""

    def __init__(self, connection: Connection[Any], event: Event, judgements: Sequence[Judgement]) -> None:
        self._connection = connection
        self._event = event
        self._about = {"source": event.source, "entity_id": event.entity_id}
        instants = [one.bar.occurred_at for one in judgements]
        rows = self._read(
            "told_between",
            series=sorted({one.interval for one in judgements}),
            first=min(instants),
            last=max(instants),
        )
        self._told: dict[_Key, _Told] = {tuple(row[:3]): _Told(*row[3:]) for row in rows}

    def tell(self, judgements: Sequence[Judgement]) -> None:
        """Tells every finding that does not stand told, and withdraws what is found no longer."""
        kinds = sorted({kind for _, _, kind in self._told})
        for one in judgements:
            found = {finding.kind for finding in one.found}
            for finding in one.found:
                self._finding(one.interval, finding)
            for kind in kinds:
                told = self._told.get((one.interval, one.bar.occurred_at, kind))
                if told is not None and told.told_as is not None and kind not in found:
                    payload = self._payload(one.interval, kind, one.bar, 0.0, told.threshold)
                    self._store(payload.model_copy(update={"is_withdrawn": True}), one.bar, told.told, None)

    def _finding(self, interval: str, finding: Finding) -> None:
        bar = finding.bar
        told = self._told.get((interval, bar.occurred_at, finding.kind))
        figure = finding.details.get("return_ppm", finding.details.get("beyond_ppm"))
        as_now = None if finding.is_explained else f"{bar.event_id}/{figure}"
        if as_now == (None if told is None else told.told_as):
            return
        payload = self._payload(interval, finding.kind, bar, finding.score, finding.threshold)
        market = self._market(interval, bar.occurred_at, finding.scale)
        self._store(
            payload.model_copy(
                update={"is_withdrawn": finding.is_explained, "details": finding.details | {"market": market}}
            ),
            bar,
            0 if told is None else told.told,
            as_now,
        )

    def _payload(self, interval: str, kind: str, bar: Judged, score: float, threshold: float) -> AnomalyDetected:
        return AnomalyDetected(
            kind=kind,
            detector=DETECTOR,
            domain=DOMAIN,
            observed_source=self._event.source,
            series=interval,
            bar_event_id=str(bar.event_id),
            bar_revision=bar.revision,
            score=score,
            threshold=threshold,
            details={},
        )

    def _store(self, payload: AnomalyDetected, bar: Judged, revision: int, told_as: str | None) -> None:
        """Stores an ANOMALY_DETECTED for who follows decisions and for who makes them, and that it was told."""
        ((now,),) = self._read("clock")
        event = new_event(
            payload,
            source=DECISIONS_SOURCE,
            entity_id=self._event.entity_id,
            entity_type=self._event.entity_type,
            occurred_at=bar.occurred_at,
            observed_at=self._event.observed_at,
            ingested_at=now,
            trace_id=self._event.trace_id,
            series=event_series(payload),
            revision=revision,
        )
        emit(self._connection, NewMessage(payload.topic, event.to_message(), (DECISION_WORK,)))
        self._connection.execute(
            QUERIES["keep_told"].sql,
            self._about
            | {
                "series": payload.series,
                "occurred_at": bar.occurred_at,
                "kind": payload.kind,
                "threshold": payload.threshold,
                "bar_event_id": bar.event_id,
                "bar_revision": bar.revision,
                "told": revision + 1,
                "told_as": told_as,
                "told_event_id": event.event_id,
            },
        )

    def _market(self, interval: str, at: datetime, scale: float) -> dict[str, Any]:
        """Returns how all entities of the source moved at an instant, as far as their bars are there."""
        rows = self._read("market_at", interval=interval, at=at)
        entities, fell, middle = rows[0] if rows else (0, 0, 0.0)
        return {
            "entities": entities,
            "fell": fell,
            "median_return_ppm": scoring.fraction_ppm(middle),
            "is_market_wide": scoring.is_market_wide(
                entities=entities, fell=fell, median_log_return=middle, scale=scale
            ),
        }

    def _read(self, name: str, **values: Any) -> list[Any]:
        return self._connection.execute(QUERIES[name].sql, self._about | values).fetchall()


def event_series(payload: AnomalyDetected) -> str:
    """Returns the event's own series: what tells two anomalies of one entity and instant apart."""
    series = f"{payload.observed_source}/{payload.series}/{payload.kind}"
    return series if len(series) <= _LONGEST_SERIES else sha256(series.encode()).hexdigest()
