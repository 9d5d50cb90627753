"""W3C Trace Context: a trace_id is 16 bytes, so it is the trace id of ``traceparent``."""

from uuid import UUID


def traceparent(trace_id: UUID, event_id: UUID) -> str:
    """``00-<trace id>-<parent id>-01``; the parent is the event, named by the last 8 bytes of its id."""
    return f"00-{trace_id.hex}-{event_id.hex[16:]}-01"
