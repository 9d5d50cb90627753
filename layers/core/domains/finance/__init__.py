"""Finance: market prices in, the latest price, its risk and what is unusual about it out."""

from typing import Final

from control_plane.model.domain import Consumer, Domain
from domains.finance import detector, signal_lab
from domains.finance.events import MARKET_TICKS, CorporateDividend, CorporateSplit, MarketTick

DOMAIN: Final = Domain(
    name="finance",
    payloads=(MarketTick, CorporateSplit, CorporateDividend),
    consumers=(
        Consumer(signal_lab.CONSUMER, MARKET_TICKS, signal_lab.consume),
        Consumer(detector.CONSUMER, MARKET_TICKS, detector.consume),
    ),
    deciding="domains.finance.deciding",
)
