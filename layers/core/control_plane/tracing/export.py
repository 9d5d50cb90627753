"""Exports the spans of what is recorded, once it is over; the cursor moves when the receiver has accepted them."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final
from uuid import UUID

from psycopg import Connection

from control_plane.model.trace import is_sampled
from control_plane.platform.telemetry import Telemetry
from control_plane.tracing import decisions, events
from control_plane.tracing.receiver import Receiver, ReceiverUnavailable, SpansRefused
from control_plane.tracing.record import QUERIES, read_decisions, read_events
from control_plane.tracing.spans import Span

BATCH: Final = 250
"""How many new events, and how many that waited, are read at a time."""
RESERVE_SECONDS: Final = 15.0
"""No batch starts when less time than this is left."""


@dataclass(frozen=True, slots=True)
class TraceReport:
    """What a run exported, and what is left."""

    events: int
    decisions: int
    spans: int
    rejected_spans: int
    """Spans that the receiver would not keep."""
    waiting: int
    """Events and decisions that are not over yet."""
    behind_seconds: float
    """How long the oldest event that is not exported and could be has waited for it."""
    failure: str | None
    """Why the receiver has not accepted the rest; None if it has."""

    def to_dict(self) -> dict[str, Any]:
        """Returns the report as JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class _Position:
    stored_by: str
    seq: int


@dataclass(slots=True)
class _Batch:
    """What was read at a time: the spans of what has ended, one list for each, and what goes on waiting."""

    position: _Position
    spans: list[Sequence[Span]] = field(default_factory=list)
    ended_events: list[UUID] = field(default_factory=list)
    ended_decisions: list[UUID] = field(default_factory=list)
    waiting_events: list[UUID] = field(default_factory=list)
    waiting_decisions: list[UUID] = field(default_factory=list)
    exported_events: int = 0
    exported_decisions: int = 0


