"""The rules by which one of the simulated options is chosen."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from domains.finance.deciding import measures

NOTHING: Final = "do_nothing"
TOLERATED_PPM: Final = 20_000
"""An expected shortfall within this share of the portfolio is borne without an action."""
LEAST_SEVERITY: Final = 2
_CONCENTRATED_PPM: Final = 500_000
"""From this share of the portfolio on, selling half of a position is worth its cost in a fall of the whole market."""


@dataclass(frozen=True, slots=True)
class Choice:
    """An option, why it was taken, and why each other was not."""

    option: str
    why: str
    rejected: dict[str, str]


def allowed_options(hypothesis: str, *, severity: int, exposure_ppm: int) -> Sequence[str]:
    """Returns the options that an explanation admits. Nothing is done about a split, an error or a riddle.

    One company's news is in its price after the fall, and we claim no skill in direction: a small hedge at most. A
    falling market concerns everything that is held.
    """
    if severity < LEAST_SEVERITY or hypothesis not in ("single_name_fall", "market_wide_fall"):
        return (NOTHING,)
    if hypothesis == "single_name_fall":
        return (NOTHING, "hedge_small")
    if exposure_ppm >= _CONCENTRATED_PPM:
        return (NOTHING, "hedge_small", "hedge_large", "reduce_half")
    return (NOTHING, "hedge_small", "hedge_large")


def recommend(request: Mapping[str, Any]) -> Choice:
    """Returns the allowed option with the least expected shortfall, or to do nothing where that can be borne."""
    options = {option["name"]: option for option in request["options"]}
    allowed = allowed_options(request["hypothesis"], severity=request["severity"], exposure_ppm=request["exposure_ppm"])
    nothing = options[NOTHING]
    candidates = [name for name in options if name == NOTHING or (name in allowed and options[name]["action"])]
    best = min(candidates, key=lambda name: (options[name]["expected_shortfall_micros"], options[name]["cost_micros"]))
    borne = measures.share_ppm(nothing["expected_shortfall_micros"], request["portfolio_micros"]) <= TOLERATED_PPM
    chosen = NOTHING if borne else best
    return Choice(
        chosen,
        _why(chosen, request, is_borne=borne, is_alone=len(candidates) == 1),
        {name: _why_not(name, allowed, options, is_borne=borne) for name in options if name != chosen},
    )


def _why(chosen: str, request: Mapping[str, Any], *, is_borne: bool, is_alone: bool) -> str:
    if chosen != NOTHING:
        return "Of the options that this explanation admits it has the least expected shortfall."
    if is_alone:
        reasons = {
            "split": "A split changes the price of a share and nobody's wealth: there is nothing to act on.",
            "data_error": "There is nothing to act on in prices that may be wrong.",
            "unexplained": "No explanation that calls for an action stands up to the evidence.",
        }
        return reasons.get(
            request["hypothesis"], "The move is not severe enough, or nothing is held that could be sold."
        )
    if is_borne:
        return "The expected shortfall of doing nothing is within what the account bears."
    return "No option has a smaller expected shortfall than doing nothing."


def _why_not(name: str, allowed: Sequence[str], options: Mapping[str, Any], *, is_borne: bool) -> str:
    if name == NOTHING:
        return "Its expected shortfall is more than the account bears."
    if name not in allowed:
        return "The explanation does not admit it."
    if not options[name]["action"]:
        return "Nothing is held that could be sold."
    return "Doing nothing can be borne." if is_borne else "Another option has a smaller expected shortfall."
