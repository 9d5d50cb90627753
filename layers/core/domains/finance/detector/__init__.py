"""The detector: turns bars that are unusual into ANOMALY_DETECTED.

What it keeps is a fold of the events: a late bar, a corrected one, and a split that is told after it, recompute every
window that they touch, so that the order of delivery never matters. What it has told is a record beside it.
"""

from typing import Any, Final

from psycopg import Connection

from control_plane.consumers.once import once
from control_plane.consumers.rebuilding import fold_events
from control_plane.model.contract import Event, parse_payload
from control_plane.model.domain import Rebuild
from control_plane.model.errors import ContractViolation
from domains.finance.detector.folding import fold
from domains.finance.detector.telling import tell
from domains.finance.events import MARKET_PAYLOADS

CONSUMER: Final = "detector"


def consume(connection: Connection[Any], event: Event) -> bool:
    """Folds a bar, a split or a dividend, and tells what that changes; returns whether the event was new.

    Another event type or schema version is none of its business and changes nothing. Raises ContractViolation for an
    event that breaks the contract or is no entity's, psycopg.Error where the database fails.
    """
    model = MARKET_PAYLOADS.get((event.event_type, event.schema_version))
    if model is None:
        return False
    if event.entity_id is None:
        raise ContractViolation("is missing: a price is some entity's", field="entity_id")
    parse_payload(model, event.payload)
    with once(connection, consumer=CONSUMER, event_id=event.event_id) as is_first:
        if is_first:
            tell(connection, event, fold_events(connection, CONSUMER, fold, [event]))
    return is_first


REBUILD: Final = Rebuild(
    tables=("detector_bars", "detector_corporate_actions", "detector_findings"),
    event_types=tuple(sorted({event_type for event_type, _ in MARKET_PAYLOADS})),
    fold=fold,
    events_per_second=250,
)
