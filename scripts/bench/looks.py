"""Made-up looks at one-minute bars, the same for each side that stores them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final
from uuid import UUID

from control_plane.ingestion.store import Look
from domains.finance.events import MarketTick

if TYPE_CHECKING:
    from collections.abc import Iterator

SOURCE: Final = "bench-ingest"
ENTITIES: Final = ("E1", "E2", "E3", "E4", "E5")
_FROM: Final = datetime(2015, 1, 2, 14, 30, tzinfo=UTC)
_OBSERVED: Final = datetime(2026, 1, 5, 14, 30, tzinfo=UTC)
_TRACE: Final = UUID(int=1)


def batches(first: int, looks: int, size: int) -> Iterator[list[Look]]:
    """Yields so many different looks in batches, from the first one's number on; the last batch may be smaller."""
    for start in range(first, first + looks, size):
        yield [_look(number) for number in range(start, min(start + size, first + looks))]


def _look(number: int) -> Look:
    minute, place = divmod(number, len(ENTITIES))
    price = 100 + number * 7919 % 99_991 / 1_000
    tick = MarketTick(
        price=price,
        open=price - 0.25,
        high=price + 1.125,
        low=price - 1.5,
        volume=number * 31 % 100_000,
        currency="USD",
        interval="1m",
    )
    return Look(
        tick,
        source=SOURCE,
        entity_id=ENTITIES[place],
        entity_type="equity",
        occurred_at=_FROM + timedelta(minutes=minute),
        observed_at=_OBSERVED,
        trace_id=_TRACE,
        series="1m",
    )
