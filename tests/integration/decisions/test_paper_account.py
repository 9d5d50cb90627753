"""Released actions on SignalLab's paper account: once in effect, never late, and filled at the next bar."""

import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from psycopg import Connection
from tests.conftest import TestDatabase
from tests.integration.decisions.released import release
from tests.integration.test_signal_lab import tick

from control_plane.decisions.emit import message
from control_plane.model.decision_events import SwitchSet
from control_plane.model.errors import ContractViolation
from control_plane.platform.database import connect
from control_plane.platform.messages import one_as_json
from domains import EVENT_TYPES
from domains.finance import paper_account, signal_lab

CASH = 100_000_000_000


@pytest.fixture
def client(database: TestDatabase) -> Iterator[Connection[Any]]:
    """As ActionFunction."""
    with connect(database.url("acp_action"), application_name="test") as connection:
        yield connection


@pytest.fixture
def prices(database: TestDatabase) -> Iterator[Connection[Any]]:
    """As SignalLabFunction."""
    with connect(database.url("acp_consume"), application_name="test") as connection:
        yield connection


def execution(owner: Connection[Any], action_id: object) -> tuple[str, str]:
    rows = owner.execute("SELECT outcome, reason FROM executions WHERE action_id = %s", [action_id]).fetchall()
    assert len(rows) == 1
    return rows[0][0], rows[0][1]


def orders(owner: Connection[Any]) -> int:
    row = owner.execute("SELECT count(*) FROM paper_orders").fetchone()
    assert row is not None
    return int(row[0])


def holdings(owner: Connection[Any]) -> tuple[int, int]:
    row = owner.execute(
        "SELECT cash_micros, quantity_micros FROM paper_accounts JOIN paper_positions USING (account)"
        " WHERE source = 'yfinance' AND entity_id = 'AAPL'"
    ).fetchone()
    assert row is not None
    return row[0], row[1]


def switch(database: TestDatabase, scope: str, *, off: bool) -> None:
    event = tick().model_copy()
    told = message(
        SwitchSet(scope=scope, is_off=off, set_by="acp_command", reason=""),
        entity_id=None, series=scope, at=event.occurred_at, trace_id=event.trace_id, revision=int(off),
    )  # fmt: skip
    with connect(database.url("acp_command"), application_name="test") as person:
        person.execute("SELECT set_switch(%s, %s, '', %s::json)", (scope, off, one_as_json(told)))


def test_an_order_is_filled_at_the_open_of_the_next_bar(
    database: TestDatabase, owner: Connection[Any], client: Connection[Any], prices: Connection[Any]
) -> None:
    signal_lab.consume(prices, tick(100.0, minute=0))
    released = release(database)
    assert paper_account.consume(client, released.event)
    assert execution(owner, released.action_id) == ("executed", "")
    signal_lab.consume(prices, tick(99.0, minute=0, revision=1))
    assert holdings(owner) == (CASH, 100_000_000)
    signal_lab.consume(prices, tick(101.5, minute=1))
    signal_lab.consume(prices, tick(50.0, minute=2))
    assert holdings(owner) == (CASH + 203_000_000, 98_000_000)


def test_an_action_delivered_again_and_at_once_has_one_effect(
    database: TestDatabase, owner: Connection[Any], prices: Connection[Any]
) -> None:
    signal_lab.consume(prices, tick())
    released = release(database)
    outcomes: list[bool] = []

    def deliver() -> None:
        with connect(database.url("acp_action"), application_name="test") as connection:
            outcomes.append(paper_account.consume(connection, released.event))

    threads = [threading.Thread(target=deliver) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == [False, False, False, True]
    assert orders(owner) == 1
    events = owner.execute("SELECT count(*) FROM events WHERE event_type = 'ACTION_EXECUTED'").fetchone()
    assert events == (1,)


@pytest.mark.parametrize("scope", ["all", "domain:finance", "playbook:test", "action:HEDGE"])
def test_what_is_switched_off_is_not_executed(
    database: TestDatabase, owner: Connection[Any], client: Connection[Any], prices: Connection[Any], scope: str
) -> None:
    signal_lab.consume(prices, tick())
    released = release(database)
    switch(database, scope, off=True)
    assert paper_account.consume(client, released.event)
    assert execution(owner, released.action_id) == ("failed", f"off: {scope}")
    switch(database, scope, off=False)
    assert not paper_account.consume(client, released.event)
    assert orders(owner) == 0


def test_an_expired_action_is_not_executed(
    database: TestDatabase, owner: Connection[Any], client: Connection[Any], prices: Connection[Any]
) -> None:
    signal_lab.consume(prices, tick())
    released = release(database, expires_in=timedelta(seconds=0.5))
    time.sleep(0.6)
    assert paper_account.consume(client, released.event)
    assert execution(owner, released.action_id) == ("failed", "it was not executed before it expired")
    assert orders(owner) == 0


def test_a_superseded_action_is_not_executed(
    database: TestDatabase, owner: Connection[Any], client: Connection[Any], prices: Connection[Any]
) -> None:
    signal_lab.consume(prices, tick())
    released = release(database)
    owner.execute("SELECT join_decision(%s, gen_random_uuid(), true, '{}')", [released.decision_id])
    assert paper_account.consume(client, released.event)
    reason = "what it was decided on has been superseded since its release"
    assert execution(owner, released.action_id) == ("failed", reason)
    assert orders(owner) == 0


UNPLACEABLE: dict[str, tuple[dict[str, Any], str]] = {
    "another side": ({"side": "keep"}, "the paper account knows no action like this HEDGE"),
    "a fraction": ({"quantity_micros": 1.5}, "the paper account knows no action like this HEDGE"),
    "another currency": ({"currency": "EUR"}, "there is no account paper in EUR"),
    "no price": ({"entity_id": "GOOG"}, "SignalLab has no bar of GOOG yet, so that nothing tells its price"),
}


@pytest.mark.parametrize("case", UNPLACEABLE)
def test_an_order_that_cannot_be_placed_fails_visibly(
    database: TestDatabase, owner: Connection[Any], client: Connection[Any], prices: Connection[Any], case: str
) -> None:
    order, reason = UNPLACEABLE[case]
    signal_lab.consume(prices, tick())
    released = release(database, order)
    assert paper_account.consume(client, released.event)
    assert execution(owner, released.action_id) == ("failed", reason)
    told = owner.execute("SELECT payload_json ->> 'reason' FROM events WHERE event_type = 'ACTION_FAILED'").fetchall()
    assert told == [(reason,)]


def test_a_message_of_an_action_that_nobody_released_is_refused(
    client: Connection[Any], database: TestDatabase
) -> None:
    released = release(database)
    forged = released.event.to_message() | {
        "payload": released.event.payload | {"action_id": "00000000-0000-4000-8000-000000000001"}
    }
    forged["event_id"] = str(
        message(
            EVENT_TYPES.newest("ACTION_RELEASED").model_validate(forged["payload"]),
            entity_id="AAPL", series=released.event.series, at=released.event.occurred_at,
            trace_id=released.event.trace_id,
        ).message["event_id"]
    )  # fmt: skip
    with pytest.raises(ContractViolation, match="never released"):
        paper_account.consume(client, EVENT_TYPES.parse_event(forged))
