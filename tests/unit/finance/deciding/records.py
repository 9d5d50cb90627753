"""Records of finance's decisions, made without a database: what the engine would append, step by step."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from control_plane.model.deciding import (
    Agent,
    CallAgents,
    Close,
    Command,
    Decision,
    Gather,
    ObserveAt,
    Propose,
    Record,
    Simulate,
    Step,
)  # fmt: skip
from domains.finance.deciding import measures
from domains.finance.deciding.agents import AGENTS, STAND_INS
from domains.finance.deciding.playbook import UnusualBar

AT = datetime(2008, 9, 29, tzinfo=UTC)
DECISION = Decision(
    decision_id=UUID(int=77),
    domain="finance",
    playbook="unusual_bar",
    playbook_version="1",
    pins_sha256=b"",
    anomaly_kind="price_move",
    source="test",
    entity_id="AAPL",
    series="1d",
    occurred_at=AT,
    trigger_event_id=UUID(int=1),
    trace_id=UUID(int=2),
    is_shadow=False,
    state="opened",
    deadline=AT + timedelta(minutes=15),
    budget_micros=0,
    opened_at=AT,
)


def quiet_returns(count: int = 260, size: int = 10_000) -> list[int]:
    """Returns that look random, with a standard deviation of roughly ``size`` ppm."""
    state, found = 12345, []
    for _ in range(count):
        state = (state * 1_103_515_245 + 12_345) % 2**31
        found.append((state >> 8) % (4 * size) - 2 * size)
    return found


def evidence(move: int = -180_000, *, held: int = 100, **changes: Any) -> dict[str, Any]:
    """Evidence of a bar that moved by so many ppm, of an account that holds so many units."""
    before = changes.pop("returns_ppm", quiet_returns())
    sigma = measures.sigma_ppm(before)
    z_milli = measures.in_sigmas_milli(move, sigma)
    wide = changes.pop("is_market_wide", False)
    close = 100_000_000 * (1_000_000 + move) // 1_000_000
    value = held * close
    positions = []
    if held:
        positions.append(
            {
                "source": "test", "entity_id": "AAPL", "quantity_micros": held * 1_000_000, "price_micros": close,
                "value_micros": value, "returns_ppm": [*before, move], "scale_ppm": 1_500_000,
            }
        )  # fmt: skip
    found = {
        "source": "test",
        "entity_id": "AAPL",
        "series": "1d",
        "anomaly": {"kind": "price_move"},
        "bar": {
            "event_id": str(UUID(int=9)), "revision": 0, "occurred_at": "2008-09-29T00:00:00Z",
            "open_micros": 100_000_000, "high_micros": 100_000_000, "low_micros": close, "close_micros": close,
            "previous_close_micros": 100_000_000, "return_ppm": move, "adjusted_return_ppm": move, "currency": "USD",
            "series": "1d",
        },
        "problem": None,
        "sigma_ppm": sigma,
        "z_milli": z_milli,
        "severity": measures.severity(z_milli, is_market_wide=wide),
        "returns_ppm": before,
        "scale_ppm": 1_500_000,
        "market": {
            "entities": 5, "fell": 5 if wide else 2, "median_return_ppm": -80_000 if wide else -1_000,
            "is_market_wide": wide,
            "z_milli": [-5_000] * 5 if wide else [-9_000, 0, 0, 100, -100],
        },
        "corporate_actions": [],
        "neighbours": [],
        "portfolio": {
            "account": "paper", "currency": "USD", "cash_micros": 1_000_000_000,
            "value_micros": value + 1_000_000_000, "others_micros": 0, "positions": positions,
        },
    }  # fmt: skip
    return found | changes


@dataclass
class Run:
    """A decision that is being decided, with agents that may be replaced or fail."""

    gathered: Mapping[str, Any]
    agents: Mapping[str, Agent] = field(default_factory=lambda: {agent.name: agent for agent in (*AGENTS, *STAND_INS)})
    failing: frozenset[str] = frozenset()
    failure: str = "failed"
    record: Record = field(default_factory=lambda: Record(DECISION, []))
    playbook: UnusualBar = field(default_factory=UnusualBar)
    states: list[str] = field(default_factory=list)

    def append(self, kind: str, body: Mapping[str, Any], *, state: str | None = None, parent: int | None = None) -> int:
        """Appends a step as the engine would."""
        seq = len(self.record.steps)
        content = json.dumps(body, sort_keys=True, separators=(",", ":")).encode()
        step = Step(seq, parent, kind, "engine", AT, json.loads(content))
        decision = replace(self.record.decision, state=state or self.record.decision.state)
        artifacts = {**self.record.artifacts, hashlib.sha256(content).digest(): content}
        self.record = Record(decision, [*self.record.steps, step], artifacts)
        if state is not None and state not in self.states:
            self.states.append(state)
        return seq

    def until_waiting(self) -> Command:
        """Runs commands until somebody else has to act; returns the command that waits."""
        for _ in range(20):
            command = self.playbook.next(self.record)
            match command:
                case Gather():
                    self.append("evidence", self.gathered, state="gathering")
                case CallAgents(state, calls):
                    self._call(state, calls)
                case Simulate(spec):
                    self.append("simulation", self.playbook.simulate(self.record, spec), state="simulating")
                case Propose() | ObserveAt() | Close():
                    return command
                case _:
                    raise AssertionError(command)
        raise AssertionError("the playbook goes in circles")

    def _call(self, state: str, calls: Any) -> None:
        seq = self.append(
            "calls",
            {"state": state, "calls": [{"agent": call.agent, "agent_version": "1"} for call in calls]},
            state=state,
        )
        answers = {}
        for call in calls:
            if call.agent in self.failing:
                answers[call.agent] = {"outcome": self.failure, "seq": seq, "answer": None, "answer_sha256": None}
                continue
            agent = self.agents[call.agent]
            result = agent.call(json.dumps(call.request).encode(), attempt=1, seconds_left=1)
            assert result.answer is not None
            agent.answer_type.model_validate_json(result.answer)
            answers[call.agent] = {
                "outcome": "answered", "seq": seq, "answer": json.loads(result.answer), "answer_sha256": "00",
            }  # fmt: skip
        self.append("answers", {"calls_seq": seq, "answers": answers}, parent=seq)
