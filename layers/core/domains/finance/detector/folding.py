"""Folds events into the detector's tables: what the bars measure, and which of them are unusual."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

from psycopg import Connection
from psycopg.types.json import Jsonb

from control_plane.model.contract import Event, parse_payload
from control_plane.platform.queries import load_queries
from domains.finance.detector import scoring
from domains.finance.detector.scoring import Action, Finding, Judged, Measures, Prices
from domains.finance.events import MARKET_PAYLOADS, CorporateDividend, CorporateSplit, MarketTick

QUERIES: Final = load_queries(__package__)
_BEGINNING: Final = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Judgement:
    """A bar that was judged anew, and all that is unusual about it now."""

    interval: str
    bar: Judged
    found: tuple[Finding, ...]


def fold(connection: Connection[Any], events: Sequence[Event]) -> list[Judgement]:
    """Keeps what the events say, where nothing newer is kept, and judges every bar on which that bears.

    Each event is one of MARKET_PAYLOADS, and some entity's. It tells nothing: its caller may make of what it returns
    what it likes. Raises psycopg.Error.
    """
    judgements: list[Judgement] = []
    for event in events:
        assert event.entity_id is not None, "a price is some entity's"
        payload = parse_payload(MARKET_PAYLOADS[event.event_type, event.schema_version], event.payload)
        one = _Fold(connection, event, event.entity_id)
        if isinstance(payload, MarketTick):
            judgements += one.bar(payload)
        elif isinstance(payload, CorporateSplit):
            judgements += one.action("split", payload.numerator / payload.denominator, None)
        elif isinstance(payload, CorporateDividend):
            judgements += one.action("dividend", payload.amount, payload.currency)
    return judgements


@dataclass(frozen=True, slots=True)
class _Kept:
    """A bar as it is stored."""

    prices: Prices
    revision: int
    event_id: UUID
    follows_gap: bool
    has_later_actions: bool
    """Whether there are splits or dividends after it."""


@dataclass(frozen=True, slots=True)
class _Found:
    """A row of detector_findings."""

    kind: str
    state: str
    score: float
    event_id: UUID
    details: dict[str, Any]

    @classmethod
    def read(cls, row: Mapping[str, Any]) -> "_Found":
        """Returns a row that Postgres has written as JSON."""
        return cls(row["kind"], row["state"], row["score"], UUID(row["event_id"]), row["details"])


class _Fold:
    """Folds one event of one entity within the caller's transaction, after whoever else folds one of that entity."""

    def __init__(self, connection: Connection[Any], event: Event, entity_id: str) -> None:
        self._connection = connection
        self._event = event
        self._about = {"source": event.source, "entity_id": entity_id}
        self._read("lock_entity")

    def bar(self, tick: MarketTick) -> list[Judgement]:
        """Folds a bar, unless a later revision of it is there; returns what was judged anew."""
        interval, at = tick.interval, self._event.occurred_at
        before, same, after = self._around(interval, at)
        if same is not None and (same.revision, same.event_id) >= (self._event.revision, self._event.event_id):
            return []
        prices = Prices(at, tick.open, tick.high, tick.low, tick.price, tick.currency)
        actions = self._actions(before, at if after is None else after.prices.occurred_at)
        measures = scoring.measure(
            None if before is None else before.prices,
            prices,
            [action for action in actions if action.occurred_at <= at],
            interval,
        )
        self._execute(
            "keep_bar",
            **tick.model_dump(),
            **asdict(measures),
            occurred_at=at,
            revision=self._event.revision,
            event_id=self._event.event_id,
        )
        kinds = {measures.follows_gap}
        if same is not None:
            kinds.add(same.follows_gap)
        if after is not None:
            later = [action for action in actions if action.occurred_at > at]
            kinds |= self._measure_again(after, prices, later, interval)
        return self._judge(interval, at, kinds)

    def action(self, kind: str, amount: float, currency: str | None) -> list[Judgement]:
        """Folds a split or a dividend; returns what was judged anew.

        It belongs to the first bar from its instant on, of each interval.
        """
        at = self._event.occurred_at
        kept = self._read(
            "keep_action",
            kind=kind,
            occurred_at=at,
            amount=amount,
            currency=currency,
            revision=self._event.revision,
            event_id=self._event.event_id,
        )
        judgements: list[Judgement] = []
        if not kept:
            return judgements
        for interval, first in self._read("first_bars_from", at=at):
            before, bar, _ = self._around(interval, first)
            if bar is not None and before is not None:
                kinds = self._measure_again(bar, before.prices, self._actions(before, first), interval)
                judgements += self._judge(interval, first, kinds)
        return judgements

    def _around(self, interval: str, at: datetime) -> tuple[_Kept | None, _Kept | None, _Kept | None]:
        """Returns the bar before an instant, the one at it, and the one after it."""
        rows = [_Kept(Prices(*row[:6]), *row[6:]) for row in self._read("bars_around", interval=interval, at=at)]
        before = next((row for row in rows if row.prices.occurred_at < at), None)
        same = next((row for row in rows if row.prices.occurred_at == at), None)
        after = next((row for row in rows if row.prices.occurred_at > at), None)
        return before, same, after

    def _actions(self, before: _Kept | None, until: datetime) -> list[Action]:
        """Returns the actions after a bar, up to an instant."""
        if before is not None and not before.has_later_actions:
            return []
        after = _BEGINNING if before is None else before.prices.occurred_at
        return [Action(*row) for row in self._read("actions_between", after=after, until=until)]

    def _measure_again(self, bar: _Kept, before: Prices, actions: Sequence[Action], interval: str) -> set[bool]:
        """Measures a bar anew after another one, and returns the kinds whose windows that changes."""
        measures = scoring.measure(before, bar.prices, actions, interval)
        self._execute("measure_bar", **asdict(measures), interval=interval, occurred_at=bar.prices.occurred_at)
        return {bar.follows_gap, measures.follows_gap}

    def _judge(self, interval: str, at: datetime, kinds: set[bool]) -> list[Judgement]:
        """Judges every bar anew whose window a change at an instant touches, and keeps what is found."""
        judgements: list[Judgement] = []
        for kind in sorted(kinds):
            rows = self._read("window", interval=interval, at=at, follows_gap=kind, window=scoring.WINDOW)
            returns, excursions = [row[0] for row in rows], [row[1] for row in rows]
            for place, (
                log_return,
                excursion,
                occurred_at,
                event_id,
                revision,
                adjustment,
                previous_at,
                findings,
            ) in enumerate(rows):
                if event_id is None:
                    continue
                bar = Judged(
                    occurred_at, event_id, revision, Measures(previous_at, kind, log_return, adjustment, excursion)
                )
                start = max(0, place - scoring.WINDOW)
                found = [
                    self._explained(one) for one in scoring.findings(bar, returns[start:place], excursions[start:place])
                ]
                self._keep(interval, bar, found, [_Found.read(row) for row in findings or ()])
                judgements.append(Judgement(interval, bar, tuple(found)))
        return judgements

    def _explained(self, finding: Finding) -> Finding:
        """Returns a finding with the actions that its bar was adjusted for."""
        if not finding.bar.measures.adjustment:
            return finding
        actions = self._read("actions_between", after=finding.bar.measures.previous_at, until=finding.bar.occurred_at)
        told = [Action(*row).to_json() for row in actions]
        return replace(finding, details=finding.details | {"corporate_actions": told})

    def _keep(self, interval: str, bar: Judged, found: Sequence[Finding], kept: Sequence[_Found]) -> None:
        """Puts what is found of a bar in the place of what was."""
        before = {one.kind: one for one in kept}
        for finding in found:
            state = "explained" if finding.is_explained else "detected"
            if before.pop(finding.kind, None) != _Found(
                finding.kind, state, finding.score, bar.event_id, finding.details
            ):
                self._execute(
                    "keep_finding",
                    interval=interval,
                    occurred_at=bar.occurred_at,
                    kind=finding.kind,
                    state=state,
                    score=finding.score,
                    threshold=finding.threshold,
                    event_id=bar.event_id,
                    revision=bar.revision,
                    details=Jsonb(finding.details),
                )
        for kind in before:
            self._execute("drop_finding", interval=interval, occurred_at=bar.occurred_at, kind=kind)

    def _read(self, name: str, **values: Any) -> list[Any]:
        return self._connection.execute(QUERIES[name].sql, self._about | values).fetchall()

    def _execute(self, name: str, **values: Any) -> None:
        self._connection.execute(QUERIES[name].sql, self._about | values)
