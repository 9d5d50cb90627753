"""Folds one event into the detector's tables, and tells what has become unusual, or is so no longer."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any, Final
from uuid import UUID

from psycopg import Connection
from psycopg.types.json import Jsonb

from control_plane.decisions.emit import emit
from control_plane.model.contract import Event, new_event
from control_plane.model.decision_events import DECISION_WORK, DECISIONS_SOURCE, AnomalyDetected
from control_plane.platform.messages import NewMessage
from control_plane.platform.queries import load_queries
from domains.finance.detector import scoring
from domains.finance.detector.scoring import Action, Finding, Judged, Measures, Prices
from domains.finance.events import MarketTick

QUERIES: Final = load_queries(__package__)
DETECTOR: Final = "robust-z"
DOMAIN: Final = "finance"
_LONGEST_SERIES: Final = 128
_BEGINNING: Final = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class _Kept:
    """A bar as it is stored."""

    prices: Prices
    revision: int
    event_id: UUID
    follows_gap: bool
    has_later_actions: bool
    """Whether there are splits or dividends after it."""


@dataclass(frozen=True, slots=True)
class _Record:
    """A row of detector_anomalies."""

    kind: str
    state: str
    score: float
    threshold: float
    bar_event_id: UUID
    details: dict[str, Any]
    told: int
    told_as: str | None
    told_event_id: UUID | None

    @classmethod
    def read(cls, row: Mapping[str, Any]) -> "_Record":
        """Returns a row that Postgres has written as JSON."""
        told_event_id = row["told_event_id"]
        return cls(
            row["kind"],
            row["state"],
            row["score"],
            row["threshold"],
            UUID(row["bar_event_id"]),
            row["details"],
            row["told"],
            row["told_as"],
            None if told_event_id is None else UUID(told_event_id),
        )


class Fold:
    """Folds one event of one entity within the caller's transaction, after whoever else folds one of that entity."""

    def __init__(self, connection: Connection[Any], event: Event, entity_id: str) -> None:
        self._connection = connection
        self._event = event
        self._about = {"source": event.source, "entity_id": entity_id}
        ((_, self._now),) = self._read("lock_entity")

    def bar(self, tick: MarketTick) -> None:
        """Folds a bar, unless a later revision of it is there."""
        interval, at = tick.interval, self._event.occurred_at
        before, same, after = self._around(interval, at)
        if same is not None and (same.revision, same.event_id) >= (self._event.revision, self._event.event_id):
            return
        prices = Prices(at, tick.open, tick.high, tick.low, tick.price, tick.currency)
        actions = self._actions(before, at if after is None else after.prices.occurred_at)
        measures = scoring.measure(
            None if before is None else before.prices,
            prices,
            [action for action in actions if action.occurred_at <= at],
            interval,
        )
        self._execute(
            "keep_bar",
            **tick.model_dump(),
            **asdict(measures),
            occurred_at=at,
            revision=self._event.revision,
            event_id=self._event.event_id,
        )
        kinds = {measures.follows_gap}
        if same is not None:
            kinds.add(same.follows_gap)
        if after is not None:
            later = [action for action in actions if action.occurred_at > at]
            kinds |= self._measure_again(after, prices, later, interval)
        self._judge(interval, at, kinds)

    def action(self, kind: str, amount: float, currency: str | None) -> None:
        """Folds a split or a dividend: it belongs to the first bar from its instant on, of each interval."""
        at = self._event.occurred_at
        kept = self._read(
            "keep_action",
            kind=kind,
            occurred_at=at,
            amount=amount,
            currency=currency,
            revision=self._event.revision,
            event_id=self._event.event_id,
        )
        if not kept:
            return
        for interval, first in self._read("first_bars_from", at=at):
            before, bar, _ = self._around(interval, first)
            if bar is not None and before is not None:
                kinds = self._measure_again(bar, before.prices, self._actions(before, first), interval)
                self._judge(interval, first, kinds)

    def _around(self, interval: str, at: datetime) -> tuple[_Kept | None, _Kept | None, _Kept | None]:
        """Returns the bar before an instant, the one at it, and the one after it."""
        rows = [_Kept(Prices(*row[:6]), *row[6:]) for row in self._read("bars_around", interval=interval, at=at)]
        before = next((row for row in rows if row.prices.occurred_at < at), None)
        same = next((row for row in rows if row.prices.occurred_at == at), None)
        after = next((row for row in rows if row.prices.occurred_at > at), None)
        return before, same, after

    def _actions(self, before: _Kept | None, until: datetime) -> list[Action]:
        """Returns the actions after a bar, up to an instant."""
        if before is not None and not before.has_later_actions:
            return []
        after = _BEGINNING if before is None else before.prices.occurred_at
        return [Action(*row) for row in self._read("actions_between", after=after, until=until)]

    def _measure_again(self, bar: _Kept, before: Prices, actions: Sequence[Action], interval: str) -> set[bool]:
        """Measures a bar anew after another one, and returns the kinds whose windows that changes."""
        measures = scoring.measure(before, bar.prices, actions, interval)
        self._execute("measure_bar", **asdict(measures), interval=interval, occurred_at=bar.prices.occurred_at)
        return {bar.follows_gap, measures.follows_gap}

    def _judge(self, interval: str, at: datetime, kinds: set[bool]) -> None:
        """Judges every bar anew whose window a change at an instant touches, and tells what that changes."""
        for kind in sorted(kinds):
            rows = self._read("window", interval=interval, at=at, follows_gap=kind, window=scoring.WINDOW)
            returns, excursions = [row[0] for row in rows], [row[1] for row in rows]
            for place, (
                log_return,
                excursion,
                occurred_at,
                event_id,
                revision,
                adjustment,
                previous_at,
                kept,
            ) in enumerate(rows):
                if event_id is None:
                    continue
                bar = Judged(
                    occurred_at, event_id, revision, Measures(previous_at, kind, log_return, adjustment, excursion)
                )
                start = max(0, place - scoring.WINDOW)
                found = {one.kind: one for one in scoring.findings(bar, returns[start:place], excursions[start:place])}
                records = {record.kind: record for record in map(_Record.read, kept or ())}
                for finding in found.values():
                    self._keep(interval, finding, records.get(finding.kind))
                for record in records.values():
                    if record.kind not in found and record.state != "withdrawn":
                        self._withdraw(interval, bar, record)

    def _keep(self, interval: str, finding: Finding, record: _Record | None) -> None:
        """Keeps a finding, and tells it where its bar, or the figure, is not the one that stands told."""
        bar = finding.bar
        state = "explained" if finding.is_explained else "detected"
        details = dict(finding.details)
        if bar.measures.adjustment:
            actions = self._read("actions_between", after=bar.measures.previous_at, until=bar.occurred_at)
            details["corporate_actions"] = [Action(*row).to_json() for row in actions]
        told, told_as, told_event_id = (
            (0, None, None) if record is None else (record.told, record.told_as, record.told_event_id)
        )
        figure = details.get("return_ppm", details.get("beyond_ppm"))
        as_now = None if finding.is_explained else f"{bar.event_id}/{figure}"
        if as_now != told_as:
            payload = self._payload(interval, finding.kind, bar, finding.score, finding.threshold)
            told_event_id = self._tell(
                payload.model_copy(
                    update={
                        "is_withdrawn": finding.is_explained,
                        "details": details | {"market": self._market(interval, bar.occurred_at, finding.scale)},
                    }
                ),
                bar.occurred_at,
                told,
            )
            told, told_as = told + 1, as_now
        as_it_is = record is not None and (
            (record.state, record.score, record.bar_event_id, record.details, record.told)
            == (state, finding.score, bar.event_id, details, told)
        )
        if not as_it_is:
            self._execute(
                "keep_anomaly",
                interval=interval,
                occurred_at=bar.occurred_at,
                kind=finding.kind,
                state=state,
                score=finding.score,
                threshold=finding.threshold,
                bar_event_id=bar.event_id,
                bar_revision=bar.revision,
                details=Jsonb(details),
                told=told,
                told_as=told_as,
                told_event_id=told_event_id,
            )

    def _withdraw(self, interval: str, bar: Judged, record: _Record) -> None:
        """Notes that a bar is usual after all, and tells it where the contrary stands told."""
        told, told_event_id = record.told, record.told_event_id
        if record.told_as is not None:
            payload = self._payload(interval, record.kind, bar, 0.0, record.threshold)
            told_event_id = self._tell(payload.model_copy(update={"is_withdrawn": True}), bar.occurred_at, told)
            told += 1
        self._execute(
            "keep_anomaly",
            interval=interval,
            occurred_at=bar.occurred_at,
            kind=record.kind,
            state="withdrawn",
            score=0.0,
            threshold=record.threshold,
            bar_event_id=bar.event_id,
            bar_revision=bar.revision,
            details=Jsonb({}),
            told=told,
            told_as=None,
            told_event_id=told_event_id,
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

    def _tell(self, payload: AnomalyDetected, at: datetime, revision: int) -> UUID:
        """Stores an ANOMALY_DETECTED for who follows decisions and for who makes them; returns its id."""
        event = new_event(
            payload,
            source=DECISIONS_SOURCE,
            entity_id=self._about["entity_id"],
            entity_type=self._event.entity_type,
            occurred_at=at,
            observed_at=self._event.observed_at,
            ingested_at=self._now,
            trace_id=self._event.trace_id,
            series=event_series(payload),
            revision=revision,
        )
        emit(self._connection, NewMessage(payload.topic, event.to_message(), (DECISION_WORK,)))
        return event.event_id

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

    def _execute(self, name: str, **values: Any) -> None:
        self._connection.execute(QUERIES[name].sql, self._about | values)


def event_series(payload: AnomalyDetected) -> str:
    """Returns the event's own series: what tells two anomalies of one entity and instant apart."""
    series = f"{payload.observed_source}/{payload.series}/{payload.kind}"
    return series if len(series) <= _LONGEST_SERIES else sha256(series.encode()).hexdigest()
