"""The spans of an event, made of what the pipeline's own statements record."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import UUID

from psycopg import Connection
from tests.integration import seeds
from tests.integration.redriving import redrive

from control_plane.consumers.once import once
from control_plane.model.lifecycle import Accepted, Failed
from control_plane.ops.dead_letters import DeadLetterFilter
from control_plane.tracing import events
from control_plane.tracing.events import event_spans
from control_plane.tracing.record import RecordedEvent, read_events
from control_plane.tracing.spans import Kind, Span


def recorded(connection: Connection[Any], event_id: UUID) -> RecordedEvent:
    (event,) = read_events(connection, [event_id])
    return event


def spans(connection: Connection[Any], event_id: UUID) -> dict[str, Span]:
    """Returns an event's spans by name, for an event that has each once."""
    made = event_spans(recorded(connection, event_id))
    assert len({span.span_id for span in made}) == len({span.name for span in made}) == len(made)
    return {span.name: span for span in made}


def deliver(app: Connection[Any], *, fails: Sequence[str] = ()) -> UUID:
    """Stores an event, delivers its message after some failures, and processes it."""
    (event_id,) = seeds.store(app, seeds.ticks(1))
    for error in fails:
        seeds.settle(app, seeds.claim(app), Failed(error))
        seeds.pass_time(app)
    seeds.settle(app, seeds.claim(app), Accepted("m-1"))
    with once(app, consumer="signal_lab", event_id=event_id):
        pass
    return event_id


def test_the_creation_is_the_span_that_traceparent_names(app: Connection[Any]) -> None:
    event_id = deliver(app)
    create = spans(app, event_id)["create market.ticks"]
    assert create.span_id == event_id.hex[16:]
    assert (create.trace_id, create.parent_id, create.kind) == (UUID(int=1).hex, "", Kind.PRODUCER)
    assert create.attributes["messaging.operation.type"] == "create"
    assert create.end == recorded(app, event_id).ingested_at


def test_send_and_process_are_children_of_the_creation_and_linked(app: Connection[Any]) -> None:
    event_id = deliver(app)
    found = spans(app, event_id)
    assert found.keys() == {"create market.ticks", "send signal_lab", "process signal_lab"}
    create, send, process = found.values()
    assert send.parent_id == process.parent_id == create.span_id
    assert {send.trace_id, process.trace_id} == {create.trace_id}
    assert send.links == [(create.trace_id, create.span_id)]
    assert process.links == [(send.trace_id, send.span_id)]
    assert (send.kind, process.kind) == (Kind.CLIENT, Kind.CONSUMER)
    assert send.attributes["messaging.message.id"] == process.attributes["messaging.message.id"] == "m-1"
    assert send.start <= send.end
    assert send.error is process.error is None


def test_each_failed_attempt_is_an_event_of_its_send(app: Connection[Any]) -> None:
    event_id = deliver(app, fails=["throttled", "throttled again"])
    send = spans(app, event_id)["send signal_lab"]
    assert [event.attributes["exception.message"] for event in send.events] == ["throttled", "throttled again"]
    assert send.attributes["acp.delivery_attempts"] == 3
    assert send.error is None
    assert events.has_failed(recorded(app, event_id))
    assert not events.has_failed(recorded(app, deliver_another(app)))


def deliver_another(app: Connection[Any]) -> UUID:
    (event_id,) = seeds.store(app, [seeds.tick(7)])
    seeds.settle(app, seeds.claim(app), Accepted("m-7"))
    return event_id


def test_a_dead_letter_is_a_send_that_failed_and_its_redrive_another(
    app: Connection[Any], owner: Connection[Any]
) -> None:
    (event_id,) = seeds.store(app, seeds.ticks(1))
    seeds.give_up(app, reason="no such queue")
    dead = spans(app, event_id)["send signal_lab"]
    assert dead.error is not None
    assert "no such queue" in dead.error
    assert dead.attributes["error.type"] == "dead_lettered"
    redrive(owner, DeadLetterFilter(subscription="signal_lab"))
    seeds.settle(app, seeds.claim(app), Accepted("m-2"))
    made = [span for span in event_spans(recorded(app, event_id)) if span.name == "send signal_lab"]
    assert {span.span_id for span in made} > {dead.span_id}
    assert {span.trace_id for span in made} == {dead.trace_id}
    assert [span.error is None for span in made] == [False, True]


def test_what_a_consumer_failed_at_is_a_span_of_its_own(app: Connection[Any], owner: Connection[Any]) -> None:
    event_id = deliver(app)
    owner.execute(
        "INSERT INTO consume_failures (subscription, message_id, event_id, attempt, error)"
        " VALUES ('signal_lab', 'm-1', %s, 1, 'a lock'), ('signal_lab', 'm-1', %s, 2, 'a lock again')",
        [event_id, event_id],
    )
    made = [span for span in event_spans(recorded(app, event_id)) if span.name == "process signal_lab"]
    assert [span.error for span in made] == ["a lock", "a lock again", None]
    assert [span.attributes.get("error.type") for span in made] == ["consume_failed", "consume_failed", None]
    assert len({span.span_id for span in made}) == 3
    assert len({tuple(span.links) for span in made}) == 1


def test_a_pending_delivery_that_nobody_tried_has_no_span(app: Connection[Any]) -> None:
    (event_id,) = seeds.store(app, seeds.ticks(1))
    assert spans(app, event_id).keys() == {"create market.ticks"}
    seeds.settle(app, seeds.claim(app), Failed("throttled"))
    assert spans(app, event_id)["send signal_lab"].attributes["acp.state"] == "retrying"


def test_an_export_waits_for_the_delivery_and_then_a_while_for_the_consumer(app: Connection[Any]) -> None:
    (event_id,) = seeds.store(app, seeds.ticks(1))
    assert not events.is_settled(recorded(app, event_id))
    seeds.settle(app, seeds.claim(app), Accepted("m-1"))
    delivered = recorded(app, event_id)
    assert not events.is_settled(delivered)
    assert events.is_settled(later(delivered, events.PROCESSING_WAIT))
    with once(app, consumer="signal_lab", event_id=event_id):
        pass
    assert events.is_settled(recorded(app, event_id))


def test_an_export_waits_a_day_for_what_goes_on_failing(app: Connection[Any], owner: Connection[Any]) -> None:
    (event_id,) = seeds.store(app, seeds.ticks(1))
    assert not events.is_settled(later(recorded(app, event_id), events.PROCESSING_WAIT))
    seeds.settle(app, seeds.claim(app), Accepted("m-1"))
    owner.execute(
        "INSERT INTO consume_failures (subscription, message_id, event_id, attempt, error)"
        " VALUES ('signal_lab', 'm-1', %s, 1, 'a lock')",
        [event_id],
    )
    failing = recorded(app, event_id)
    assert not events.is_settled(later(failing, events.PROCESSING_WAIT))
    assert events.is_settled(later(failing, events.DELIVERY_WAIT + timedelta(seconds=1)))


def later(event: RecordedEvent, wait: timedelta) -> RecordedEvent:
    """Returns what would be read of an event after a while in which nothing happens."""
    return replace(event, read_at=event.read_at + wait)
