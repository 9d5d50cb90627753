"""The spans of one event: its creation, each delivery of its messages, and each time that a consumer took it up.

What is not recorded is not made up. When a delivery was claimed is not, so a ``send`` span begins with the promise.
When a consumer began is not, so a ``process`` span is an instant: that of its transaction, or of its failure.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final

from control_plane.tracing.record import RecordedEvent, Row
from control_plane.tracing.spans import Kind, Span, SpanEvent, attributes, id_of, to_instant

DELIVERY_WAIT: Final = timedelta(hours=24)
"""How long an export waits for what is still open, such as a pending delivery."""
PROCESSING_WAIT: Final = timedelta(minutes=5)
"""How long an export waits for a consumer after the delivery: some keep no record of what they process."""

_SYSTEM: Final = "aws_sqs"
_OPEN: Final = frozenset({"pending", "in_flight", "retrying"})


def create_span_id(event_id: str) -> str:
    """Returns the id of an event's ``create`` span, which ``traceparent`` names: the last 8 bytes of its id."""
    return event_id[19:23] + event_id[24:]


def has_failed(event: RecordedEvent) -> bool:
    """Whether something about the event failed at least once."""
    return bool(event.letters or event.failures) or any(
        delivery["failures"] or delivery["state"] in {"dead_lettered", "redriven", "discarded"}
        for delivery in event.deliveries
    )


def is_settled(event: RecordedEvent) -> bool:
    """Whether nothing more is expected to be recorded of the event, or it has been waited for long enough."""
    if event.read_at - event.ingested_at > DELIVERY_WAIT:
        return True
    if any(delivery["state"] in _OPEN for delivery in event.deliveries):
        return False
    ended = {processed["consumer"] for processed in event.processing} | {one["subscription"] for one in event.letters}
    for delivery in event.deliveries:
        if delivery["state"] == "delivered" and delivery["subscription"] not in ended:
            failing = any(one["subscription"] == delivery["subscription"] for one in event.failures)
            if failing or event.read_at - to_instant(delivery["delivered_at"]) < PROCESSING_WAIT:
                return False
    return True


def event_spans(event: RecordedEvent) -> Sequence[Span]:
    """Returns the spans of an event, the creation first."""
    made = _Event(event)
    return [made.create(), *made.sends(), *made.processes()]


