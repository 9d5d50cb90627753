"""An action of finance as its client reads it: an order on the paper account."""

from typing import Annotated, Final, Literal

from pydantic import Field, ValidationError

from control_plane.model.deciding import ActionSchema

_MOST_MICROS: Final = 2**53 - 1


class Order(ActionSchema):
    """Buy or sell so much of one instrument. Quantities and prices are in millionths."""

    source: Annotated[str, Field(min_length=1, max_length=128)]
    entity_id: Annotated[str, Field(min_length=1, max_length=128)]
    series: Annotated[str, Field(pattern=r"^[1-9][0-9]{0,3}(m|h|d|wk|mo)$")]
    side: Literal["buy", "sell"]
    quantity_micros: Annotated[int, Field(gt=0, le=_MOST_MICROS)]
    reference_price_micros: Annotated[int, Field(gt=0, le=_MOST_MICROS)]
    notional_micros: Annotated[int, Field(gt=0, le=_MOST_MICROS)]
    currency: Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9]{1,9}$")]


def read_order(body: bytes) -> Order | None:
    """Returns the order that an action's bytes hold; None where they hold none."""
    try:
        return Order.model_validate_json(body)
    except ValidationError:
        return None
