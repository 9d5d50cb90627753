"""The run: a PostgreSQL of its own, every bar through the detector, every anomaly decided on in order."""

from __future__ import annotations

import secrets
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import psycopg
from psycopg import sql

from backtest.market import CURRENCY, INTERVAL, SOURCE, SYMBOLS, read_looks
from backtest.services import QUERIES, ROLES, Services, open_connection, plug_ins
from control_plane.decisions.record import load
from control_plane.decisions.replay import replay
from control_plane.ingestion.store import store_events
from control_plane.ops.migrations import migrate, read_migrations
from control_plane.platform.database import connect
from domains import EVENT_TYPES
from domains.finance import detector
from domains.finance.deciding.options import ACCOUNT
from local_cloud.postgres import PostgresServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from uuid import UUID

    from psycopg import Connection

    from control_plane.model.deciding import Record

OWNER: Final = "acp_owner"
NAME: Final = "backtest"
HELD_MICROS: Final = 100_000_000_000
"""What the account holds of each stock before each decision, and in cash: 100,000 dollars."""
_INGEST, _DETECT = "acp_ingest", "acp_detect"
_BATCH: Final = 500
_WORKERS: Final = 2


@dataclass(frozen=True, slots=True)
class Decided:
    """One decision at its end."""

    record: Record
    verdict: str | None
    reasons: Sequence[str]
    """The policies that made the verdict so, or what of the evidence did not hold."""
    is_replayed: bool
    """Whether deciding again from the record gave the same bytes."""


@dataclass(frozen=True, slots=True)
class Backtest:
    """What a run gave."""

    bars: int
    days: int
    anomalies: int
    decided: Sequence[Decided]
    fold_seconds: float
    decide_seconds: float
    replay_seconds: float
    first_day: str
    last_day: str

    @property
    def seconds(self) -> float:
        """How long it took, without starting the server."""
        return self.fold_seconds + self.decide_seconds + self.replay_seconds


def run_backtest(
    migrations: Path, *, symbols: Sequence[str] = SYMBOLS, days: int | None = None, say: Callable[[str], None]
) -> Backtest:
    """Returns what the real days led to; ``days`` are the first ones of each symbol alone."""
    with tempfile.TemporaryDirectory(prefix="acp-backtest-") as folder, _database(Path(folder), migrations) as url:
        started = time.monotonic()
        say("the detector sees every bar")
        with ProcessPoolExecutor(_WORKERS) as pool:
            urls = (url(_INGEST), url(_DETECT))
            counts = list(pool.map(_fold, symbols, [urls] * len(symbols), [days] * len(symbols)))
        folded = time.monotonic()
        with Services(url, plug_ins()) as services, open_connection(url(OWNER)) as owner:
            anomalies = _decide_all(services, owner, say)
            decided_at = time.monotonic()
            say("deciding again from the records")
            decided = _read_all(services, owner)
        return Backtest(
            bars=sum(bars for bars, _ in counts),
            days=max(bars for bars, _ in counts),
            anomalies=anomalies,
            decided=decided,
            fold_seconds=folded - started,
            decide_seconds=decided_at - folded,
            replay_seconds=time.monotonic() - decided_at,
            first_day=min(first for _, (first, _) in counts),
            last_day=max(last for _, (_, last) in counts),
        )


def _fold(symbol: str, urls: tuple[str, str], days: int | None) -> tuple[int, tuple[str, str]]:
    """Stores a symbol's looks as events and hands each to the detector; returns how many bars, and their days."""
    looks, events = read_looks(symbol, days=days), []
    with open_connection(urls[0]) as connection:
        for first in range(0, len(looks), _BATCH):
            with connection.transaction():
                stored = store_events(connection, [], looks[first : first + _BATCH])
            events += [look.event for look in stored.looks if look.event is not None]
    with open_connection(urls[1]) as connection:
        for event in events:
            detector.consume(connection, event)
    bars = [event for event in events if event.event_type == "MARKET_TICK_INGESTED"]
    return len(bars), (f"{bars[0].occurred_at:%Y-%m-%d}", f"{bars[-1].occurred_at:%Y-%m-%d}")


def _decide_all(services: Services, owner: Connection[Any], say: Callable[[str], None]) -> int:
    owner.execute(QUERIES["analyze"].sql)
    anomalies = [text for (text,) in owner.execute(QUERIES["anomalies"].sql).fetchall()]
    services.skip_messages(owner)
    standing = [text for text in anomalies if not EVENT_TYPES.parse_event(text).payload["is_withdrawn"]]
    for number, text in enumerate(standing):
        if number % 20 == 0:
            say(f"decision {number + 1} of {len(standing)}")
        at = EVENT_TYPES.parse_event(text).occurred_at
        services.show_bars(owner, until=at)
        _hold_equal_amounts(owner, at)
        services.decide_on(owner, text)
    services.show_bars(owner)
    return len(standing)


def _hold_equal_amounts(owner: Connection[Any], at: Any) -> None:
    owner.execute(QUERIES["open_account"].sql, {"account": ACCOUNT, "currency": CURRENCY, "cash_micros": HELD_MICROS})
    rows = owner.execute(QUERIES["closes_at"].sql, {"source": SOURCE, "interval": INTERVAL, "at": at}).fetchall()
    owner.execute(
        QUERIES["hold_equal_amounts"].sql,
        {
            "account": ACCOUNT,
            "source": SOURCE,
            "entities": [entity for entity, _ in rows],
            "quantities": [HELD_MICROS * 1_000_000 // close for _, close in rows],
        },
    )


def _read_all(services: Services, owner: Connection[Any]) -> list[Decided]:
    verdicts: dict[UUID, tuple[str, list[str]]] = {
        decision_id: (verdict, reasons) for decision_id, verdict, reasons in owner.execute(QUERIES["verdicts"].sql)
    }
    finance, found = plug_ins()["finance"], []
    for (decision_id,) in owner.execute(QUERIES["decisions"].sql).fetchall():
        loaded = load(services.decide, decision_id)
        assert loaded is not None
        is_replayed = replay(loaded, finance).is_identical
        verdict, reasons = verdicts.get(decision_id, (None, []))
        found.append(Decided(loaded.record, verdict, reasons, is_replayed))
    return found


@contextmanager
def _database(folder: Path, migrations: Path) -> Iterator[Callable[[str], str]]:
    """A server with the roles and the schema, gone afterwards; yields each role's URL."""
    password = secrets.token_urlsafe(16)
    settings = {"synchronous_commit": "off", "max_wal_size": "2GB"}
    with PostgresServer(folder / "data", password=password, fsync=False, settings=settings) as server:
        with psycopg.connect(server.url(), autocommit=True) as connection:
            for role in (OWNER, _INGEST, "acp_relay", "acp_consume", "acp_reader", "acp_maintain", _DETECT, *ROLES):
                connection.execute(
                    sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(sql.Identifier(role), sql.Literal(password))
                )
            connection.execute(
                sql.SQL("CREATE DATABASE {} OWNER {}").format(sql.Identifier(NAME), sql.Identifier(OWNER))
            )
        with connect(server.url(OWNER, NAME, password), application_name="acp-backtest") as connection:
            migrate(connection, read_migrations(migrations))
        yield lambda role: server.url(role, NAME, password)
