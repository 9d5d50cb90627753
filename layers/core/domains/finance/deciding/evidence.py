"""Gathers what a decision rests on, as it was known at the anomaly's bar: nothing later is read."""

import re
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

from psycopg import Connection

from control_plane.model.deciding import Decision
from control_plane.model.ids import canonical_instant
from domains.finance.deciding import measures
from domains.finance.deciding.episodes import features, keep_episodes, nearest_episodes
from domains.finance.deciding.history import QUERIES, CorporateAction, Series, Window, read_before
from domains.finance.deciding.options import ACCOUNT

RETURNS: Final = 260
_BARS: Final = 320
"""More than the returns need: episodes look back before each bar that they remember."""
OTHERS_WAIT: Final = timedelta(seconds=180)
"""After the end of a bar, how long those of other stocks are waited for: two runs of ingestion, and the way here."""
_LENGTH: Final = re.compile(r"([1-9][0-9]{0,2})([mhd])")
_UNITS: Final = {"m": timedelta(minutes=1), "h": timedelta(hours=1), "d": timedelta(days=1)}
_MOST_POSITIONS: Final = 20
"""Whose returns are in the evidence, the largest first: a step holds 64 KiB."""
_WIDEST_PPM: Final = 2 * measures.MILLION
"""Simulated returns are widened by the ratio of recent to usual spread, up to this."""


