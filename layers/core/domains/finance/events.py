"""The events of finance."""

from typing import Annotated, Final

from pydantic import Field

from control_plane.model.contract import FiniteNumber, Name, Payload, WholeNumber

MARKET_TICKS: Final = "market.ticks"


class MarketTick(Payload):
    """One closed bar of one instrument; prices are in ``currency``, and ``price`` is the close.

    The event's ``series`` is the bar's ``interval``: a 1m and a 1d bar of one midnight are two observations.
    """

    event_type = "MARKET_TICK_INGESTED"
    schema_version = 1
    topic = MARKET_TICKS

    price: FiniteNumber
    open: FiniteNumber
    high: FiniteNumber
    low: FiniteNumber
    volume: WholeNumber
    currency: Name
    interval: Annotated[str, Field(pattern=r"^[1-9][0-9]{0,3}(m|h|d|wk|mo)$")]
