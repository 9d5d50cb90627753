"""W3C Trace Context: a trace_id is 16 bytes, so it is the trace id of ``traceparent``."""

from typing import Final

_SAMPLES: Final = 1 << 48


def traceparent(trace_id: str, event_id: str, *, is_sampled: bool = False) -> str:
    """Returns ``00-<trace id>-<parent id>-<flags>``; the parent is the event, named by the last 8 bytes of its id.

    The flags are 01 where the event's spans will be exported, otherwise 00. Both ids are text as Postgres renders a
    uuid: lower case, with hyphens.
    """
    flags = "01" if is_sampled else "00"
    return f"00-{trace_id.replace('-', '')}-{event_id[19:23]}{event_id[24:]}-{flags}"


def is_sampled(event_id: str, ratio: float) -> bool:
    """Whether an event is among the share ``ratio`` of all events whose spans are exported whatever becomes of them.

    Its id alone decides, so the relay and the export agree. The id is text as Postgres renders a uuid.
    """
    return ratio > 0 and int(event_id[24:], 16) < ratio * _SAMPLES
