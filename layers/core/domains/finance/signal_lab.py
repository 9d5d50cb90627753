"""SignalLab: the latest price per entity, and the bars, splits and dividends that its risk view is computed from."""

from typing import Any, Final
from uuid import UUID

from psycopg import Connection

from control_plane.consumers.once import once
from control_plane.model.contract import Event, parse_payload
from control_plane.model.errors import ContractViolation
from control_plane.platform.queries import load_queries
from domains.finance.events import MARKET_PAYLOADS, CorporateDividend, CorporateSplit, MarketTick
from domains.finance.paper_account import fill_orders

QUERIES: Final = load_queries(__package__)
CONSUMER: Final = "signal_lab"


def consume(connection: Connection[Any], event: Event, operation_id: UUID | None = None) -> bool:
    """Applies a tick, a split or a dividend; returns whether that changed anything, whatever the order of delivery.

    A replay applies it again, which is safe: the newest revision stands, and the newest price.

    Another event type or schema version is none of its business and changes nothing. Raises ContractViolation for an
    event that breaks the contract or is no entity's, psycopg.Error where the database fails.
    """
    model = MARKET_PAYLOADS.get((event.event_type, event.schema_version))
    if model is None:
        return False
    if event.entity_id is None:
        raise ContractViolation("is missing: a price is some entity's", field="entity_id")
    payload = parse_payload(model, event.payload)
    with once(connection, consumer=CONSUMER, event_id=event.event_id, operation_id=operation_id) as is_first:
        if is_first:
            values = {
                **payload.model_dump(),
                "source": event.source,
                "entity_id": event.entity_id,
                "occurred_at": event.occurred_at,
                "series": event.series,
                "revision": event.revision,
                "event_id": event.event_id,
            }
            if isinstance(payload, MarketTick):
                connection.execute(QUERIES["keep_bar"].sql, values)
                connection.execute(QUERIES["keep_latest_price"].sql, values)
                fill_orders(connection, source=event.source, entity_id=event.entity_id, series=event.series)
            elif isinstance(payload, CorporateSplit):
                action = {"kind": "split", "amount": payload.numerator / payload.denominator}
                connection.execute(QUERIES["keep_corporate_action"].sql, values | action)
            elif isinstance(payload, CorporateDividend):
                connection.execute(QUERIES["keep_corporate_action"].sql, values | {"kind": "dividend"})
    return is_first
