"""The event types of the domain finance."""

from collections.abc import Mapping
from typing import Annotated, Final

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from control_plane.model.contract import FiniteNumber, Payload, WholeNumber

MARKET_TICKS: Final = "market.ticks"


def _not_zero(price: float) -> float:
    if price == 0:
        raise PydanticCustomError("price", "is 0: nothing is traded for nothing")
    return price


type Currency = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9]{1,9}$")]
"""As the exchange writes it: USD, and GBp for pence."""
type Part = Annotated[FiniteNumber, Field(ge=1e-6, le=1e6)]
"""Of a split's ratio; no real one comes near these limits."""


class MarketTick(Payload):
    """One closed bar of one instrument; prices are in ``currency``, and ``price`` is the close.

    The event's ``series`` is the bar's ``interval``, so a 1m and a 1d bar of the same midnight are two observations.
    """

    event_type = "MARKET_TICK_INGESTED"
    schema_version = 1
    topic = MARKET_TICKS

    price: Annotated[FiniteNumber, AfterValidator(_not_zero), Field(json_schema_extra={"not": {"const": 0}})]
    open: FiniteNumber
    high: FiniteNumber
    low: FiniteNumber
    volume: WholeNumber
    currency: Currency
    interval: Annotated[str, Field(pattern=r"^[1-9][0-9]{0,3}(m|h|d|wk|mo)$")]


class CorporateSplit(Payload):
    """Shares were split: ``numerator`` new ones for each ``denominator`` old ones, from the event's instant on.

    Prices before that instant are worth denominator / numerator of what they say. They stay as they were traded.
    """

    event_type = "CORPORATE_SPLIT_INGESTED"
    schema_version = 1
    topic = MARKET_TICKS

    numerator: Part
    denominator: Part


class CorporateDividend(Payload):
    """A share bought from the event's instant on does not get this dividend any more: its price falls by so much."""

    event_type = "CORPORATE_DIVIDEND_INGESTED"
    schema_version = 1
    topic = MARKET_TICKS

    amount: Annotated[FiniteNumber, Field(gt=0, le=1e12)]
    """Per share, in ``currency``."""
    currency: Currency


MARKET_PAYLOADS: Final[Mapping[tuple[str, int], type[Payload]]] = {
    (payload.event_type, payload.schema_version): payload for payload in (MarketTick, CorporateSplit, CorporateDividend)
}
"""What is said about an instrument, by event type and schema version."""
