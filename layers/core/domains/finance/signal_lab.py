"""SignalLab: the latest price per entity, and the bar history its risk view is computed from."""

from typing import Any, Final

from psycopg import Connection

from control_plane.consumers.once import once
from control_plane.model.contract import Event, parse_payload
from control_plane.model.errors import ContractViolation
from control_plane.platform.queries import load_queries
from domains.finance.events import MarketTick

QUERIES: Final = load_queries(__package__)
CONSUMER: Final = "signal_lab"


def consume(connection: Connection[Any], event: Event) -> bool:
    """Applies a market tick; returns whether that changed anything. Any order of delivery ends in the same state.

    Events of other types or schema versions change nothing. Raises ContractViolation for a tick that breaks the
    contract or has no entity, and psycopg.Error if the database fails.
    """
    if (event.event_type, event.schema_version) != (MarketTick.event_type, MarketTick.schema_version):
        return False
    if event.entity_id is None:
        raise ContractViolation("is missing: a price is some entity's", field="entity_id")
    tick = parse_payload(MarketTick, event.payload)
    with once(connection, consumer=CONSUMER, event_id=event.event_id) as is_first:
        if is_first:
            values = {
                **tick.model_dump(),
                "source": event.source,
                "entity_id": event.entity_id,
                "occurred_at": event.occurred_at,
                "series": event.series,
                "revision": event.revision,
                "event_id": event.event_id,
            }
            connection.execute(QUERIES["keep_bar"].sql, values)
            connection.execute(QUERIES["keep_latest_price"].sql, values)
    return is_first
