"""Consuming one SQS message: parsing its event, applying its effect, logging and counting the outcome."""

from collections.abc import Callable, Mapping
from typing import Any

from control_plane.model.contract import Event, EventTypes
from control_plane.model.errors import ControlPlaneError
from control_plane.platform.conflicts import retry_conflicts
from control_plane.platform.telemetry import Telemetry


def consume_record(
    record: Mapping[str, Any],
    consume: Callable[[Event], bool],
    *,
    subscription: str,
    event_types: EventTypes,
    telemetry: Telemetry,
) -> None:
    """Passes the event of an SQS record to ``consume``, and counts and logs the outcome once, with its trace_id.

    ``consume`` is one transaction; it commits and returns whether it changed anything. It is called again if it
    conflicts with another transaction. Its errors are raised again.

    ``record`` has Lambda's shape: ``messageId``, ``body``, ``messageAttributes``, ``attributes``. Until the body is
    parsed, the trace_id is that of the message's attributes. Raises ContractViolation for a body that is no event.
    """
    about: dict[str, Any] = {
        "subscription": subscription,
        "message_id": record.get("messageId"),
        "trace_id": _attribute(record, "trace_id"),
        "event_id": _attribute(record, "event_id"),
        "attempt": (record.get("attributes") or {}).get("ApproximateReceiveCount"),
    }
    try:
        event = event_types.parse_event(record.get("body", ""))
        topic = event_types.find(event.event_type, event.schema_version).topic
        about |= {"trace_id": str(event.trace_id), "event_id": str(event.event_id), "topic": topic}
        is_new = retry_conflicts(lambda: consume(event))
    except ControlPlaneError as error:
        telemetry.count("ConsumeFailures", 1)
        telemetry.logger.error(  # noqa: TRY400 - its text says all; a trace of our own frames adds nothing
            type(error).__name__, state="failed", error=str(error), **about
        )
        raise
    except Exception as error:
        telemetry.count("ConsumeFailures", 1)
        telemetry.logger.exception(type(error).__name__, state="failed", error=str(error), **about)
        raise
    telemetry.count("EventsConsumed" if is_new else "DuplicateDeliveries", 1)
    telemetry.logger.info("consumed", state="consumed" if is_new else "duplicate", **about)


def _attribute(record: Mapping[str, Any], name: str) -> str | None:
    attribute = (record.get("messageAttributes") or {}).get(name) or {}
    value = attribute.get("stringValue")
    return value if isinstance(value, str) else None
