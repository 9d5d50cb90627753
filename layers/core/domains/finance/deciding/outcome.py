"""What came of a decision: what the market did over the horizon, and whether each forecast came true."""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, Final

from psycopg import Connection

from control_plane.model.deciding import Record
from control_plane.model.ids import canonical_instant
from domains.finance.deciding import measures
from domains.finance.deciding.history import QUERIES, Series, Window, read_after
from domains.finance.deciding.reading import content_of

_INTRADAY_CEILING: Final = timedelta(days=4)
"""A long weekend."""
_DAILY_CEILING: Final = timedelta(days=21)


def ceiling(series: str) -> timedelta:
    """Returns how long a decision on bars of an interval waits for the horizon's bars."""
    return _INTRADAY_CEILING if series.endswith(("m", "h")) else _DAILY_CEILING


def observe_outcome(connection: Connection[Any], record: Record, bars: int, now: datetime) -> dict[str, Any] | None:
    """Returns what came of it after so many own bars; None while they are awaited.

    The ceiling counts from the step that began to observe. Beyond it the outcome is unobservable: nothing is scored.
    """
    decision = record.decision
    values = {
        "source": decision.source,
        "series": decision.series,
        "entity_id": decision.entity_id,
        "at": decision.occurred_at,
        "bars": bars,
    }
    row = connection.execute(QUERIES["horizon_end"].sql, values).fetchone()
    begun = record.last("observing")
    if row is None:
        since = begun.at if begun is not None else decision.opened_at
        if now < since + ceiling(decision.series):
            return None
        return {"state": "unobservable", "reason": f"fewer than {bars} bars followed in time", "forecasts": []}
    (until,) = row
    gathered = record.last("evidence")
    evidence: Mapping[str, Any] = gathered.body if gathered is not None else {}
    held = evidence.get("portfolio", {}).get("positions", [])
    entities = sorted({decision.entity_id, *(position["entity_id"] for position in held)})
    window = Window(decision.source, decision.series, decision.occurred_at)
    followed = read_after(connection, window, entities=entities, until=until)
    moves = {entity: _move(series) for entity, series in followed.items()}
    move = moves.get(decision.entity_id, 0)
    return {
        "state": "observed",
        "until": canonical_instant(until),
        "bars": bars,
        "move_ppm": move,
        "options": _results(record, held, moves, move),
        "forecasts": _forecasts(record, move),
    }


def _move(series: Series) -> int:
    returns = series.returns_ppm()
    return measures.moves_ppm(returns, len(returns))[0] if returns else 0


def _results(record: Record, held: Any, moves: Mapping[str, int], own_move: int) -> list[dict[str, Any]]:
    """What each simulated option would have given."""
    simulation = record.last("simulation")
    if simulation is None:
        return []
    gained = sum(
        measures.nearest(position["value_micros"] * moves.get(position["entity_id"], 0), measures.MILLION)
        for position in held
    )
    results = []
    for option in simulation.body["options"]:
        action = option["action"]
        avoided = measures.nearest(action["notional_micros"] * -own_move, measures.MILLION) if action else 0
        against_nothing = avoided - option["cost_micros"]
        results.append(
            {
                "name": option["name"],
                "result_micros": gained + against_nothing,
                "against_nothing_micros": against_nothing,
            }
        )
    return results


def _forecasts(record: Record, move: int) -> list[dict[str, Any]]:
    """Every agent's forecasts with what happened; a proposal that was refused is scored like any other."""
    scored = []
    for calls in record.all("calls"):
        answers = next((step for step in record.all("answers") if step.parent == calls.seq), None)
        for call in calls.body["calls"]:
            found = answers.body["answers"].get(call["agent"]) if answers is not None else None
            for forecast in (content_of(record, found) or {}).get("forecasts", ()):
                happened = _happened(forecast["event"], forecast["threshold_ppm"], move)
                missed = forecast["probability_ppm"] - (measures.MILLION if happened else 0)
                scored.append(
                    {
                        "agent": call["agent"],
                        "agent_version": call["agent_version"],
                        "forecast": forecast["event"],
                        "threshold_ppm": forecast["threshold_ppm"],
                        "probability_ppm": forecast["probability_ppm"],
                        "happened": happened,
                        "brier_ppm": measures.nearest(missed * missed, measures.MILLION),
                    }
                )
    return scored


def _happened(event: str, threshold: int, move: int) -> bool:
    return move < -threshold if event == "loss_beyond_var95" else abs(move) > threshold
