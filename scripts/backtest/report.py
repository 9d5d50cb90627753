"""The report of a backtest, as Markdown for docs/backtest.md and as JSON."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import asdict
from importlib import resources
from string import Template
from typing import TYPE_CHECKING, Any, Final

from backtest.calibration import Calibration, Scored, calibrate, kupiec

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from backtest.run import Backtest, Decided

DAYS: Final = {
    ("AAPL", "2000-09-29"): "one stock's fall, as traded",
    ("AAPL", "2005-02-28"): "a split of 2:1",
    ("AAPL", "2008-09-29"): "a fall of the whole market",
    ("AAPL", "2010-05-06"): "the flash crash",
}
"""Days whose truth is known."""
_SIGNIFICANT: Final = 0.05


def to_dict(run: Backtest, *, seen_on: str, machine: str) -> dict[str, Any]:
    """Returns everything that the report says, as JSON."""
    decided = run.decided
    return {
        "seen_on": seen_on,
        "machine": machine,
        "first_day": run.first_day,
        "last_day": run.last_day,
        "bars": run.bars,
        "anomalies": run.anomalies,
        "decisions": len(decided),
        "seconds": {
            "detector": round(run.fold_seconds, 1),
            "decisions": round(run.decide_seconds, 1),
            "replay": round(run.replay_seconds, 1),
            "all": round(run.seconds, 1),
        },
        "replayed_identically": sum(each.is_replayed for each in decided),
        "states": _count(each.record.decision.state for each in decided),
        "hypotheses": _count(hypothesis_of(each) for each in decided),
        "options": _count(option_of(each) for each in decided),
        "verdicts": _count(each.verdict or "none was asked for" for each in decided),
        "outcome": _outcome(decided),
        "calibration": {name: asdict(found) for name, found in calibrations(decided).items()},
        "value_at_risk": _value_at_risk(decided),
        "days": [day for decision in decided if (day := _day(decision)) is not None],
    }


def calibrations(decided: Sequence[Decided]) -> dict[str, Calibration]:
    """Returns how good each agent's forecasts of large moves were."""
    by_agent: dict[str, list[Scored]] = defaultdict(list)
    for each in decided:
        for forecast in _forecasts(each):
            if forecast["forecast"] == "large_move":
                month = f"{each.record.decision.occurred_at:%Y-%m}"
                scored = Scored(forecast["probability_ppm"] / 1e6, forecast["happened"], month)
                by_agent[forecast["agent"]].append(scored)
    return {agent: calibrate(scored) for agent, scored in sorted(by_agent.items())}


def render(found: Mapping[str, Any]) -> str:
    """Returns the report as Markdown."""
    template = Template(resources.files(__package__).joinpath("report.template.md").read_text(encoding="utf-8"))
    listed = {name: _listed(found[name]) for name in ("states", "hypotheses", "options", "verdicts")}
    outcome = found["outcome"]
    dollars = {name: f"{outcome[f'{name}_micros'] / 1e6:+,.0f}" for name in ("against_nothing", "worst", "best")}
    return template.substitute(
        found
        | {f"seconds_{name}": f"{seconds:.0f}" for name, seconds in found["seconds"].items()}
        | {"bars": f"{found['bars']:,}", "executed": outcome["executed"], "gained": outcome["gained"]}
        | listed
        | dollars
        | {
            "agents": _agents(found["calibration"]),
            "reliability": _reliability(found["calibration"]),
            "value_at_risk": _risk(found["value_at_risk"]),
            "days": _known_days(found["days"]),
        }
    )


def hypothesis_of(decided: Decided) -> str:
    """Returns what was taken for the cause, as the proposal says it; "held" where there was none."""
    proposal = decided.record.last("proposal")
    return "held, nothing proposed" if proposal is None else str(proposal.body["hypothesis"])


def option_of(decided: Decided) -> str:
    """Returns the option that was proposed."""
    proposal = decided.record.last("proposal")
    return "do_nothing" if proposal is None else str(proposal.body["option"])


def _forecasts(decided: Decided) -> Sequence[Mapping[str, Any]]:
    outcome = decided.record.last("outcome")
    found: Sequence[Mapping[str, Any]] = outcome.body["forecasts"] if outcome is not None else ()
    return found


def _outcome(decided: Sequence[Decided]) -> dict[str, Any]:
    """What the executed actions gave against doing nothing: they gain where a fall goes on, and lose in a recovery."""
    results = []
    for each in decided:
        outcome = each.record.last("outcome")
        if each.record.last("execution") is None or outcome is None or outcome.body["state"] != "observed":
            continue
        name = option_of(each)
        results.append(next(one["against_nothing_micros"] for one in outcome.body["options"] if one["name"] == name))
    return {
        "executed": len(results),
        "gained": sum(result > 0 for result in results),
        "against_nothing_micros": sum(results),
        "worst_micros": min(results, default=0),
        "best_micros": max(results, default=0),
    }


