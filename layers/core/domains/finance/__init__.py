"""Finance: it ingests market prices, and keeps each latest price and its risk."""

from typing import Final

from control_plane.model.domain import Consumer, Domain
from domains.finance import signal_lab
from domains.finance.events import MARKET_TICKS, MarketTick

DOMAIN: Final = Domain(
    name="finance",
    payloads=(MarketTick,),
    consumers=(Consumer(signal_lab.CONSUMER, MARKET_TICKS, signal_lab.consume),),
)
