"""The event types of the domain finance."""

from typing import Annotated, Final

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from control_plane.model.contract import FiniteNumber, Payload, WholeNumber

MARKET_TICKS: Final = "market.ticks"


def _not_zero(price: float) -> float:
    if price == 0:
        raise PydanticCustomError("price", "is 0: nothing is traded for nothing")
    return price


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
    currency: Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9]{1,9}$")]
    """As the exchange writes it: USD, and GBp for pence."""
    interval: Annotated[str, Field(pattern=r"^[1-9][0-9]{0,3}(m|h|d|wk|mo)$")]
