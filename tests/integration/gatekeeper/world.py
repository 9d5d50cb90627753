"""Decisions in a real database, each brought as far as its proposal the way the engine brings it there."""

import hashlib
import json
import threading
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from psycopg import Connection
from tests.conftest import TestDatabase
from tests.integration import seeds
from tests.judgements import AT, ENTITY, MILLION, PROPOSAL_SEQ, SERIES, SOURCE, Case, evidence, json_bytes

from control_plane.decisions.gatekeeper import Verdict, judge
from control_plane.model.deciding import Gate, derived_id
from control_plane.model.ids import canonical_instant
from control_plane.platform.database import connect
from domains.finance.events import MarketTick
from domains.finance.gate import FinanceGate

GATE = FinanceGate()
HELD = ("AAPL", "MSFT", "IBM", "GOOG", "FB", "AMZN")
"""What the account holds unless a test says otherwise."""


@dataclass
class World:
    """A database, and the accounts and bars that decisions are about."""

    database: TestDatabase
    owner: Connection[Any]
    app: Connection[Any]
    decide: Connection[Any]
    gatekeeper: Connection[Any]

    def open_account(self, *, held_micros: int = 100 * MILLION, entities: tuple[str, ...] = (ENTITY,)) -> None:
        """The paper account, which holds so much of each entity, and is worth 100,000 dollars at 80 a unit."""
        cash = 100_000 * MILLION - len(entities) * held_micros * 80
        self.owner.execute("UPDATE paper_accounts SET cash_micros = %s WHERE account = 'paper'", [cash])
        for entity in entities:
            self.owner.execute(
                "INSERT INTO paper_positions (account, source, entity_id, quantity_micros)"
                " VALUES ('paper', %s, %s, %s)"
                " ON CONFLICT (account, source, entity_id) DO UPDATE SET quantity_micros = excluded.quantity_micros",
                [SOURCE, entity, held_micros],
            )

    def portfolio(self, at: datetime) -> dict[str, Any]:
        """What evidence about an instant says of the account as it is, but for its value."""
        positions = [
            {"source": SOURCE, "entity_id": entity, "value_micros": quantity * price // MILLION}
            for entity, quantity, price in self.owner.execute(
                "SELECT DISTINCT ON (entity_id) entity_id, quantity_micros,"
                " round((payload_json ->> 'price')::numeric * 1000000)::bigint FROM paper_positions"
                " JOIN events USING (source, entity_id) WHERE source = %s AND occurred_at <= %s"
                " ORDER BY entity_id, occurred_at DESC, revision DESC",
                [SOURCE, at],
            )
        ]
        row = self.owner.execute("SELECT cash_micros FROM paper_accounts WHERE account = 'paper'").fetchone()
        assert row is not None
        return {
            "account": "paper",
            "currency": "USD",
            "cash_micros": row[0],
            "others_micros": 0,
            "positions": positions,
        }

    def store_bar(self, price: float, *, entity: str = ENTITY, at: datetime = AT, before: float | None = None) -> UUID:
        """Stores a bar's event, as ingestion does; returns its id."""
        opened = price if before is None else before
        tick = MarketTick(
            price=price,
            open=opened,
            high=max(price, opened),
            low=min(price, opened),
            volume=1,
            currency="USD",
            interval=SERIES,
        )
        (event_id,) = seeds.store(self.app, [seeds.look(tick, entity_id=entity, occurred_at=at)])
        return event_id

    def fall_together(self, at: datetime) -> None:
        """Three others fall at an instant, as far as the detector knows, after an hour in which little happened."""
        returns = [0.01, -0.01] * 30 + [-0.1]
        for entity in ("FIRST", "SECOND", "THIRD"):
            price = 100.0
            for number, change in enumerate(returns):
                price *= 1 + change
                self.owner.execute(
                    "INSERT INTO detector_bars (source, entity_id, bar_interval, occurred_at, open, high, low, price,"
                    " volume, currency, revision, event_id, follows_gap, adjustment)"
                    " VALUES (%s, %s, %s, %s, %s, %s, %s, %s, 1, 'USD', 0, gen_random_uuid(), false, 0)"
                    " ON CONFLICT DO NOTHING",
                    [SOURCE, entity, SERIES, at + timedelta(minutes=number + 1 - len(returns)), *[price] * 4],
                )

    def revise_bar(self, price: float, *, entity: str = ENTITY, at: datetime = AT) -> UUID:
        """Stores another look at a bar's instant: a revision."""
        return self.store_bar(price, entity=entity, at=at)

    def propose(self, case: Case | None = None, **about: Any) -> "Proposed":
        """Opens a decision and brings it to its proposal. ``about``: entity, at, is_shadow, minutes, opened_by, and
        what the evidence says of the account."""
        case = case or Case()
        entity, at = about.get("entity", ENTITY), about.get("at", AT)
        bar = case.evidence["bar"]
        before = bar["previous_close_micros"] / MILLION
        if about.get("bars", True):
            self.store_bar(before, entity=entity, at=at - timedelta(minutes=1))
            event_id = self.store_bar(bar["close_micros"] / MILLION, entity=entity, at=at, before=before)
            case.evidence["portfolio"] = told = self.portfolio(at) | about.get("says", {})
            worth = sum(one["value_micros"] for one in told["positions"])
            told["value_micros"] = told["cash_micros"] + told["others_micros"] + worth
            bar |= {"event_id": str(event_id), "occurred_at": canonical_instant(at)}
        if case.evidence["market"]["is_market_wide"]:
            self.fall_together(at)
        for part in (case.evidence, case.action, case.simulation["options"][1]["action"]):
            if part.get("entity_id") == ENTITY:
                part["entity_id"] = entity
        decision_id = derived_id("decision", SOURCE, entity, at, about.get("name", ""))
        proposed = Proposed(self, decision_id, case)
        proposed.open(about.get("opened_by", self.decide), entity, at, about)
        proposed.advance()
        return proposed

    @contextmanager
    def as_role(self, role: str) -> Any:
        """A connection as a role."""
        with connect(self.database.url(role), application_name="test") as connection:
            yield connection


@dataclass
class Proposed:
    """A decision that waits for its verdict."""

    world: World
    decision_id: UUID
    case: Case
    seq: int = PROPOSAL_SEQ

    def open(self, connection: Connection[Any], entity: str, at: datetime, about: dict[str, Any]) -> None:
        pins = _artifact(connection, "pins", b"{}")
        connection.execute(
            "SELECT open_decision(%s, 'finance', 'unusual_bar', '1', %s, 'return', %s, %s, %s, %s, gen_random_uuid(),"
            " gen_random_uuid(), %s, clock_timestamp() + make_interval(mins => %s), 0)",
            [
                self.decision_id,
                pins,
                SOURCE,
                entity,
                SERIES,
                at,
                about.get("is_shadow", False),
                about.get("minutes", 15),
            ],
        )

    def advance(self) -> None:
        """Appends evidence, simulation and proposal, as acp_decide under a lease."""
        decide, case = self.world.decide, self.case
        with decide.transaction():
            row = decide.execute("SELECT fence FROM claim_decision(%s, 'test', 60)", [self.decision_id]).fetchone()
            assert row is not None
            action = case.action_bytes if case.action_bytes is not None else json_bytes(case.action)
            output = _artifact(decide, "action", action)
            self._step(row[0], "evidence", case.evidence_bytes or json_bytes(case.evidence), "gathering")
            for state in ("hypothesising", "scoring"):
                self._move(row[0], state)
            self._step(row[0], "simulation", case.simulation_bytes or json_bytes(case.simulation), "simulating")
            body = case.body if case.body is not None else json_bytes(case.proposal)
            self.seq = self._step(row[0], "proposal", body, "proposed", output)
            decide.execute("SELECT leave_decision(%s, %s, 0)", [self.decision_id, row[0]])

    def _step(self, fence: int, kind: str, body: bytes, state: str | None, output: bytes | None = None) -> int:
        row = self.world.decide.execute(
            "SELECT new_seq FROM advance_decision(%s, %s, %s, 0, %s, NULL, %s, %s, 60)",
            [self.decision_id, fence, kind, body, output, state],
        ).fetchone()
        assert row is not None
        if kind == "evidence":
            self.case.proposal["evidence_seq"] = row[0]
        if kind == "simulation":
            self.case.proposal["simulation_seq"] = row[0]
        return int(row[0])

    def _move(self, fence: int, state: str) -> None:
        self._step(fence, "state", json_bytes({"state": state}), state)

    def move(self, *states: str) -> None:
        """Moves the decision on, as DecisionFunction does."""
        decide = self.world.decide
        with decide.transaction():
            row = decide.execute("SELECT fence FROM claim_decision(%s, 'test', 60)", [self.decision_id]).fetchone()
            assert row is not None
            for state in states:
                self._move(row[0], state)
            decide.execute("SELECT leave_decision(%s, %s, 0)", [self.decision_id, row[0]])

    def judge(self, *, nth: int = 0, gate: Gate | None = GATE, connection: Connection[Any] | None = None) -> Verdict:
        return judge(connection or self.world.gatekeeper, gate, self.decision_id, self.seq, nth)

    # What became of it

    def rows(self, sql: str) -> list[Any]:
        return self.world.owner.execute(sql.encode(), {"id": self.decision_id}).fetchall()

    def verdicts(self) -> list[tuple[str, list[str], list[str]]]:
        return self.rows("SELECT verdict, reasons, errors FROM verdicts WHERE decision_id = %(id)s ORDER BY judged_at")

    def is_released(self) -> bool:
        return bool(self.rows("SELECT FROM actions WHERE decision_id = %(id)s"))

    def messages(self) -> dict[str, set[str]]:
        """The topics of each type of event about the decision that the gatekeeper tells."""
        found: dict[str, set[str]] = {}
        for event_type, topic in self.rows(
            "SELECT event_type, topic FROM outbox WHERE payload_json -> 'payload' ->> 'decision_id' = %(id)s::text"
        ):
            found.setdefault(event_type, set()).add(topic)
        return found

    def approval(self) -> tuple[UUID, bytes, str]:
        [(approval_id, action, shown)] = self.rows(
            "SELECT approval_id, action_sha256, shown FROM approval_requests WHERE decision_id = %(id)s"
        )
        return approval_id, bytes(action), shown

    def executed(self, outcome: str = "executed") -> None:
        """Records the client's execution."""
        self.world.owner.execute(
            "INSERT INTO executions (action_id, outcome) SELECT action_id, %s FROM actions WHERE decision_id = %s",
            [outcome, self.decision_id],
        )

    def expire(self, minutes: int = 6) -> None:
        """Lets the released action's time be over, as if it had been released long ago."""
        with self.world.owner.transaction():
            self.world.owner.execute("ALTER TABLE actions DISABLE TRIGGER actions_are_immutable")
            self.world.owner.execute(
                "UPDATE actions SET expires_at = now() - make_interval(mins => %s) WHERE decision_id = %s",
                [minutes, self.decision_id],
            )
            self.world.owner.execute("ALTER TABLE actions ENABLE TRIGGER actions_are_immutable")


def smaller(case: Case, **changes: Any) -> Case:
    """A case with other pieces."""
    return replace(case, **changes)


def in_threads(count: int, work: Callable[[int], Any]) -> list[Any]:
    """Runs work side by side, as nearly at once as threads can; returns the results in order."""
    results: list[Any] = [None] * count
    failures: list[BaseException] = []
    barrier = threading.Barrier(count)

    def run(number: int) -> None:
        barrier.wait(timeout=60)
        try:
            results[number] = work(number)
        except BaseException as error:  # noqa: BLE001 - it is raised again in the test's thread
            failures.append(error)

    threads = [threading.Thread(target=run, args=[number]) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return results


def _artifact(connection: Connection[Any], kind: str, content: bytes) -> bytes:
    sha256 = hashlib.sha256(content).digest()
    connection.execute(
        "INSERT INTO artifacts (sha256, kind, bytes) VALUES (%s, %s, %s) ON CONFLICT DO NOTHING",
        [sha256, kind, content],
    )
    return sha256


def read_json(content: Any) -> Any:
    return json.loads(bytes(content))


def wide_evidence() -> dict[str, Any]:
    return evidence(market=(-13_500, -9_000, -8_000, -7_000))


def without(*names: str) -> str:
    """Finance's policies without some of them."""
    parts = FinanceGate().policies.split("@id(")
    return parts[0] + "".join("@id(" + part for part in parts[1:] if part.split('"')[1] not in names)
