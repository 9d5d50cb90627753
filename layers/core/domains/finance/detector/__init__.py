"""The detector: turns bars that are unusual into ANOMALY_DETECTED.

What it keeps is a fold of the events: a late bar, a corrected one, and a split that is told after it, recompute every
window that they touch, so that the order of delivery never matters.
"""

from typing import Any, Final

from psycopg import Connection

from control_plane.consumers.once import once
from control_plane.model.contract import Event, parse_payload
from control_plane.model.errors import ContractViolation
from domains.finance.detector.fold import Fold
from domains.finance.events import CorporateDividend, CorporateSplit, MarketTick

CONSUMER: Final = "detector"


def consume(connection: Connection[Any], event: Event) -> bool:
    """Folds a bar, a split or a dividend; returns whether the event was new.

    Another event type or schema version is none of its business and changes nothing. Raises ContractViolation for an
    event that breaks the contract or is no entity's, psycopg.Error where the database fails.
    """
    models = (MarketTick, CorporateSplit, CorporateDividend)
    model = next(
        (m for m in models if (m.event_type, m.schema_version) == (event.event_type, event.schema_version)), None
    )
    if model is None:
        return False
    if event.entity_id is None:
        raise ContractViolation("is missing: a price is some entity's", field="entity_id")
    payload = parse_payload(model, event.payload)
    with once(connection, consumer=CONSUMER, event_id=event.event_id) as is_first:
        if is_first:
            fold = Fold(connection, event, event.entity_id)
            if isinstance(payload, MarketTick):
                fold.bar(payload)
            elif isinstance(payload, CorporateSplit):
                fold.action("split", payload.numerator / payload.denominator, None)
            elif isinstance(payload, CorporateDividend):
                fold.action("dividend", payload.amount, payload.currency)
    return is_first
