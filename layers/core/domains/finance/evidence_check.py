"""Recomputes what a proposal of finance's claims, from its record and from the events as they are now, in integers."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import ConfigDict, Field, ValidationError

from control_plane.model.deciding import Judged
from control_plane.model.late import LateModel
from domains.finance.deciding import measures
from domains.finance.paper_account.orders import Positive

type Micros = Annotated[int, Field(ge=-(10**15), le=10**15)]
"""An amount in millionths; the bound keeps every product and sum of the policies within 64 bits."""
type Ppm = Annotated[int, Field(ge=-(10**12), le=10**12)]


class _Part(LateModel):
    """What is read of a step; what else stands there is not relied on."""

    model_config = ConfigDict(extra="ignore", strict=True)


class BarEvidence(_Part):
    """The bar that the decision is about, as traded."""

    event_id: str
    revision: int
    occurred_at: str
    open_micros: Micros
    high_micros: Micros
    low_micros: Micros
    close_micros: Positive
    previous_close_micros: Positive
    return_ppm: Ppm
    adjusted_return_ppm: Ppm
    currency: str
    series: str


class Market(_Part):
    """What all entities did at that instant."""

    entities: Annotated[int, Field(ge=0)]
    fell: Annotated[int, Field(ge=0)]
    z_milli: list[int]
    is_market_wide: bool


class Corporate(_Part):
    """A split or a dividend that took effect with the bar."""

    kind: Literal["split", "dividend"]
    ratio_ppm: Positive = measures.MILLION
    amount_micros: Micros = 0


class Position(_Part):
    """What the account holds of one entity."""

    source: str
    entity_id: str
    value_micros: Micros


class Portfolio(_Part):
    """The account at the bar; account_check holds it against the account."""

    account: str
    currency: str
    cash_micros: Micros
    value_micros: Positive
    others_micros: Micros
    positions: Annotated[list[Position], Field(max_length=20)]


class Evidence(_Part):
    """A step ``evidence``."""

    source: str
    entity_id: str
    series: str
    problem: str | None
    bar: BarEvidence
    returns_ppm: Annotated[list[Ppm], Field(max_length=260)]
    market: Market
    corporate_actions: list[Corporate]
    portfolio: Portfolio

    @property
    def has_split(self) -> bool:
        """Whether a split took effect with the bar."""
        return any(action.kind == "split" for action in self.corporate_actions)


class Option(_Part):
    """One simulated option."""

    name: str
    action: dict[str, Any] | None
    expected_shortfall_micros: Micros


class Simulation(_Part):
    """A step ``simulation``."""

    options: list[Option]

    def named(self, name: str) -> Option | None:
        """Returns an option by its name; None where there is none, or two."""
        found = [option for option in self.options if option.name == name]
        return found[0] if len(found) == 1 else None

    @property
    def nothing(self) -> Option | None:
        """Returns the option of doing nothing."""
        found = [option for option in self.options if option.action is None and option.name == "do_nothing"]
        return found[0] if len(found) == 1 else None


@dataclass(frozen=True, slots=True)
class StoredBar:
    """A bar's event, as it is stored."""

    event_id: UUID
    event_type: str
    source: str
    entity_id: str
    series: str
    occurred_at: datetime
    revision: int
    newest_revision: int
    open_micros: int
    high_micros: int
    low_micros: int
    close_micros: int
    currency: str
    previous_close_micros: int | None
    """The newest close before it, in its latest revision."""


@dataclass(frozen=True, slots=True)
class StoredAction:
    """A split or a dividend of a bar, as it is stored."""

    kind: str
    ratio_ppm: int
    amount_micros: int


@dataclass(frozen=True, slots=True)
class Present:
    """What the database says now of what the evidence is about."""

    bar: StoredBar | None
    actions: Sequence[StoredAction]
    is_market_wide: bool


@dataclass(frozen=True, slots=True)
class Grounds:
    """What a proposal rests on."""

    evidence: Evidence
    simulation: Simulation
    severity: int
    is_market_wide: bool


