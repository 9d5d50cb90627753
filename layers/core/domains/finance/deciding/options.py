"""The options that are simulated before one is chosen, doing nothing among them."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from domains.finance.deciding import measures
from domains.finance.deciding.recommending import NOTHING

ACCOUNT: Final = "paper"
_SHARES_PPM: Final = {"hedge_small": 100_000, "hedge_large": 250_000, "reduce_half": 500_000}
"""How much of the position each option sells."""
ACTION_TYPES: Final = {
    NOTHING: "HOLD",
    "hedge_small": "HEDGE",
    "hedge_large": "HEDGE",
    "reduce_half": "REDUCE",
}
_COST_PPM: Final = {"HEDGE": 2_000, "REDUCE": 1_000}
"""Half a spread and fees are 0.1 % of what is traded; a hedge is bought back after the horizon."""


def build_options(evidence: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """Returns every option with its action (None: nothing is traded) and its cost. None ever sells what is not held."""
    bar, position = evidence["bar"], own_position(evidence)
    held = position["quantity_micros"] if position else 0
    options: list[dict[str, Any]] = [{"name": NOTHING, "action": None, "cost_micros": 0}]
    for name, share in _SHARES_PPM.items():
        quantity = held * share // measures.MILLION
        notional = quantity * bar["close_micros"] // measures.MILLION
        action = None
        if quantity > 0 and notional > 0:
            action = {
                "source": evidence["source"],
                "entity_id": evidence["entity_id"],
                "series": evidence["series"],
                "side": "sell",
                "quantity_micros": quantity,
                "reference_price_micros": bar["close_micros"],
                "notional_micros": notional,
                "currency": bar["currency"],
            }
        cost = measures.nearest(notional * _COST_PPM[ACTION_TYPES[name]], measures.MILLION) if action else 0
        options.append({"name": name, "action": action, "cost_micros": cost})
    return options


def own_position(evidence: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Returns the account's position in the entity that the evidence is about."""
    return next(
        (
            position
            for position in evidence["portfolio"]["positions"]
            if (position["source"], position["entity_id"]) == (evidence["source"], evidence["entity_id"])
        ),
        None,
    )