class TraceExport:
    """Exports traces to one receiver. Two runs at once may send the same spans, but lose none."""

    def __init__(
        self,
        connection: Connection[Any],
        receiver: Receiver,
        telemetry: Telemetry,
        *,
        sample_ratio: float,
        batch_size: int = BATCH,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """``connection`` is of role acp_reader, in autocommit mode."""
        self._connection = connection
        self._receiver = receiver
        self._telemetry = telemetry
        self._sample_ratio = sample_ratio
        self._batch_size = batch_size
        self._monotonic = monotonic
        self._events = self._decisions = self._spans = self._rejected = 0

    def run(self, *, remaining_seconds: Callable[[], float], anew: bool = False) -> TraceReport:
        """Exports batch by batch for as long as there is time. ``anew`` leaves out all that is stored already.

        Raises psycopg.Error; what the receiver has accepted by then may be sent again by the next run.
        """
        row = self._connection.execute(QUERIES["begin_traces"].sql, {"anew": anew}).fetchone()
        assert row is not None, "a cursor is made where there is none"
        position, stored_before = _Position(row[0], row[1]), row[2]
        if row[3]:
            self._telemetry.logger.info("the export of traces begins", stored_by=position.stored_by)
        failure = None
        while remaining_seconds() >= RESERVE_SECONDS:
            batch = self._read(position, stored_before)
            if batch is None:
                break
            ends = self._monotonic() + remaining_seconds() - RESERVE_SECONDS / 3
            try:
                self._send(batch.spans, ends=ends)
            except ReceiverUnavailable as error:
                failure = str(error)
                self._telemetry.count("TraceExportFailures", 1)
                self._telemetry.logger.warning("traces not exported", error=failure)
                break
            if not self._advance(position, batch):
                self._telemetry.logger.info("another run exports traces")
                break
            position = batch.position
        return self._report(failure)

    def _read(self, position: _Position, stored_before: str) -> _Batch | None:
        """Returns the next batch; None where there is nothing to do."""
        after = {"stored_by": position.stored_by, "seq": position.seq, "stored_before": stored_before}
        size = {"limit": self._batch_size}
        new = self._connection.execute(QUERIES["events_to_export"].sql, {**after, **size}).fetchall()
        due = self._connection.execute(QUERIES["due_traces"].sql, size).fetchall()
        if not new and not due:
            return None
        batch = _Batch(_Position(new[-1][1], new[-1][2]) if new else position)
        event_ids = dict.fromkeys([row[0] for row in new] + [id_ for kind, id_ in due if kind == "event"])
        opened = [row[3] for row in new if row[3] is not None]
        decision_ids = dict.fromkeys(opened + [id_ for kind, id_ in due if kind == "decision"])
        self._add_events(batch, list(event_ids))
        self._add_decisions(batch, list(decision_ids))
        return batch

    def _add_events(self, batch: _Batch, event_ids: Sequence[UUID]) -> None:
        recorded = {UUID(event.event_id): event for event in read_events(self._connection, event_ids)}
        for event_id in event_ids:
            event = recorded.get(event_id)
            if event is not None and not events.is_settled(event):
                batch.waiting_events.append(event_id)
                continue
            batch.ended_events.append(event_id)  # One that was deleted meanwhile has ended, too.
            if event is not None and (is_sampled(event.event_id, self._sample_ratio) or events.has_failed(event)):
                batch.spans.append(events.event_spans(event))
                batch.exported_events += 1

    def _add_decisions(self, batch: _Batch, decision_ids: Sequence[UUID]) -> None:
        recorded = {UUID(one.decision_id): one for one in read_decisions(self._connection, decision_ids)}
        for decision_id in decision_ids:
            decision = recorded.get(decision_id)
            if decision is not None and not decisions.is_settled(decision):
                batch.waiting_decisions.append(decision_id)
                continue
            batch.ended_decisions.append(decision_id)
            if decision is not None and (
                is_sampled(decision.trigger_event_id, self._sample_ratio) or decisions.has_failed(decision)
            ):
                batch.spans.append(decisions.decision_spans(decision))
                batch.exported_decisions += 1

    def _send(self, parts: Sequence[Sequence[Span]], *, ends: float) -> None:
        """Sends spans, in halves where the receiver does not take them together.

        A part that is refused alone is given up on, if the receiver has taken others in this run: otherwise the
        receiver may be at fault. Raises ReceiverUnavailable.
        """
        spans = [span for part in parts for span in part]
        if not spans:
            return
        try:
            rejected, reason = self._receiver.send(spans, ends=ends)
        except SpansRefused as error:
            if len(parts) > 1:
                middle = len(parts) // 2
                self._send(parts[:middle], ends=ends)
                self._send(parts[middle:], ends=ends)
                return
            if self._spans == 0:
                raise
            rejected, reason = len(spans), str(error)
        self._spans += len(spans) - rejected
        self._rejected += rejected
        if rejected:
            self._telemetry.count("SpansRejected", rejected)
            self._telemetry.logger.warning("spans rejected", spans=rejected, error=reason)

    def _advance(self, position: _Position, batch: _Batch) -> bool:
        values: Mapping[str, Any] = {
            "from_stored_by": position.stored_by,
            "from_seq": position.seq,
            "to_stored_by": batch.position.stored_by,
            "to_seq": batch.position.seq,
            "ended_events": batch.ended_events,
            "ended_decisions": batch.ended_decisions,
            "waiting_events": batch.waiting_events,
            "waiting_decisions": batch.waiting_decisions,
        }
        row = self._connection.execute(QUERIES["advance_traces"].sql, values).fetchone()
        if row is None or not row[0]:
            return False
        self._events += batch.exported_events
        self._decisions += batch.exported_decisions
        return True

    def _report(self, failure: str | None) -> TraceReport:
        row = self._connection.execute(QUERIES["traces_behind"].sql).fetchone()
        assert row is not None, "the cursor is never deleted"
        report = TraceReport(self._events, self._decisions, self._spans, self._rejected, row[1], row[0], failure)
        self._telemetry.count("SpansExported", report.spans)
        self._telemetry.count("TracesBehind", report.behind_seconds)
        return report
