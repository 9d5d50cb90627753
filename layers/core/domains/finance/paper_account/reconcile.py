"""Holds the paper account against what was released and executed: every order, every fill, and what they add up to."""

from collections.abc import Iterator, Sequence
from typing import Any, Final

from psycopg import Connection

from control_plane.decisions.audit import Finding
from control_plane.platform.queries import load_queries
from domains.finance.paper_account.orders import read_order

QUERIES: Final = load_queries(__package__)


def reconcile(connection: Connection[Any]) -> Sequence[Finding]:
    """Returns every row of the account that is not what actions, executions and bars say. Raises psycopg.Error.

    Needs what acp_reader may read.
    """
    return [*_orders(connection), *_balances(connection)]


def _orders(connection: Connection[Any]) -> Iterator[Finding]:
    for row in connection.execute(QUERIES["audited_orders"].sql).fetchall():
        decision_id, action_id, account, outcome, effect, content, held, open_price = row
        order = None if content is None else read_order(content)
        wanted = None
        if outcome == "executed" and order is not None and "order" in effect:
            wanted = {"account": account, "source": order.source, "entity_id": order.entity_id, "series": order.series,
                      "side": order.side, "quantity_micros": order.quantity_micros}  # fmt: skip
        if held is None:
            if wanted is not None:
                yield Finding("paper_orders", f"the order of action {action_id} is gone", decision_id)
            continue
        if wanted is None:
            what = f"action {action_id} was not executed, and has an order"
            yield Finding("paper_orders", what, decision_id)
        elif differing := [name for name, value in wanted.items() if held[name] != value]:
            what = f"the order of action {action_id} is not what was released: {', '.join(differing)}"
            yield Finding("paper_orders", what, decision_id)
        # A bar's event may have gone with its retention; its order stays.
        if open_price is not None and held["fill_price_micros"] != open_price:
            what = f"action {action_id} was filled at {held['fill_price_micros']}, and its bar opened at {open_price}"
            yield Finding("paper_orders", what, decision_id)


def _balances(connection: Connection[Any]) -> Iterator[Finding]:
    for account, is_cash, source, entity_id, stated, counted in connection.execute(QUERIES["audited_balances"].sql):
        table, of = ("paper_accounts", "cash") if is_cash else ("paper_positions", f"{source} {entity_id}")
        what = f"{of} of account {account} is {stated}, and its fills add up to {counted} (millionths)"
        yield Finding(table, what)
