"""A proposal of finance's with all that it rests on, changed piece by piece and judged, with a database or without."""

import copy
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from control_plane.decisions.judgement import AskedApproval, Finding, examine
from control_plane.model.deciding import Decision, Gate, Judged, Record, Step
from control_plane.model.ids import canonical_instant
from domains.finance.deciding import measures
from domains.finance.evidence_check import StoredBar
from domains.finance.gate import FinanceGate, Holding, Release

AT = datetime(2026, 1, 5, 14, 32, tzinfo=UTC)
NOW = AT + timedelta(minutes=2)
DECISION = UUID("3d4fa9c8-5cb9-5d5c-8b93-0c1a3e1d2f01")
BAR = UUID("5f2b8f0e-1c1d-5a39-9b62-7d0f2f7a1b02")
SOURCE, ENTITY, SERIES = "fake", "AAPL", "1m"
MILLION = 1_000_000
RETURNS = [10_000, -10_000] * 30
EVIDENCE_SEQ, SIMULATION_SEQ, PROPOSAL_SEQ = 1, 2, 3


def evidence(
    *, close: int = 80 * MILLION, previous: int = 100 * MILLION, market: Sequence[int] = (-13_500, 200, 300, -100)
) -> dict[str, Any]:
    """Evidence of a bar; by default one name falls by a fifth. Prices in millionths."""
    move = measures.return_ppm(close, previous)
    is_wide = measures.is_market_wide(market)
    return {
        "source": SOURCE,
        "entity_id": ENTITY,
        "series": SERIES,
        "anomaly": {"kind": "return"},
        "problem": None,
        "bar": {
            "event_id": str(BAR),
            "revision": 0,
            "occurred_at": canonical_instant(AT),
            "open_micros": previous,
            "high_micros": max(close, previous),
            "low_micros": min(close, previous),
            "close_micros": close,
            "previous_close_micros": previous,
            "return_ppm": move,
            "adjusted_return_ppm": move,
            "currency": "USD",
            "series": SERIES,
        },
        "returns_ppm": list(RETURNS),
        "market": {
            "entities": len(market),
            "fell": sum(z < 0 for z in market),
            "median_return_ppm": 1_000,
            "z_milli": list(market),
            "is_market_wide": is_wide,
        },
        "corporate_actions": [],
        "neighbours": [],
        "portfolio": {
            "account": "paper",
            "currency": "USD",
            "cash_micros": 92_000 * MILLION,
            "value_micros": 100_000 * MILLION,
            "positions": [
                {
                    "source": SOURCE,
                    "entity_id": ENTITY,
                    "quantity_micros": 100 * MILLION,
                    "price_micros": close,
                    "value_micros": 100 * close,
                }
            ],
        },
    }


