"""SignalLab's returns and risk with splits and dividends taken out, on a real Postgres."""

from itertools import permutations
from typing import Any

import pytest
from psycopg import Connection
from tests.integration.detection import bar, dividend, emptied, split

from control_plane.model.contract import Event
from domains.finance import signal_lab


def deliver(connection: Connection[Any], *events: Event) -> None:
    for event in events:
        signal_lab.consume(connection, event)


def risk(connection: Connection[Any]) -> tuple[Any, ...]:
    query = "SELECT price, bar_return, drawdown, maximum_drawdown FROM signal_lab_risk"
    [row] = connection.execute(query.encode()).fetchall()
    return tuple(row)


def test_a_split_is_neither_a_loss_nor_a_drawdown(app: Connection[Any]) -> None:
    deliver(app, bar(100.0), bar(110.0, 1), split(10, minute=2), bar(11.0, 2), bar(9.9, 3))
    assert risk(app) == (9.9, pytest.approx(-0.1), pytest.approx(-0.1), pytest.approx(-0.1))
    returns = app.execute("SELECT price, bar_return FROM signal_lab_returns ORDER BY occurred_at").fetchall()
    assert returns[2] == (11.0, pytest.approx(0.0))


def test_without_its_split_the_same_bars_are_a_drawdown(app: Connection[Any]) -> None:
    deliver(app, bar(100.0), bar(110.0, 1), bar(11.0, 2), bar(9.9, 3))
    assert risk(app)[-1] == pytest.approx(-0.91)


def test_the_order_of_split_and_bars_does_not_matter(app: Connection[Any]) -> None:
    events = [bar(100.0), split(2, minute=1), split(4, minute=1, revision=1), bar(25.0, 1)]
    for order in permutations(events):
        with emptied(app):
            deliver(app, *order)
            assert risk(app)[1:] == (pytest.approx(0.0), pytest.approx(0.0), pytest.approx(0.0))


def test_a_dividend_is_part_of_the_return(app: Connection[Any]) -> None:
    deliver(app, bar(100.0), dividend(10.0, minute=1), bar(90.0, 1))
    assert risk(app)[1:] == (pytest.approx(0.0), pytest.approx(0.0), pytest.approx(0.0))


def test_a_split_belongs_to_the_first_bar_after_it(app: Connection[Any]) -> None:
    deliver(app, bar(100.0), split(2, minute=1), bar(50.0, 90), bar(25.0, 91))
    assert risk(app)[1:] == (pytest.approx(-0.5), pytest.approx(-0.5), pytest.approx(-0.5))


def test_a_split_that_earlier_prices_contain_already_counts_once(app: Connection[Any]) -> None:
    deliver(app, bar(50.0), split(2, minute=1), bar(51.0, 1))
    assert risk(app)[1:3] == (pytest.approx(0.02), pytest.approx(0.0))


def test_each_interval_is_adjusted_for_itself(app: Connection[Any]) -> None:
    deliver(
        app, bar(100.0), bar(100.0, interval="1d"), split(2, minute=1), bar(50.0, 1), bar(50.0, 1440, interval="1d")
    )
    rows = app.execute("SELECT bar_interval, bar_return FROM signal_lab_risk ORDER BY 1").fetchall()
    assert rows == [("1d", pytest.approx(0.0)), ("1m", pytest.approx(0.0))]


@pytest.mark.parametrize("price", [1e300, -37.63, 5e-324])
def test_absurd_prices_and_actions_break_nothing(app: Connection[Any], price: float) -> None:
    splits = [split(1e6, 1e-6, minute=minute) for minute in range(1, 9)]
    deliver(app, bar(100.0), *splits, dividend(1e12, minute=3), *(bar(price, minute) for minute in range(1, 9)))
    assert risk(app)[0] == price
