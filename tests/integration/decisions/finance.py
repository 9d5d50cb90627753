"""Bars of several stocks in a test's database, and finance's decisions on them."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid5

from psycopg import Connection

from control_plane.ingestion.store import Look, store_events
from control_plane.model.deciding import Decision, Record, Step
from domains.finance import detector
from domains.finance.events import CorporateDividend, CorporateSplit, MarketTick

SOURCE = "test"
FIRST = datetime(2026, 1, 5, 14, 0, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


def instant(minute: int) -> datetime:
    return FIRST + minute * MINUTE


def wobble(count: int, *, entity: str, start: float = 100.0, size: float = 0.01) -> list[float]:
    """Closes that move up and down by about ``size``, another way for each entity."""
    state, price, closes = sum(map(ord, entity)), start, []
    for _ in range(count):
        state = (state * 1_103_515_245 + 12_345) % 2**31
        price *= 1 + size * (((state >> 8) % 2001) / 1000 - 1)
        closes.append(round(price, 4))
    return closes


def look(payload: Any, *, entity: str, at: datetime, series: str = "") -> Look:
    return Look(
        payload,
        source=SOURCE,
        entity_id=entity,
        entity_type="equity",
        occurred_at=at,
        observed_at=at,
        trace_id=UUID(int=1),
        series=series,
    )


def tick(close: float, *, entity: str, minute: int, **changes: Any) -> Look:
    given = {
        "price": close, "open": close, "high": close * 1.001, "low": close * 0.999, "volume": 100, "currency": "USD",
        "interval": "1m",
    }  # fmt: skip
    return look(MarketTick(**(given | changes)), entity=entity, at=instant(minute), series="1m")


def split(numerator: int, *, entity: str, minute: int) -> Look:
    return look(CorporateSplit(numerator=numerator, denominator=1), entity=entity, at=instant(minute))


def dividend(amount: float, *, entity: str, minute: int) -> Look:
    return look(CorporateDividend(amount=amount, currency="USD"), entity=entity, at=instant(minute))


def fold(connection: Connection[Any], looks: Sequence[Look]) -> None:
    """Stores looks as events and lets the detector see each."""
    with connection.transaction():
        stored = store_events(connection, [], looks)
    for found in stored.looks:
        if found.event is not None:
            detector.consume(connection, found.event)


def closes(connection: Connection[Any], entity: str, values: Sequence[float], *, first: int = 0) -> None:
    fold(connection, [tick(close, entity=entity, minute=first + index) for index, close in enumerate(values)])


def hold(owner: Connection[Any], *, cash: int = 10_000, **quantities: int) -> None:
    """Opens the paper account with so many dollars and units."""
    owner.execute(
        "INSERT INTO paper_accounts (account, currency, cash_micros) VALUES ('paper', 'USD', %s)", [cash * 10**6]
    )
    for entity, quantity in quantities.items():
        owner.execute(
            "INSERT INTO paper_positions (account, source, entity_id, quantity_micros) VALUES ('paper', %s, %s, %s)",
            [SOURCE, entity, quantity * 10**6],
        )


def decision(connection: Connection[Any], *, entity: str = "AAPL", minute: int, kind: str = "return") -> Decision:
    """A decision about a bar, whose anomaly is an event as the detector would have told it."""
    row = connection.execute(
        "SELECT event_id FROM events WHERE event_type = 'ANOMALY_DETECTED' AND entity_id = %s AND occurred_at = %s "
        "ORDER BY revision DESC LIMIT 1",
        [entity, instant(minute)],
    ).fetchone()
    return Decision(
        decision_id=uuid5(UUID(int=0), f"{entity}{minute}"),
        domain="finance",
        playbook="unusual_bar",
        playbook_version="1",
        pins_sha256=b"",
        anomaly_kind=kind,
        source=SOURCE,
        entity_id=entity,
        series="1m",
        occurred_at=instant(minute),
        trigger_event_id=row[0] if row is not None else UUID(int=0),
        trace_id=UUID(int=2),
        is_shadow=False,
        state="opened",
        deadline=instant(minute) + timedelta(minutes=15),
        budget_micros=0,
        opened_at=instant(minute),
    )


def recorded(found: Decision, *steps: tuple[str, Any]) -> Record:
    """A record with these steps."""
    return Record(
        replace(found, state="observing"),
        [Step(seq, None, kind, "engine", found.opened_at, body) for seq, (kind, body) in enumerate(steps)],
    )


def correct(connection: Connection[Any], close: float, *, entity: str, minute: int) -> None:
    """Another look at a bar, later."""
    fold(connection, [replace(tick(close, entity=entity, minute=minute), observed_at=instant(minute + 1_000))])


def anomaly_of(connection: Connection[Any], entity: str) -> Any:
    return connection.execute(
        "SELECT payload FROM events WHERE event_type = 'ANOMALY_DETECTED' AND entity_id = %s ORDER BY seq", [entity]
    ).fetchall()
