"""SignalLab: the latest price per entity, and the bars, splits and dividends that its risk view is computed from."""

from collections.abc import Sequence
from typing import Any, Final
from uuid import UUID

from psycopg import Connection

from control_plane.consumers.once import once
from control_plane.consumers.rebuilding import fold_events
from control_plane.model.contract import Event, parse_payload
from control_plane.model.domain import Rebuild
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
            fold_events(connection, CONSUMER, fold, [event])
            if isinstance(payload, MarketTick):
                fill_orders(connection, source=event.source, entity_id=event.entity_id, series=event.series)
    return is_first


def fold(connection: Connection[Any], events: Sequence[Event]) -> None:
    """Keeps what the events say, where nothing newer is kept; each is one of MARKET_PAYLOADS. Raises psycopg.Error."""
    bars: list[dict[str, Any]] = []
    actions: list[dict[str, Any]] = []
    for event in events:
        payload = parse_payload(MARKET_PAYLOADS[event.event_type, event.schema_version], event.payload)
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
            bars.append(values)
        elif isinstance(payload, CorporateSplit):
            actions.append(values | {"kind": "split", "amount": payload.numerator / payload.denominator})
        elif isinstance(payload, CorporateDividend):
            actions.append(values | {"kind": "dividend"})
    for query, rows in (("keep_bar", bars), ("keep_latest_price", bars), ("keep_corporate_action", actions)):
        if len(rows) == 1:
            connection.execute(QUERIES[query].sql, rows[0])
        elif rows:
            with connection.cursor() as cursor:
                cursor.executemany(QUERIES[query].sql, rows)


REBUILD: Final = Rebuild(
    tables=("signal_lab_bars", "signal_lab_latest_prices", "signal_lab_corporate_actions"),
    event_types=tuple(sorted({event_type for event_type, _ in MARKET_PAYLOADS})),
    fold=fold,
)