@dataclass
class Case:
    """A proposal, its record, and the database as it is. By default it is permitted, and small enough for no person."""

    evidence: dict[str, Any] = field(default_factory=evidence)
    quantity_micros: int = 10 * MILLION
    action_type: str = "HEDGE"
    hypothesis: str = "single_name_fall"
    state: str = "proposed"
    held_micros: int = 100 * MILLION
    being_sold_micros: int = 0
    releases: list[Release] = field(default_factory=list)
    approval: AskedApproval | None = None
    off: list[str] = field(default_factory=list)
    now: datetime = NOW
    is_shadow: bool = False
    shortfall: tuple[int, int] = (900 * MILLION, 1_000 * MILLION)
    """Expected shortfall with the action, and of doing nothing."""
    summary: str | None = None
    decision_id: UUID = DECISION
    stored: StoredBar | None = None
    extra_steps: list[Step] = field(default_factory=list)

    def __post_init__(self) -> None:
        bar = self.evidence["bar"]
        self.action: dict[str, Any] = {
            "source": SOURCE,
            "entity_id": ENTITY,
            "series": SERIES,
            "side": "sell",
            "quantity_micros": self.quantity_micros,
            "reference_price_micros": bar["close_micros"],
            "notional_micros": self.quantity_micros * bar["close_micros"] // MILLION,
            "currency": "USD",
        }
        is_wide = self.evidence["market"]["is_market_wide"]
        z_milli = measures.in_sigmas_milli(bar["adjusted_return_ppm"], measures.sigma_ppm(self.evidence["returns_ppm"]))
        self.proposal: dict[str, Any] = {
            "action_type": self.action_type,
            "account": "paper",
            "option": "hedge_small",
            "claims": {
                "return_ppm": bar["return_ppm"],
                "is_market_wide": is_wide,
                "expected_shortfall_micros": self.shortfall[0],
                "severity": measures.severity(z_milli, is_market_wide=is_wide),
            },
            "evidence_seq": EVIDENCE_SEQ,
            "simulation_seq": SIMULATION_SEQ,
            "hypothesis": self.hypothesis,
            "summary": self.summary,
        }
        self.simulation: dict[str, Any] = {
            "seed": 7,
            "paths": 5_000,
            "horizon_bars": 5,
            "options": [
                {
                    "name": "do_nothing",
                    "action": None,
                    "cost_micros": 0,
                    "expected_shortfall_micros": self.shortfall[1],
                },
                {
                    "name": "hedge_small",
                    "action": copy.deepcopy(self.action),
                    "cost_micros": 2 * MILLION,
                    "expected_shortfall_micros": self.shortfall[0],
                },
                {"name": "hedge_large", "action": {}, "cost_micros": 0, "expected_shortfall_micros": 0},
            ],
        }
        if self.stored is None:
            self.stored = StoredBar(
                BAR,
                "MARKET_TICK_INGESTED",
                SOURCE,
                ENTITY,
                SERIES,
                AT,
                0,
                0,
                bar["open_micros"],
                bar["high_micros"],
                bar["low_micros"],
                bar["close_micros"],
                "USD",
                bar["previous_close_micros"],
            )
        self.body: bytes | None = None
        """The proposal's bytes where they are to be others than its canonical JSON."""
        self.action_bytes: bytes | None = None

    # What a judgement reads

    @property
    def connection(self) -> "Case":
        return self

    def clock(self) -> datetime:
        return self.now

    def record(self) -> tuple[Record, Step, bytes]:
        """The record, its proposal's step, and that one's body."""
        action = self.action_bytes if self.action_bytes is not None else json_bytes(self.action)
        body = self.body if self.body is not None else json_bytes(self.proposal)
        sha256 = hashlib.sha256(action).digest()
        step = Step(PROPOSAL_SEQ, SIMULATION_SEQ, "proposal", "engine", AT, {}, output_sha256=sha256)
        steps = [
            Step(0, None, "opened", "engine", AT, {"opened_by": "acp_decide"}),
            Step(EVIDENCE_SEQ, 0, "evidence", "engine", AT, self.evidence),
            Step(SIMULATION_SEQ, 1, "simulation", "engine", AT, self.simulation),
            step,
            *self.extra_steps,
        ]
        return Record(self.decision(), steps, {sha256: action}), step, body

    def decision(self) -> Decision:
        return Decision(
            decision_id=self.decision_id,
            domain="finance",
            playbook="unusual_bar",
            playbook_version="1",
            pins_sha256=b"",
            anomaly_kind="return",
            source=SOURCE,
            entity_id=ENTITY,
            series=SERIES,
            occurred_at=AT,
            trigger_event_id=UUID(int=1),
            trace_id=UUID(int=2),
            is_shadow=self.is_shadow,
            state=self.state,
            deadline=AT + timedelta(minutes=15),
            budget_micros=0,
            opened_at=AT,
        )

    def judge(self, gate: Gate | None = None) -> Finding:
        """The real judge's finding, without a database."""
        record, step, body = self.record()
        return examine(Now(self), gate or GATE, record, step, body)


@dataclass
class Now:
    """The Present of a case."""

    case: Case
    locked: list[str] = field(default_factory=list)

    @property
    def connection(self) -> Case:
        return self.case

    def now(self) -> datetime:
        return self.case.now

    def lock_account(self, domain: str, account: str) -> None:
        self.locked.append(f"{domain} {account}")

    def approval(self, decision_id: UUID, action_sha256: bytes) -> AskedApproval | None:
        asked = self.case.approval
        return asked if asked is not None and asked.approval_id != UUID(int=0) else None

    def switched_off(self, decision_id: UUID, action_type: str) -> Sequence[str]:
        return self.case.off


class CaseGate(FinanceGate):
    """Finance's gate, which reads the market and the account from a case."""

    def stored_bar(self, connection: Any, event_id: UUID) -> StoredBar | None:
        stored: StoredBar | None = connection.stored
        return stored if stored is not None and stored.event_id == event_id else None

    def holding(self, connection: Any, judged: Judged) -> Holding:
        return Holding(connection.held_micros, connection.being_sold_micros)

    def releases(self, connection: Any, judged: Judged) -> Sequence[Release]:
        releases: Sequence[Release] = connection.releases
        return releases


GATE = CaseGate()


def market_wide_case(**changes: Any) -> Case:
    """A case in which all fell together."""
    wide = evidence(market=(-13_500, -9_000, -8_000, -7_000))
    return Case(**{"evidence": wide, "hypothesis": "market_wide_fall", **changes})


def release(
    *,
    minutes: int = 0,
    entity_id: str = "MSFT",
    notional: int = 1_000 * MILLION,
    is_executed: bool = True,
    is_market_wide: bool = False,
    quantity: int = MILLION,
) -> Release:
    """A release of the account's, so many minutes before the case's bar."""
    context = {
        "notional_micros": notional,
        "quantity_micros": quantity,
        "side": "sell",
        "is_market_wide": is_market_wide,
    }
    return Release(SOURCE, entity_id, AT - timedelta(minutes=minutes), is_executed, context)


def json_bytes(value: Any) -> bytes:
    """Canonical JSON of objects with ASCII keys and no floats; for others, whatever Python makes of them."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "surrogatepass")
