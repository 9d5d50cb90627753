"""W3C Trace Context: a trace_id is 16 bytes, so it is the trace id of ``traceparent``."""


def traceparent(trace_id: str, event_id: str) -> str:
    """Returns ``00-<trace id>-<parent id>-01``; the parent is the event, named by the last 8 bytes of its id.

    Both ids are text as Postgres renders a uuid: lower case, with hyphens.
    """
    return f"00-{trace_id.replace('-', '')}-{event_id[19:23]}{event_id[24:]}-01"
