"""An action of finance: what the gate releases and the paper account reads, in one shape for both."""

from typing import Annotated, Literal

from pydantic import Field, ValidationError

from control_plane.model.contract import Name
from control_plane.model.deciding import ActionSchema

type Positive = Annotated[int, Field(ge=1, le=10**15)]
"""An amount in millionths; the bound keeps every product and sum of the policies within 64 bits."""


class Order(ActionSchema):
    """Buy or sell so much of one instrument at its bar's close. Quantities, prices and amounts are in millionths."""

    source: Name
    entity_id: Name
    series: Annotated[str, Field(pattern=r"^[1-9][0-9]{0,3}(m|h|d|wk|mo)$")]
    """The bars that tell its price: the order is filled at the next of them."""
    side: Literal["buy", "sell"]
    quantity_micros: Positive
    reference_price_micros: Positive
    notional_micros: Positive
    currency: Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9]{1,9}$")]


class Hedge(Order):
    """Sells a part of a position for the time of the horizon."""


class Reduce(Order):
    """Sells a part of a position for good."""


def read_order(body: bytes) -> Order | None:
    """Returns the order that an action's bytes hold; None where they hold none."""
    try:
        return Order.model_validate_json(body)
    except ValidationError:
        return None