def _value_at_risk(decided: Sequence[Decided]) -> dict[str, Any]:
    scored = [one for each in decided for one in _forecasts(each) if one["forecast"] == "loss_beyond_var95"]
    exceptions = sum(one["happened"] for one in scored)
    p_value = kupiec(exceptions, len(scored), 0.05) if scored else None
    return {"forecasts": len(scored), "exceptions": exceptions, "p_value": p_value}


def _day(decided: Decided) -> dict[str, Any] | None:
    decision = decided.record.decision
    day = f"{decision.occurred_at:%Y-%m-%d}"
    truth = DAYS.get((decision.entity_id, day))
    if truth is None:
        return None
    closed = decided.record.last("closed")
    return {
        "entity_id": decision.entity_id,
        "day": day,
        "truth": truth,
        "anomaly": decision.anomaly_kind,
        "hypothesis": hypothesis_of(decided),
        "option": option_of(decided),
        "verdict": decided.verdict or "none was asked for",
        "reason": closed.body["reason"] if closed is not None else "",
    }


def _count(values: Any) -> dict[str, int]:
    return dict(sorted(Counter(values).items(), key=lambda item: (-item[1], item[0])))


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in counts.items()) or "none"


def _agents(calibration: Mapping[str, Any]) -> str:
    lines = [
        "| agent | forecasts | happened | Brier | of the base rate | skill, 95 % interval | calibration error | |",
        "|---|---|---|---|---|---|---|---|",
    ]
    return "\n".join([*lines, *(_agent(name, one) for name, one in calibration.items())])


def _agent(name: str, one: Mapping[str, Any]) -> str:
    interval = "–"
    verdict = "nothing can be said"
    if one["skill"] is not None and one["skill_low"] is not None:
        interval = f"{one['skill']:+.3f} ({one['skill_low']:+.3f} … {one['skill_high']:+.3f})"
        verdict = "no skill is shown"
        if one["skill_low"] > 0:
            verdict = "better than the base rate"
        elif one["skill_high"] < 0:
            verdict = "**worse than the base rate**"
    return (
        f"| {name.replace('_', ' ')} | {one['forecasts']} | {one['happened']} | {one['brier']:.4f} | "
        f"{one['brier_of_base_rate']:.4f} | {interval} | {one['expected_calibration_error']:.3f} | {verdict} |"
    )


def _reliability(calibration: Mapping[str, Any]) -> str:
    tables = []
    for name, one in calibration.items():
        rows = (
            f"| {each['lowest']:.0%} to {each['highest']:.0%} | {each['forecasts']} | "
            f"{each['mean_probability']:.0%} | {each['frequency']:.0%} |"
            for each in one["reliability"]
        )
        title = f"**{name.replace('_', ' ')}**: how often it happened where so much was said"
        tables.append("\n".join([title, "", "| said | forecasts | mean | happened |", "|---|---|---|---|", *rows]))
    return "\n\n".join(tables)


def _risk(risk: Mapping[str, Any]) -> str:
    if risk["p_value"] is None:
        return "Nothing was said about the value at risk."
    chance = "as far from it as chance explains" if risk["p_value"] >= _SIGNIFICANT else "farther than chance explains"
    return (
        f"**Value at risk** (financial impact): a loss beyond it was said to come in 5 % of the cases. It came in\n"
        f"{risk['exceptions']} of {risk['forecasts']}, {chance} (Kupiec's test, p = {risk['p_value']:.3f}). It is taken\n"
        "from all bars before, and what is judged here follows an unusual one."
    )


def _known_days(days: Sequence[Mapping[str, Any]]) -> str:
    lines = [
        "| day | truth | anomaly | taken for | proposed | verdict | why |",
        "|---|---|---|---|---|---|---|",
    ]
    for day in days:
        cells = (day["anomaly"], day["hypothesis"], day["option"], day["verdict"])
        words = " | ".join(cell.replace("_", " ") for cell in cells)
        lines.append(f"| {day['entity_id']} {day['day']} | {day['truth']} | {words} | {day['reason']} |")
    seen = {(day["entity_id"], day["day"]) for day in days}
    lines += [
        f"| {entity} {day} | {truth} | none | | | | nothing is unusual about it |"
        for (entity, day), truth in DAYS.items()
        if (entity, day) not in seen
    ]
    return "\n".join(lines)