class _Event:
    def __init__(self, event: RecordedEvent) -> None:
        self._event = event
        self._trace_id = event.trace_id.replace("-", "")
        self._create_id = create_span_id(event.event_id)
        self._about = attributes(
            messaging__system=_SYSTEM,
            acp__event_id=event.event_id,
            acp__event_type=event.event_type,
            acp__entity_id=event.entity_id,
        )

    def create(self) -> Span:
        """Returns the span from the look at the source until the event was stored."""
        event = self._event
        topic = event.deliveries[0]["topic"] if event.deliveries else None
        return Span(
            service="decisions" if event.source == "decisions" else "ingestion",
            trace_id=self._trace_id,
            span_id=self._create_id,
            parent_id="",
            name=f"create {topic or event.event_type}",
            kind=Kind.PRODUCER,
            start=min(event.observed_at, event.ingested_at),
            end=event.ingested_at,
            attributes={
                **self._about,
                **attributes(
                    messaging__operation__type="create",
                    messaging__operation__name="create",
                    messaging__destination__name=topic,
                    acp__source=event.source,
                    acp__revision=event.revision,
                ),
            },
        )

    def sends(self) -> Sequence[Span]:
        """Returns one span per delivery with an attempt that ended."""
        return [
            self._send(delivery)
            for delivery in self._event.deliveries
            if delivery["state"] not in _OPEN or delivery["failures"]
        ]

    def processes(self) -> Sequence[Span]:
        """Returns one span per processing, failed attempt and dead letter of a consumer."""
        return [
            *(self._failed(failure) for failure in self._event.failures),
            *(self._given_up(letter) for letter in self._event.letters),
            *(self._processed(processed) for processed in self._event.processing),
        ]

    def _send(self, delivery: Row) -> Span:
        failures = delivery["failures"]
        events = [
            SpanEvent(
                "exception",
                to_instant(failure["failed_at"]),
                attributes(exception__message=failure["error"], acp__attempt=failure["attempt"]),
            )
            for failure in failures
        ]
        ended = delivery["delivered_at"] or delivery["dead_lettered_at"] or failures[-1]["failed_at"]
        has_failed = delivery["state"] != "delivered"
        trace_id, span_id = self._send_ids(delivery)
        return Span(
            service="relay",
            trace_id=trace_id,
            span_id=span_id,
            parent_id=self._create_id if trace_id == self._trace_id else "",
            name=f"send {delivery['subscription']}",
            kind=Kind.CLIENT,
            start=self._promised_at(delivery, ended),
            end=to_instant(ended),
            attributes={
                **self._about,
                **attributes(
                    messaging__operation__type="send",
                    messaging__operation__name="send",
                    messaging__destination__name=delivery["subscription"],
                    messaging__message__id=delivery["message_id"],
                    acp__topic=delivery["topic"],
                    acp__operation_id=delivery["operation_id"],
                    acp__delivery_attempts=delivery["delivery_attempts"],
                    acp__state=delivery["state"],
                    error__type=delivery["state"] if has_failed else None,
                ),
            },
            events=events,
            links=[(self._trace_id, self._create_id)],
            error=delivery["last_error"] or delivery["state"] if has_failed else None,
        )

    def _send_ids(self, delivery: Row) -> tuple[str, str]:
        """Returns the trace and the span of a delivery; a replay is a trace of its own, linked to the old one."""
        operation = delivery["operation_id"]
        trace_id = self._trace_id
        if delivery["operation_kind"] == "replay":
            trace_id = id_of("replay", operation, self._event.event_id, size=16)
        return trace_id, id_of(
            "send", self._event.event_id, delivery["topic"], delivery["subscription"], operation or ""
        )

    def _promised_at(self, delivery: Row, ended: str) -> datetime:
        promised = delivery["promised_at"] or delivery["requested_at"]
        if promised is None and delivery["operation_id"] is None:
            promised = delivery["created_at"]
        return to_instant(promised or ended)

    def _sent(self, subscription: str, operation_id: str | None, message_id: str | None = None) -> Row | None:
        """Returns the delivery that a consumer's record is about; None where it cannot be told."""
        of_it = [
            delivery
            for delivery in self._event.deliveries
            if delivery["subscription"] == subscription and delivery["state"] == "delivered"
        ]
        for delivery in of_it:
            if message_id is not None and delivery["message_id"] == message_id:
                return delivery
        for delivery in of_it:
            if delivery["operation_id"] == operation_id:
                return delivery
        return of_it[0] if of_it else None

    def _process(
        self,
        subscription: str,
        sent: Row | None,
        at: str,
        span_id: str,
        *,
        failure: tuple[str, str] | None = None,
        **about: str | int | None,
    ) -> Span:
        """Returns a consumer's span; ``failure`` is the error's type and what it said."""
        trace_id, links = self._trace_id, []
        if sent is not None:
            trace_id, send_id = self._send_ids(sent)
            links = [(trace_id, send_id)]
        is_replay = trace_id != self._trace_id
        return Span(
            service=subscription,
            trace_id=trace_id,
            span_id=span_id,
            parent_id=links[0][1] if is_replay else self._create_id,
            name=f"process {subscription}",
            kind=Kind.CONSUMER,
            start=to_instant(at),
            end=to_instant(at),
            attributes={
                **self._about,
                **attributes(
                    messaging__operation__type="process",
                    messaging__operation__name="process",
                    messaging__destination__name=subscription,
                    error__type=failure and failure[0],
                    **about,
                ),
            },
            links=[(self._trace_id, self._create_id)] if is_replay else links,
            error=failure and failure[1],
        )

    def _processed(self, processed: Row) -> Span:
        consumer, operation = processed["consumer"], processed["operation_id"]
        sent = self._sent(consumer, operation)
        return self._process(
            consumer,
            sent,
            processed["processed_at"],
            id_of("process", self._event.event_id, consumer, operation or ""),
            messaging__message__id=None if sent is None else sent["message_id"],
            acp__operation_id=operation,
        )

    def _failed(self, failure: Row) -> Span:
        subscription, message_id = failure["subscription"], failure["message_id"]
        return self._process(
            subscription,
            self._sent(subscription, None, message_id),
            failure["failed_at"],
            id_of("failure", self._event.event_id, failure["id"]),
            failure=("consume_failed", failure["error"]),
            messaging__message__id=message_id,
            acp__attempt=failure["attempt"],
        )

    def _given_up(self, letter: Row) -> Span:
        subscription, message_id = letter["subscription"], letter["message_id"]
        return self._process(
            subscription,
            self._sent(subscription, letter["operation_id"], message_id),
            letter["dead_lettered_at"],
            id_of("letter", self._event.event_id, letter["id"]),
            failure=("dead_lettered", letter["reason"]),
            messaging__message__id=message_id,
            acp__dead_letter_id=letter["id"],
            acp__delivery_attempts=letter["delivery_attempts"],
        )