def gather_evidence(connection: Connection[Any], decision: Decision, anomaly: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the evidence in the shape of docs/decision_engine.md; ``problem`` says why no action may rest on it.

    ``anomaly`` is the payload of the ANOMALY_DETECTED that opened the decision.
    """
    window = Window(decision.source, decision.series, decision.occurred_at)
    histories = read_before(connection, window, account=ACCOUNT, entity_id=decision.entity_id, count=_BARS)
    keep_episodes(connection, window, histories)
    own = histories.get(decision.entity_id, Series((), ()))
    is_there = len(own.bars) > 1 and own.bars[-1].occurred_at == decision.occurred_at
    returns = own.returns_ppm() if is_there else []
    rows = own.alike(RETURNS) if is_there else []
    before, move = [returns[row - 1] for row in rows], returns[-1] if is_there else 0
    sigma = measures.sigma_ppm(before)
    z_milli = measures.in_sigmas_milli(move, sigma)
    market = _market(histories, window)
    sizes = features(own, returns, len(own.bars) - 1) if is_there else None
    instants = [own.bars[row].occurred_at for row in rows] + ([decision.occurred_at] if is_there else [])
    return {
        "source": decision.source,
        "entity_id": decision.entity_id,
        "series": decision.series,
        "anomaly": dict(anomaly),
        "bar": _bar(own, window, move) if is_there else None,
        "problem": _problem(own, before, anomaly) if is_there else "The bar of the anomaly is not known here.",
        "sigma_ppm": sigma,
        "z_milli": z_milli,
        "severity": measures.severity(z_milli, is_market_wide=market["is_market_wide"]),
        "returns_ppm": before,
        "scale_ppm": _scale_ppm([*before, move]),
        "market": market,
        "corporate_actions": [_action(action) for action in own.actions_of(len(own.bars) - 1)] if is_there else [],
        "neighbours": nearest_episodes(connection, window, sizes) if sizes else [],
        "portfolio": _portfolio(connection, window, histories, instants),
    }


def is_market_wide_now(connection: Connection[Any], decision: Decision) -> bool:
    """Whether the market fell with a decision's bar, by what is known of that instant now; read as evidence is."""
    window = Window(decision.source, decision.series, decision.occurred_at)
    histories = read_before(connection, window, account=ACCOUNT, entity_id=decision.entity_id, count=_BARS)
    return bool(_market(histories, window)["is_market_wide"])


def gather_until(decision: Decision) -> datetime | None:
    """Returns how long the bars of other stocks are waited for; None where the bars' length is not known."""
    length = _LENGTH.fullmatch(decision.series)
    if length is None:
        return None
    return decision.occurred_at + int(length[1]) * _UNITS[length[2]] + OTHERS_WAIT


def has_all_bars(connection: Connection[Any], decision: Decision) -> bool:
    """Whether all that had a bar at the instant of the entity's bar before have one at the decision's instant."""
    about = {
        "source": decision.source,
        "entity_id": decision.entity_id,
        "interval": decision.series,
        "at": decision.occurred_at,
    }
    row = connection.execute(QUERIES["has_all_bars"].sql, about).fetchone()
    return row is not None and bool(row[0])


def _bar(own: Series, window: Window, move: int) -> dict[str, Any]:
    bar, previous = own.bars[-1], own.bars[-2]
    return {
        "event_id": str(bar.event_id),
        "revision": bar.revision,
        "occurred_at": canonical_instant(bar.occurred_at),
        "open_micros": bar.open_micros,
        "high_micros": bar.high_micros,
        "low_micros": bar.low_micros,
        "close_micros": bar.close_micros,
        "previous_close_micros": previous.close_micros,
        "return_ppm": measures.return_ppm(bar.close_micros, previous.close_micros) if previous.close_micros > 0 else 0,
        "adjusted_return_ppm": move,
        "currency": bar.currency,
        "series": window.series,
    }


def _problem(own: Series, before: Sequence[int], anomaly: Mapping[str, Any]) -> str | None:
    """Says why the prices are not to be acted on; None where they may be."""
    bar = own.bars[-1]
    if anomaly and (anomaly["bar_event_id"], anomaly["bar_revision"]) != (str(bar.event_id), bar.revision):
        return "The bar was corrected after the anomaly was detected."
    if min(bar.open_micros, bar.low_micros, bar.close_micros) <= 0:
        return "A price is not positive."
    if not bar.low_micros <= bar.close_micros <= bar.high_micros:
        return "The close is outside of the bar's own range."
    if len(before) < measures.FEWEST_RETURNS or not measures.sigma_ppm(before):
        return "Too few bars of its kind are known before it to say what is usual."
    return None


def _market(histories: Mapping[str, Series], window: Window) -> dict[str, Any]:
    """What all entities of the source did at that instant, each measured by its own returns before."""
    moves, sizes = [], []
    for series in histories.values():
        if len(series.bars) < 2 or series.bars[-1].occurred_at != window.at:
            continue
        returns = series.returns_ppm()
        before = [returns[row - 1] for row in series.alike(RETURNS)]
        moves.append(returns[-1])
        sizes.append(measures.in_sigmas_milli(returns[-1], measures.sigma_ppm(before)))
    return {
        "entities": len(moves),
        "fell": sum(size < 0 for size in sizes),
        "median_return_ppm": measures.median(moves) if moves else 0,
        "z_milli": sorted(sizes),
        "is_market_wide": measures.is_market_wide(sizes),
    }


def _action(action: CorporateAction) -> dict[str, Any]:
    about: dict[str, Any] = {"kind": action.kind, "occurred_at": canonical_instant(action.occurred_at)}
    if action.ratio_ppm is not None:
        about["ratio_ppm"] = action.ratio_ppm
    if action.amount_micros is not None:
        about["amount_micros"] = action.amount_micros
    return about


def _scale_ppm(returns: Sequence[int]) -> int:
    """How much wider than usual returns are now."""
    usual = measures.sigma_ppm(returns)
    if not usual:
        return measures.MILLION
    ratio = measures.share_ppm(measures.recent_sigma_ppm(returns), usual)
    return max(measures.MILLION, min(_WIDEST_PPM, ratio))


def _portfolio(
    connection: Connection[Any], window: Window, histories: Mapping[str, Series], instants: Sequence[datetime]
) -> dict[str, Any]:
    """What the account holds, at the last prices that were known."""
    about = {"account": ACCOUNT}
    row = connection.execute(QUERIES["paper_account"].sql, about).fetchone()
    currency, cash = row if row is not None else ("USD", 0)
    positions, others = [], 0
    for source, entity, quantity in connection.execute(QUERIES["paper_positions"].sql, about):
        series = histories.get(entity) if source == window.source else None
        if series is None or series.bars[-1].currency != currency or series.bars[-1].close_micros <= 0:
            continue
        price = series.bars[-1].close_micros
        positions.append(
            {
                "source": source,
                "entity_id": entity,
                "quantity_micros": quantity,
                "price_micros": price,
                "value_micros": measures.nearest(quantity * price, measures.MILLION),
            }
        )
    positions.sort(key=lambda position: (-abs(position["value_micros"]), position["entity_id"]))
    value = cash + sum(position["value_micros"] for position in positions)
    for position in positions[_MOST_POSITIONS:]:
        others += position["value_micros"]
    for position in positions[:_MOST_POSITIONS]:
        position["returns_ppm"] = _aligned(histories[position["entity_id"]], instants)
        position["scale_ppm"] = _scale_ppm(position["returns_ppm"])
    return {
        "account": ACCOUNT,
        "currency": currency,
        "cash_micros": cash,
        "value_micros": value,
        "others_micros": others,
        "positions": positions[:_MOST_POSITIONS],
    }


def _aligned(series: Series, instants: Sequence[datetime]) -> list[int]:
    """Returns an entity's returns at some instants; 0 where it was not traded."""
    at = {bar.occurred_at: value for bar, value in zip(series.bars[1:], series.returns_ppm(), strict=True)}
    return [at.get(instant, 0) for instant in instants]