class Ungrounded(Exception):
    """Raised where a proposal rests on steps that are not there, or are not what they must be."""


def grounds_of(judged: Judged) -> Grounds:
    """Returns what a proposal rests on, read from its record. Raises Ungrounded."""
    evidence = _read(judged, "evidence", judged.proposal.evidence_seq, Evidence)
    simulation = _read(judged, "simulation", judged.proposal.simulation_seq, Simulation)
    is_market_wide = measures.is_market_wide(evidence.market.z_milli)
    move = measures.in_sigmas_milli(evidence.bar.adjusted_return_ppm, measures.sigma_ppm(evidence.returns_ppm))
    return Grounds(evidence, simulation, measures.severity(move, is_market_wide=is_market_wide), is_market_wide)


def claims_that_fail(judged: Judged, grounds: Grounds) -> Iterator[str]:
    """Yields what a proposal says that its evidence does not."""
    claims: Any = judged.claims
    bar = grounds.evidence.bar
    if claims.return_ppm != measures.return_ppm(bar.close_micros, bar.previous_close_micros):
        yield f"a return of {claims.return_ppm} ppm is claimed, and the bar's is {bar.return_ppm}"
    if claims.is_market_wide != grounds.is_market_wide:
        yield f"is_market_wide is {claims.is_market_wide} in the claims, and {grounds.is_market_wide} by the evidence"
    if claims.severity != grounds.severity:
        yield f"severity {claims.severity} is claimed, and it is {grounds.severity}"
    option = grounds.simulation.named(judged.proposal.option)
    if option is None:
        yield f"no single option {judged.proposal.option!r} was simulated"
    else:
        if option.action != judged.action.model_dump():
            yield "the action is not the one that was simulated"
        if claims.expected_shortfall_micros != option.expected_shortfall_micros:
            yield (
                f"an expected shortfall of {claims.expected_shortfall_micros} is claimed, and "
                f"{option.expected_shortfall_micros} was simulated"
            )
    if grounds.simulation.nothing is None:
        yield "doing nothing was not simulated"
    hypothesis = judged.proposal.hypothesis
    if hypothesis == "market_wide_fall" and not grounds.is_market_wide:
        yield "the market did not fall with it"
    if hypothesis == "single_name_fall" and grounds.is_market_wide:
        yield "the market fell with it"


def action_faults(judged: Judged, grounds: Grounds) -> Iterator[str]:
    """Yields what is wrong with the action itself."""
    action: Any = judged.action
    decision, evidence = judged.decision, grounds.evidence
    if (action.source, action.entity_id, action.series) != (decision.source, decision.entity_id, decision.series):
        yield "the action is about another entity or series than its decision"
    if action.reference_price_micros != evidence.bar.close_micros:
        yield "the action's reference price is not the bar's close"
    if action.notional_micros != action.quantity_micros * action.reference_price_micros // measures.MILLION:
        yield "the action's notional is not its quantity × price"
    if action.currency != evidence.bar.currency or action.currency != evidence.portfolio.currency:
        yield "the action's currency is not that of its bar and account"
    if judged.account != evidence.portfolio.account:
        yield "the evidence is about another account"


