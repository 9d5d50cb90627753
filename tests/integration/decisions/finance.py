"""Bars of several stocks in a test's database, and finance's decisions on them."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from math import log
from typing import Any
from uuid import UUID, uuid5

from psycopg import Connection

from control_plane.ingestion.store import Look, store_events
from control_plane.model.deciding import Decision, Record, Step
from domains.finance import detector
from domains.finance.deciding.evidence import gather_evidence
from domains.finance.events import CorporateDividend, CorporateSplit, MarketTick

SOURCE = "test"
FIRST = datetime(2026, 1, 5, 14, 0, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
LAST = 70
"""The minute after the past of the stocks."""
STOCKS = ("AAPL", "IBM", "MSFT")


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
    given: dict[str, Any] = {
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


def past(owner: Connection[Any], entity: str, values: Sequence[float]) -> None:
    """Bars from the first minute on, as the detector would have kept them; they are no events."""
    with owner.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO detector_bars (source, entity_id, bar_interval, occurred_at, open, high, low, price, volume, "
            "currency, revision, event_id, previous_at, follows_gap, log_return, adjustment, excursion) "
            "VALUES (%s, %s, '1m', %s, %s, %s, %s, %s, 100, 'USD', 0, %s, %s, false, %s, 0, 0.001)",
            [
                (
                    SOURCE, entity, instant(minute), close, close * 1.001, close * 0.999, close,
                    uuid5(UUID(int=0), f"{entity}/{minute}"), instant(minute - 1) if minute else None,
                    log(close / values[minute - 1]) if minute else None,
                )
                for minute, close in enumerate(values)
            ],
        )  # fmt: skip


def closes(connection: Connection[Any], entity: str, values: Sequence[float], *, first: int = 0) -> None:
    fold(connection, [tick(close, entity=entity, minute=first + index) for index, close in enumerate(values)])


def hold(owner: Connection[Any], *, cash: int = 10_000, **quantities: int) -> None:
    """Opens the paper account with so many dollars and units."""
    owner.execute("UPDATE paper_accounts SET cash_micros = %s WHERE account = 'paper'", [cash * 10**6])
    for entity, quantity in quantities.items():
        owner.execute(
            "INSERT INTO paper_positions (account, source, entity_id, quantity_micros) VALUES ('paper', %s, %s, %s)",
            [SOURCE, entity, quantity * 10**6],
        )


def decision(*, entity: str = "AAPL", minute: int, kind: str = "return") -> Decision:
    """A decision about a bar."""
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
        trigger_event_id=UUID(int=0),
        trace_id=UUID(int=2),
        is_shadow=False,
        state="opened",
        deadline=instant(minute) + timedelta(minutes=15),
        budget_micros=0,
        opened_at=instant(minute),
    )


def anomaly(connection: Connection[Any], *, entity: str, minute: int) -> dict[str, Any]:
    """What the detector told of a bar as it is now."""
    row = connection.execute(
        "SELECT event_id, revision FROM detector_bars WHERE entity_id = %s AND occurred_at = %s",
        [entity, instant(minute)],
    ).fetchone()
    event_id, revision = row or (None, 0)
    return {"kind": "return", "bar_event_id": str(event_id), "bar_revision": revision, "details": {}}


def gathered(connection: Connection[Any], *, entity: str = "AAPL", minute: int) -> dict[str, Any]:
    """The evidence of a decision about a bar as it is now."""
    about = decision(entity=entity, minute=minute)
    return gather_evidence(connection, about, anomaly(connection, entity=entity, minute=minute))


def recorded(found: Decision, *steps: tuple[str, Any]) -> Record:
    """A record with these steps."""
    return Record(
        replace(found, state="observing"),
        [Step(seq, None, kind, "engine", found.opened_at, body) for seq, (kind, body) in enumerate(steps)],
    )


def correct(connection: Connection[Any], close: float, *, entity: str, minute: int) -> None:
    """Another look at a bar, later."""
    fold(connection, [replace(tick(close, entity=entity, minute=minute), observed_at=instant(minute + 1_000))])
