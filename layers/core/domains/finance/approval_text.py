"""What an approver is shown: action, loss and evidence as our code computes them, then the prose, marked as such.

A model's prose may say anything. It comes last, each line marked, and its numbers that nothing supports are listed.
"""

import re
from collections.abc import Iterator
from decimal import ROUND_HALF_UP, Decimal
from typing import Any, Final
from unicodedata import east_asian_width

from control_plane.model.deciding import Judged
from control_plane.model.ids import canonical_instant
from control_plane.model.text import visible
from domains.finance.deciding import measures
from domains.finance.evidence_check import Grounds

MARK: Final = "  | "
_NUMBER: Final = re.compile(r"\d[\d,]*(?:\.\d+)?")
_LINE: Final = 74
"""Cells of a line after its mark: with it, fewer than a terminal's 80, so that no line goes on without one."""
_MOST_DIGITS: Final = 15
"""Of a number in prose; nothing that we compute has more."""


def render(judged: Judged, grounds: Grounds) -> str:
    """Returns the text, in lines of fewer than 80 cells; whatever is longer is cut, and a mark says so."""
    action: Any = judged.action
    evidence, bar = grounds.evidence, grounds.evidence.bar
    currency = visible(action.currency)
    chosen, nothing = grounds.simulation.named(judged.proposal.option), grounds.simulation.nothing
    assert chosen is not None, "the evidence was checked"
    assert nothing is not None, "the evidence was checked"
    share = _percent(measures.share_ppm(action.notional_micros, evidence.portfolio.value_micros))
    order = f"{action.side} {_amount(action.quantity_micros)} {_name(action.entity_id, 16)}"
    moved = f"{_percent(bar.return_ppm)}; adjusted {_percent(bar.adjusted_return_ppm)}"
    wide = "the whole market" if grounds.is_market_wide else "not the whole market"
    lines = [
        f"{judged.action_type}: {order} at {_amount(action.reference_price_micros)} {currency}",
        f"  amount      {_amount(action.notional_micros)} {currency}, {share} of account {_name(judged.account, 16)}",
        f"  option      {_name(judged.proposal.option)}",
        "Loss on average in the worst twentieth of the simulated paths",
        f"  with it     {_amount(chosen.expected_shortfall_micros)} {currency}",
        f"  without     {_amount(nothing.expected_shortfall_micros)} {currency}",
        f"Evidence: bar {visible(bar.series)} of {canonical_instant(judged.decision.occurred_at)}",
        f"  close       {_amount(bar.close_micros)} after {_amount(bar.previous_close_micros)}, {moved}",
        f"  market      {evidence.market.fell} of {evidence.market.entities} fell; {wide}",
        f"  severity    {grounds.severity} of 4",
        f"  explanation {_name(judged.proposal.hypothesis)}",
    ]
    return "\n".join([*lines, *_prose(judged, grounds)])


def unsupported_numbers(judged: Judged, grounds: Grounds) -> list[str]:
    """Returns the numbers in the prose that neither the evidence nor the simulation nor the action support."""
    supported = list(_supported(judged, grounds))
    numbers = dict.fromkeys(_NUMBER.findall(judged.proposal.summary or ""))
    return [text for text in numbers if not any(_says(text, value) for value in supported)]


def _prose(judged: Judged, grounds: Grounds) -> Iterator[str]:
    if judged.proposal.summary is None:
        return
    yield "Summary by the agents, not checked; nothing follows from it:"
    # Spaces of any other kind have the width of a word, and hide where a line ends.
    text = " ".join(visible(judged.proposal.summary).split())
    while text:
        most = _fitting(text, _LINE)
        cut = len(text) if most == len(text) else max(text.rfind(" ", 0, most), 0) or most
        yield f"{MARK}{text[:cut]}"
        text = text[cut:].lstrip()
    unsupported = unsupported_numbers(judged, grounds)
    if unsupported:
        yield f"Numbers in it that nothing supports: {len(unsupported)}"
    for number in unsupported[:20]:
        yield f"  ! {_name(number, _LINE)}"


def _name(text: str, most: int = 60) -> str:
    """Returns a text in one line of at most so many cells."""
    shown = " ".join(visible(text).split())
    fitting = _fitting(shown, most)
    return shown if fitting == len(shown) else f"{shown[: _fitting(shown, most - 2)]}…"


def _fitting(text: str, cells: int) -> int:
    """Returns how many of its first characters take no more than so many cells, whatever the terminal."""
    for count, character in enumerate(text):
        cells -= 2 if east_asian_width(character) in "WFA" else 1
        if cells < 0:
            return count
    return len(text)


def _supported(judged: Judged, grounds: Grounds) -> Iterator[Decimal]:
    """Yields every number that may be cited, in the units that prose uses."""
    at = judged.decision.occurred_at
    yield from map(Decimal, (at.year, at.month, at.day, at.hour, at.minute, measures.HORIZON_BARS))
    for step_kind in ("evidence", "simulation"):
        step = judged.record.last(step_kind)
        if step is not None:
            yield from _numbers(dict(step.body), "")
    yield from _numbers(judged.action.model_dump(), "")
    yield from _numbers(judged.claims.model_dump(), "")
    yield from map(Decimal, (grounds.severity, 4))


def _numbers(value: Any, name: str) -> Iterator[Decimal]:
    match value:
        case bool():
            return
        case int():
            yield from _in_units(Decimal(value), name)
        case dict():
            for key, item in value.items():
                yield from _numbers(item, key if not key.isdigit() else name)
        case list() if not name.endswith("returns_ppm"):  # hundreds of them would support almost any number
            for item in value:
                yield from _numbers(item, name)


def _in_units(value: Decimal, name: str) -> Iterator[Decimal]:
    if name.endswith("_micros"):
        yield value / 1_000_000
    elif name.endswith("_ppm"):
        yield value / 10_000  # per cent
    elif name.endswith("_milli"):
        yield value / 1_000
    else:
        yield value


def _says(text: str, value: Decimal) -> bool:
    """Whether a number as it is written is a value rounded to as many decimals."""
    digits = text.replace(",", "")
    decimals = len(digits.partition(".")[2])
    if len(digits) > _MOST_DIGITS + 1:  # a point among them
        return False
    try:
        return Decimal(digits) == abs(value).quantize(Decimal(1).scaleb(-decimals), rounding=ROUND_HALF_UP)
    except ArithmeticError:  # of a value with so many digits before the point that it cannot have so many after it
        return False


def _amount(micros: int) -> str:
    return f"{Decimal(micros) / 1_000_000:,.2f}"


def _percent(ppm: int) -> str:
    return f"{Decimal(ppm) / 10_000:+.1f} %"
