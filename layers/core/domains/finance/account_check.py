"""Compares what evidence says of an account with the account as it is now, at the prices of the decision's bar."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from domains.finance.deciding import measures
from domains.finance.evidence_check import Portfolio

MOST_CHANGED_PPM: Final = 100_000
"""The most that an account may have changed since its evidence, in millionths; a small hedge changes less."""
_MOST_MICROS: Final = 10**15


@dataclass(frozen=True, slots=True)
class AccountRow:
    """An account with one of its positions, or with none if it has cash alone; the price is the last one at the bar."""

    currency: str
    cash_micros: int
    source: str | None
    entity_id: str | None
    quantity_micros: int | None
    price_micros: int | None


@dataclass(frozen=True, slots=True)
class Account:
    """An account as it is now, in millionths of its currency."""

    currency: str
    cash_micros: int
    values: Mapping[tuple[str, str], int]
    """What each position is worth, by source and entity; a position without a known price is left out."""

    @property
    def value_micros(self) -> int:
        """What it is worth."""
        return self.cash_micros + sum(self.values.values())


def account_of(rows: Sequence[AccountRow]) -> Account | None:
    """Returns the account that these rows are of; None where there is none."""
    if not rows:
        return None
    values = {
        (row.source, row.entity_id): measures.nearest(row.quantity_micros * row.price_micros, measures.MILLION)
        for row in rows
        if row.source is not None
        and row.entity_id is not None
        and row.quantity_micros is not None
        and row.price_micros is not None
        and row.price_micros > 0
    }
    return Account(rows[0].currency, rows[0].cash_micros, values)


def account_faults(portfolio: Portfolio, account: Account | None) -> Iterator[str]:
    """Yields where the evidence's portfolio contradicts itself, or the account."""
    listed = {(one.source, one.entity_id): one.value_micros for one in portfolio.positions}
    total = portfolio.cash_micros + sum(listed.values()) + portfolio.others_micros
    if len(listed) != len(portfolio.positions) or portfolio.value_micros != total:
        yield "what is said of the account contradicts itself"
    if account is None:
        yield "there is no such account"
        return
    value = account.value_micros
    if not 0 < value <= _MOST_MICROS:
        yield "the account is worth nothing, or more than can be counted"
    if portfolio.currency != account.currency:
        yield "the account's currency is another"
    others = sum(held for name, held in account.values.items() if name not in listed)
    changed = abs(others - portfolio.others_micros)
    changed += sum(abs(held - account.values.get(name, 0)) for name, held in listed.items())
    if max(changed, abs(value - portfolio.value_micros)) * measures.MILLION > value * MOST_CHANGED_PPM:
        yield "the account is not what the evidence says, or is no longer"
