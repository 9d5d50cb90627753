"""A message from SQS, as a consumer meets it."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from control_plane.domain.contract import Event, parse_event
from control_plane.domain.errors import ControlPlaneError
from control_plane.platform.telemetry import Telemetry


@contextmanager
def received_event(record: Mapping[str, Any], telemetry: Telemetry) -> Iterator[Event]:
    """The event of an SQS record; what goes wrong with it is logged once, with its trace_id, and raised on.

    ``record`` has Lambda's shape: ``messageId``, ``body``, ``messageAttributes``, ``attributes``. The trace_id comes
    from the message's attributes, for a body that breaks the contract may not give it. Raises ContractViolation.
    """
    about: dict[str, Any] = {
        "message_id": record.get("messageId"),
        "trace_id": _attribute(record, "trace_id"),
        "event_id": _attribute(record, "event_id"),
        "attempt": (record.get("attributes") or {}).get("ApproximateReceiveCount"),
    }
    try:
        event = parse_event(record.get("body", ""))
        about |= {"trace_id": str(event.trace_id), "event_id": str(event.event_id), "topic": event.topic}
        yield event
        telemetry.logger.info("consumed", state="consumed", **about)
    except ControlPlaneError as error:
        telemetry.logger.error(type(error).__name__, state="failed", error=str(error), **about)  # noqa: TRY400
        raise
    except Exception as error:
        telemetry.logger.exception(type(error).__name__, state="failed", error=str(error), **about)
        raise


def _attribute(record: Mapping[str, Any], name: str) -> str | None:
    attribute = (record.get("messageAttributes") or {}).get(name) or {}
    value = attribute.get("stringValue")
    return value if isinstance(value, str) else None
