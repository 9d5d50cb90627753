"""What the gatekeeper must say to a case, worked out a second time: another JSON reader, the jsonschema library, and
finance's policies in plain Python. It shares no code with what it judges.
"""

import hashlib
import json
from fractions import Fraction
from math import floor, isqrt
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.validators import extend
from tests.judgements import AT, ENTITY, SERIES, SOURCE, Case
from tests.oracle_json import NotJson, strict_json

# Schemas

_Validator = extend(  # type: ignore[no-untyped-call]
    Draft202012Validator,
    type_checker=Draft202012Validator.TYPE_CHECKER.redefine(
        "integer", lambda _, value: isinstance(value, int) and not isinstance(value, bool)
    ),
)


def _integer(low: int, high: int | None = None) -> dict[str, Any]:
    return {"type": "integer", "minimum": low} | ({} if high is None else {"maximum": high})


def _closed(**properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


NAME = {"type": "string", "minLength": 1, "maxLength": 128}
POSITIVE = _integer(1, 10**15)
MICROS = _integer(-(10**15), 10**15)
PPM = _integer(-(10**12), 10**12)
PROPOSAL = _Validator(
    _closed(
        action_type=NAME,
        account=NAME,
        option=NAME,
        claims={"type": "object"},
        evidence_seq=_integer(0),
        simulation_seq=_integer(0),
        hypothesis=NAME,
        summary={"anyOf": [{"type": "null"}, {"type": "string", "minLength": 1, "maxLength": 4096}]},
    )
)
CLAIMS = _Validator(
    _closed(
        return_ppm=PPM,
        is_market_wide={"type": "boolean"},
        expected_shortfall_micros=MICROS,
        severity=_integer(0, 4),
    )
)
ACTION = _Validator(
    _closed(
        source=NAME,
        entity_id=NAME,
        series={"type": "string", "pattern": "^[1-9][0-9]{0,3}(m|h|d|wk|mo)$"},
        side={"enum": ["buy", "sell"]},
        quantity_micros=POSITIVE,
        reference_price_micros=POSITIVE,
        notional_micros=POSITIVE,
        currency={"type": "string", "pattern": "^[A-Za-z][A-Za-z0-9]{1,9}$"},
    )
)


def _are_integers(of: dict[str, Any], low: int, high: int, *names: str) -> bool:
    return all(type(of.get(name)) is int and low <= of[name] <= high for name in names)


def _are_texts(of: dict[str, Any], *names: str) -> bool:
    return all(isinstance(of.get(name), str) for name in names)


def _is_evidence(given: dict[str, Any]) -> bool:
    bar, market, portfolio = given.get("bar"), given.get("market"), given.get("portfolio")
    if not (isinstance(bar, dict) and isinstance(market, dict) and isinstance(portfolio, dict)):
        return False
    returns, moves, actions = given.get("returns_ppm"), market.get("z_milli"), given.get("corporate_actions")
    if not (isinstance(returns, list) and isinstance(moves, list) and isinstance(actions, list)):
        return False
    return (
        _are_texts(given, "source", "entity_id", "series")
        and "problem" in given
        and isinstance(given["problem"], str | None)
        and _are_texts(bar, "event_id", "occurred_at", "currency", "series")
        and _are_integers(bar, -(10**15), 10**15, "open_micros", "high_micros", "low_micros")
        and _are_integers(bar, 1, 10**15, "close_micros", "previous_close_micros")
        and _are_integers(bar, -(10**12), 10**12, "return_ppm", "adjusted_return_ppm")
        and type(bar.get("revision")) is int
        and len(returns) <= 260
        and all(type(value) is int and abs(value) <= 10**12 for value in returns)
        and _are_integers(market, 0, 10**30, "entities", "fell")
        and all(type(value) is int for value in moves)
        and type(market.get("is_market_wide")) is bool
        and all(_is_corporate(action) for action in actions)
        and _are_texts(portfolio, "account", "currency")
        and _are_integers(portfolio, -(10**15), 10**15, "cash_micros")
        and _are_integers(portfolio, -(10**15), 10**15, "others_micros")
        and _are_integers(portfolio, 1, 10**15, "value_micros")
        and isinstance(portfolio.get("positions"), list)
        and len(portfolio["positions"]) <= 20
        and all(
            isinstance(one, dict)
            and _are_texts(one, "source", "entity_id")
            and _are_integers(one, -(10**15), 10**15, "value_micros")
            for one in portfolio["positions"]
        )
    )


def _is_corporate(given: dict[str, Any]) -> bool:
    return (
        given.get("kind") in ("split", "dividend")
        and ("ratio_ppm" not in given or _are_integers(given, 1, 10**15, "ratio_ppm"))
        and ("amount_micros" not in given or _are_integers(given, -(10**15), 10**15, "amount_micros"))
    )


def _is_simulation(given: dict[str, Any]) -> bool:
    return all(
        _are_texts(option, "name")
        and "action" in option
        and isinstance(option["action"], dict | None)
        and _are_integers(option, -(10**15), 10**15, "expected_shortfall_micros")
        for option in given["options"]
    )


# The verdict


class Stop(Exception):
    """The verdict, and the check that it fell at."""


def expected(case: Case, policies: str = "own") -> tuple[str, str]:
    """Returns the verdict and, for a refusal, the check that must make it."""
    try:
        return _expected(case, policies)
    except Stop as stop:
        return "refused", stop.args[0]


def _proposal_of(case: Case) -> tuple[dict[str, Any], dict[str, Any]]:
    record, step, body = case.record()
    assert step.output_sha256 is not None
    stored = record.artifacts.get(step.output_sha256)
    if stored is None or hashlib.sha256(stored).digest() != step.output_sha256:
        raise Stop("schema")
    try:
        proposal, action = strict_json(body), strict_json(stored)
    except NotJson:
        raise Stop("json") from None
    if not isinstance(proposal, dict) or not isinstance(action, dict):
        raise Stop("json")
    for validator, value in ((PROPOSAL, proposal), (ACTION, action), (CLAIMS, proposal.get("claims"))):
        if not validator.is_valid(value):
            raise Stop("schema")
    if proposal["action_type"] not in ("HEDGE", "REDUCE"):
        raise Stop("schema")
    if json.dumps(action, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode() != stored:
        raise Stop("schema")
    return proposal, action


def _expected(case: Case, policies: str) -> tuple[str, str]:
    if case.now >= case.decision().deadline:
        raise Stop("deadline")
    if any(step.kind == "joined" and step.body.get("supersedes") for step in case.extra_steps):
        raise Stop("evidence")
    proposal, action = _proposal_of(case)
    if not _evidence_holds(case, proposal, action):
        raise Stop("evidence")
    context = _context(case, proposal, action)
    # Beyond 2**53 not every amount is a JSON number any more.
    is_beyond = any(isinstance(value, int) and int(float(value)) != value for value in context.values())
    if is_beyond or policies in ("unreadable", "empty", "no schema", "invalid"):
        raise Stop("error")
    is_approved = _is_approved(case, proposal)
    if policies in ("erring", "another schema"):
        raise Stop("error")
    is_sale = context["side"] == "sell" and context["quantity"] <= context["available"]
    if policies == "forbids alone" or any(_forbidden(context)) or not is_sale:
        raise Stop("policy")
    if case.off:
        raise Stop("switch")
    if is_approved or _small(context):
        return "permitted", ""
    if case.state == "approved":
        raise Stop("approval")
    return "needs_approval", ""


def _is_approved(case: Case, proposal: dict[str, Any]) -> bool:
    if case.approval is None:
        return False
    if case.approval.approval_id != _approval_name(case, proposal) or not case.approval.stands:
        raise Stop("approval")
    return True


def _approval_name(case: Case, proposal: dict[str, Any]) -> Any:
    # The one thing taken from the code: which id is derived is no verdict.
    from control_plane.model.deciding import derived_id

    _, step, _ = case.record()
    assert step.output_sha256 is not None
    return derived_id(
        "approval",
        case.decision_id,
        step.seq,
        proposal["action_type"],
        proposal["account"],
        step.output_sha256.hex(),
    )


def _nearest(value: Fraction) -> int:
    return floor(value + Fraction(1, 2))


def _median(values: list[int]) -> int:
    ordered = sorted(values)
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) // 2


def _is_wide(z_milli: list[int]) -> bool:
    falls = [z for z in z_milli if z < 0]
    return len(z_milli) > 2 and Fraction(len(falls), len(z_milli)) >= Fraction(3, 4) and _median(z_milli) <= -2000


def _severity(evidence: dict[str, Any]) -> int:
    returns = evidence["returns_ppm"]
    sigma = 0
    if returns:
        centre = _median(returns)
        sigma = _nearest(Fraction(_median([abs(value - centre) for value in returns]) * 14826, 10000))
        sigma = sigma or isqrt(sum(value**2 for value in returns) // len(returns))
    z = _nearest(Fraction(abs(evidence["bar"]["adjusted_return_ppm"]) * 1000, sigma)) if sigma else 0
    level = sum(z >= step for step in (4000, 6000, 8000, 12000))
    return min(4, level + 1) if level and _is_wide(evidence["market"]["z_milli"]) else level


def _evidence_holds(case: Case, proposal: dict[str, Any], action: dict[str, Any]) -> bool:
    evidence, simulation = case.evidence, case.simulation
    if (proposal["evidence_seq"], proposal["simulation_seq"]) != (1, 2):
        return False
    if not _is_evidence(evidence) or not _is_simulation(simulation):
        return False
    bar, market = evidence["bar"], evidence["market"]
    is_wide = _is_wide(market["z_milli"])
    stored, now = case.stored, bar["close_micros"]
    if stored is None or str(stored.event_id) != bar["event_id"]:
        return False
    before, ratio, paid = bar["previous_close_micros"], 1_000_000, 0
    for each in evidence["corporate_actions"]:
        ratio = _nearest(Fraction(ratio * each.get("ratio_ppm", 1_000_000), 1_000_000))
        paid += each.get("amount_micros", 0)
    gained = _nearest(Fraction((now - before) * 1_000_000, before))
    adjusted = _nearest(Fraction(now * ratio + paid * 1_000_000 - before * 1_000_000, before))
    claims, named = proposal["claims"], [o for o in simulation["options"] if o["name"] == proposal["option"]]
    nothing = [o for o in simulation["options"] if o["name"] == "do_nothing" and o["action"] is None]
    return all(
        (
            stored.event_type == "MARKET_TICK_INGESTED",
            (stored.source, stored.entity_id, stored.series, stored.occurred_at) == (SOURCE, ENTITY, SERIES, AT),
            stored.revision == stored.newest_revision == bar["revision"],
            abs(stored.open_micros - bar["open_micros"]) < 2,
            abs(stored.high_micros - bar["high_micros"]) < 2,
            abs(stored.low_micros - bar["low_micros"]) < 2,
            abs(stored.close_micros - now) < 2,
            stored.currency == bar["currency"],
            stored.previous_close_micros is not None and abs(stored.previous_close_micros - before) < 2,
            evidence["problem"] is None,
            (evidence["source"], evidence["entity_id"], evidence["series"]) == (SOURCE, ENTITY, SERIES),
            bar["series"] == SERIES,
            len(evidence["returns_ppm"]) >= 30,
            bar["return_ppm"] == gained,
            bar["adjusted_return_ppm"] == adjusted,
            market["is_market_wide"] is is_wide,
            market["entities"] == len(market["z_milli"]),
            market["fell"] == len([z for z in market["z_milli"] if z < 0]),
            _account_holds(case),
            (action["source"], action["entity_id"], action["series"]) == (SOURCE, ENTITY, SERIES),
            action["reference_price_micros"] == now,
            action["notional_micros"] == action["quantity_micros"] * now // 1_000_000,
            action["currency"] == bar["currency"] == evidence["portfolio"]["currency"],
            proposal["account"] == evidence["portfolio"]["account"],
            claims["return_ppm"] == gained,
            claims["is_market_wide"] is is_wide,
            claims["severity"] == _severity(evidence),
            len(named) == 1
            and named[0]["action"] == action
            and named[0]["expected_shortfall_micros"] == claims["expected_shortfall_micros"],
            len(nothing) == 1,
            proposal["hypothesis"] != "market_wide_fall" or is_wide,
            proposal["hypothesis"] != "single_name_fall" or not is_wide,
        )
    )


def _account_holds(case: Case) -> bool:
    said, now = case.evidence["portfolio"], case.account
    total = said["cash_micros"] + said["others_micros"] + sum(one["value_micros"] for one in said["positions"])
    if now is None or total != said["value_micros"] or now.currency != said["currency"]:
        return False
    names = {(one["source"], one["entity_id"]) for one in said["positions"]}
    value = now.cash_micros + sum(now.values.values())
    if len(names) < len(said["positions"]) or value < 1 or value > 10**15:
        return False
    apart = {name: now.values.get(name, 0) if name in names else 0 for name in {*now.values, *names}}
    for one in said["positions"]:
        apart[one["source"], one["entity_id"]] -= one["value_micros"]
    unlisted = sum(worth for name, worth in now.values.items() if name not in names) - said["others_micros"]
    moved = abs(unlisted) + sum(abs(change) for change in apart.values())
    return bool(moved * 10 <= value and abs(value - said["value_micros"]) * 10 <= value)


def _context(case: Case, proposal: dict[str, Any], action: dict[str, Any]) -> dict[str, Any]:
    evidence = case.evidence
    assert case.account is not None
    value, day = case.account.cash_micros + sum(case.account.values.values()), []
    entity, wide, selling = [], [], case.being_sold_micros
    for each in case.releases:
        apart = abs((each.occurred_at - AT).total_seconds())
        if apart < 86400 or not each.is_executed:
            day.append(each.context["notional_micros"])
        if (each.source, each.entity_id) == (SOURCE, ENTITY):
            entity.append(apart)
            if not each.is_executed and each.context["side"] == "sell":
                selling += each.context["quantity_micros"]
        if each.context["is_market_wide"]:
            wide.append(apart)
    shortfalls = {each["name"]: each["expected_shortfall_micros"] for each in case.simulation["options"]}
    return {
        "type": proposal["action_type"],
        "hypothesis": proposal["hypothesis"],
        "side": action["side"],
        "quantity": action["quantity_micros"],
        "held": case.held_micros,
        "available": case.held_micros - selling,
        "notional": action["notional_micros"],
        "joint": action["notional_micros"] + sum(day),
        "value": value,
        "joint_ppm": -((-action["notional_micros"] - sum(day)) * 1_000_000 // value),
        "count": len(day),
        "entity_gap": min(entity, default=None),
        "wide_gap": min(wide, default=None),
        "is_wide": _is_wide(evidence["market"]["z_milli"]),
        "is_split": any(each["kind"] == "split" for each in evidence["corporate_actions"]),
        "severity": _severity(evidence),
        "move": evidence["bar"]["adjusted_return_ppm"],
        "shortfall": shortfalls[proposal["option"]],
        "nothing": shortfalls["do_nothing"],
    }


def _forbidden(of: dict[str, Any]) -> list[bool]:
    share, joint = Fraction(of["notional"], of["value"]), Fraction(of["joint"], of["value"])
    return [
        of["held"] <= 0,
        of["type"] == "HEDGE" and share > Fraction(15, 100),
        of["type"] == "REDUCE" and share > Fraction(35, 100),
        of["notional"] > 10**12,
        joint > Fraction(40, 100),
        of["count"] >= 3,
        of["entity_gap"] is not None and of["entity_gap"] < 86400,
        of["is_wide"] and of["wide_gap"] is not None and of["wide_gap"] < 86400,
        of["hypothesis"] == "split" or of["is_split"],
        of["hypothesis"] not in ("single_name_fall", "market_wide_fall", "split"),
        of["severity"] < 2,
        of["move"] >= 0,
        of["shortfall"] >= of["nothing"],
    ]


def _small(of: dict[str, Any]) -> bool:
    return (
        of["type"] == "HEDGE"
        and Fraction(of["notional"], of["value"]) <= Fraction(5, 100)
        and Fraction(of["joint"], of["value"]) <= Fraction(10, 100)
        and not of["is_wide"]
    )