def evidence_faults(judged: Judged, grounds: Grounds) -> Iterator[str]:
    """Yields where the evidence contradicts itself or its decision."""
    decision, evidence, bar = judged.decision, grounds.evidence, grounds.evidence.bar
    if evidence.problem is not None:
        yield f"nothing may rest on it: {evidence.problem}"
    if (evidence.source, evidence.entity_id, evidence.series) != (
        decision.source,
        decision.entity_id,
        decision.series,
    ) or bar.series != decision.series:
        yield "the evidence is about another entity or series than its decision"
    if len(evidence.returns_ppm) < measures.FEWEST_RETURNS:
        yield "too few returns are known before the bar"
    if bar.return_ppm != measures.return_ppm(bar.close_micros, bar.previous_close_micros):
        yield "the bar's return is not that of its prices"
    ratio = measures.MILLION
    for action in evidence.corporate_actions:
        ratio = measures.nearest(ratio * action.ratio_ppm, measures.MILLION)
    paid = sum(action.amount_micros for action in evidence.corporate_actions)
    adjusted = measures.return_ppm(bar.close_micros, bar.previous_close_micros, ratio_ppm=ratio, paid=paid)
    if bar.adjusted_return_ppm != adjusted:
        yield "the bar's adjusted return is not that of its prices and corporate actions"
    market = evidence.market
    fell = sum(z < 0 for z in market.z_milli)
    if (market.is_market_wide, market.entities, market.fell) != (grounds.is_market_wide, len(market.z_milli), fell):
        yield "what is said of the market contradicts itself"


def bar_faults(judged: Judged, grounds: Grounds, stored: StoredBar | None) -> Iterator[str]:
    """Yields where the bar is not, or is no longer, what the events say."""
    decision, bar = judged.decision, grounds.evidence.bar
    if stored is None:
        yield "its bar is no event"
        return
    if stored.event_type != "MARKET_TICK_INGESTED":
        yield f"its bar is an event {stored.event_type}"
    if (stored.source, stored.entity_id, stored.series, stored.occurred_at) != (
        decision.source,
        decision.entity_id,
        decision.series,
        decision.occurred_at,
    ):
        yield "its bar is another entity's, or of another instant"
    if stored.revision != bar.revision or stored.revision != stored.newest_revision:
        yield f"its bar is superseded: it was revision {bar.revision}, and {stored.newest_revision} is the newest"
    if not all(
        _is_same_price(getattr(stored, name), getattr(bar, name))
        for name in ("open_micros", "high_micros", "low_micros", "close_micros")
    ):
        yield "its bar's prices are not those of the event"
    if stored.currency != bar.currency:
        yield "its bar's currency is not that of the event"
    if stored.previous_close_micros is None or not _is_same_price(
        stored.previous_close_micros, bar.previous_close_micros
    ):
        yield "the close before is superseded, or is not the one in the evidence"


def present_faults(grounds: Grounds, present: Present) -> Iterator[str]:
    """Yields where more, or less, is known now than when the evidence was gathered."""
    known = [StoredAction(each.kind, each.ratio_ppm, each.amount_micros) for each in grounds.evidence.corporate_actions]
    if _in_order(known) != _in_order(present.actions):
        yield "the splits and dividends in it are not, or are no longer, those that are stored"
    if present.is_market_wide != grounds.evidence.market.is_market_wide:
        others = "others fell with it" if present.is_market_wide else "others did not fall with it"
        yield f"the market has moved on since it was gathered: {others}"


def faults(judged: Judged, grounds: Grounds, present: Present) -> Sequence[str]:
    """Returns everything that does not hold."""
    return [
        *bar_faults(judged, grounds, present.bar),
        *present_faults(grounds, present),
        *evidence_faults(judged, grounds),
        *action_faults(judged, grounds),
        *claims_that_fail(judged, grounds),
    ]


def _in_order(actions: Sequence[StoredAction]) -> Sequence[StoredAction]:
    return sorted(actions, key=lambda action: (action.kind, action.ratio_ppm, action.amount_micros))


def _is_same_price(one: int, other: int) -> bool:
    # A double's digits are rounded to millionths in two places; a tie may fall either way.
    return abs(one - other) <= 1


def _read[P: _Part](judged: Judged, kind: str, seq: int, model: type[P]) -> P:
    step = next((one for one in judged.record.steps if one.seq == seq), None)
    if step is None or step.kind != kind or step != judged.record.last(kind):
        raise Ungrounded(f"step {seq} is not the decision's newest {kind}")
    try:
        return model.model_validate(dict(step.body))
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        raise Ungrounded(f"the {kind} is not usable: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
