"""Consumes one SQS message: parses its event, applies its effect, logs and counts the outcome."""

from collections.abc import Callable, Mapping
from typing import Any
from uuid import UUID

from control_plane.consumers.failures import ConsumeFailure
from control_plane.consumers.records import LONGEST_COUNT, as_number, as_uuid, attribute_of, object_of
from control_plane.model.contract import Event, EventTypes
from control_plane.model.errors import ContractViolation, ControlPlaneError, MalformedInvocation
from control_plane.model.text import readable
from control_plane.platform.conflicts import retry_conflicts
from control_plane.platform.telemetry import Telemetry


def consume_batch(
    event: Mapping[str, Any], consume: Callable[[Mapping[str, Any]], None], *, subscription: str, telemetry: Telemetry
) -> dict[str, Any]:
    """Hands each record of a batch to ``consume``, and names in ``batchItemFailures`` the records for which it raised.

    A record without a messageId can be neither consumed nor sent back: it is counted and logged, and the others go on.
    Raises MalformedInvocation for an event that holds no list of records.
    """
    records = event.get("Records")
    if not isinstance(records, list):
        raise MalformedInvocation(
            "the event has no list of Records, so it is no batch of SQS messages: events/signal_lab.json shows one"
        )
    failures: list[dict[str, str]] = []
    for place, record in enumerate(records):
        message_id = record.get("messageId") if isinstance(record, dict) else None
        if not isinstance(message_id, str) or not message_id:
            telemetry.count("ConsumeFailures", 1)
            telemetry.logger.error(
                "MalformedInvocation",
                state="failed",
                subscription=subscription,
                error=f"record {place} of the batch is no object with a messageId, so it cannot be sent back",
            )
            continue
        try:
            consume(record)
        except Exception:  # noqa: BLE001 - consume_record has counted and logged it
            failures.append({"itemIdentifier": message_id})
    return {"batchItemFailures": failures}


def consume_record(
    record: Mapping[str, Any],
    consume: Callable[[Event], bool],
    *,
    subscription: str,
    event_types: EventTypes,
    telemetry: Telemetry,
    remember: Callable[[ConsumeFailure], None] | None = None,
) -> None:
    """Passes the event of an SQS record to ``consume``, and counts and logs the outcome once, with its ids.

    A failure is also given to ``remember``, which records it for the message's dead letter; what that raises is logged,
    and never hides the failure itself.

    ``consume`` runs one transaction, commits it, and returns whether it changed anything. It is called again if its
    transaction conflicts with another one. Errors that it raises are raised again here.

    ``record`` has Lambda's shape: ``messageId``, ``body``, ``messageAttributes``, ``attributes``. Until the body is
    parsed, the trace_id is read from the message's attributes. Raises ContractViolation for a body that is no event.
    """
    about: dict[str, Any] = {
        "subscription": subscription,
        "message_id": record.get("messageId"),
        "trace_id": attribute_of(record, "trace_id"),
        "event_id": attribute_of(record, "event_id"),
        "operation_id": attribute_of(record, "operation_id"),
        "attempt": object_of(record, "attributes").get("ApproximateReceiveCount"),
    }
    try:
        event = event_types.parse_event(_body(record))
        topic = event_types.find(event.event_type, event.schema_version).topic
        ids = _ids_of(event)
        about |= ids | {"topic": topic}
        # Whatever is logged on the way says what it is about, too.
        with telemetry.logger.append_context_keys(**ids):
            is_new = retry_conflicts(lambda: consume(event))
    except ControlPlaneError as error:
        telemetry.count("ConsumeFailures", 1)
        telemetry.logger.error(  # noqa: TRY400 - the error's text says everything
            type(error).__name__, state="failed", error=str(error), **about
        )
        _remember(remember, about, str(error), telemetry)
        raise
    except Exception as error:
        telemetry.count("ConsumeFailures", 1)
        telemetry.logger.exception(type(error).__name__, state="failed", error=str(error), **about)
        _remember(remember, about, f"{type(error).__name__}: {error}", telemetry)
        raise
    telemetry.count("EventsConsumed" if is_new else "DuplicateDeliveries", 1)
    telemetry.logger.info("consumed", state="consumed" if is_new else "duplicate", **about)


def _ids_of(event: Event) -> dict[str, str]:
    """Returns the ids that log lines about an event have; decision_id where its payload names a decision."""
    ids = {"trace_id": str(event.trace_id), "event_id": str(event.event_id)}
    decision_id = event.payload.get("decision_id")
    return ids | ({"decision_id": decision_id} if isinstance(decision_id, str) else {})


def operation_of(record: Mapping[str, Any]) -> UUID | None:
    """Returns the operation under which a message is delivered; None for the live flow, and for what is no id."""
    try:
        return UUID(attribute_of(record, "operation_id") or "")
    except ValueError:
        return None


def _remember(
    remember: Callable[[ConsumeFailure], None] | None, about: Mapping[str, Any], error: str, telemetry: Telemetry
) -> None:
    if remember is None:
        return
    try:
        remember(
            ConsumeFailure(
                subscription=about["subscription"],
                message_id=readable(str(about["message_id"])),
                event_id=as_uuid(about["event_id"]),
                trace_id=as_uuid(about["trace_id"]),
                attempt=as_number(about["attempt"], LONGEST_COUNT),
                error=readable(error).strip() or "an error without a text",
            )
        )
    except Exception as problem:  # noqa: BLE001 - the message's own failure is what counts
        telemetry.logger.warning("the failure is not recorded", error=str(problem), **about)


def _body(record: Mapping[str, Any]) -> str:
    body = record.get("body", "")
    if not isinstance(body, str):
        raise ContractViolation("must be text", field="body", value=body)
    return body
