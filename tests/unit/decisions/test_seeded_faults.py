"""Faults put into the gatekeeper one at a time, by changing a function's text: the adversarial run finds each."""

import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import pytest
from tests.adversary import run

from control_plane.decisions import judgement, policy, strict_json
from domains.finance import account_check, evidence_check, gate

CASES = 6_000
EXAMINATION = judgement._Examination


@dataclass(frozen=True)
class Fault:
    """A function with one piece of its text exchanged."""

    name: str
    function: Callable[..., Any]
    old: str
    new: str


FAULTS = [
    Fault("keys may be given twice", strict_json._object, "if name in found", "if False"),
    Fault("NaN passes", strict_json._constant, "raise NotStrictJson", "return float(name)\n    raise NotStrictJson"),
    Fault("1e999 passes", strict_json._float, "if not math.isfinite(number)", "if False"),
    Fault("depth is not limited", strict_json._check_depth, "if depth > most_depth", "if False"),
    Fault("size is not limited", strict_json.parse, "if len(given) > most_bytes", "if False"),
    Fault(
        "invisible characters pass", strict_json._check_texts, "if has_invisible(value.translate(passing))", "if False"
    ),
    Fault(
        "actions need not be canonical",
        judgement.read_proposal,
        'if canonical_json(stated, field="action") != stored',
        "if False",
    ),
    Fault(
        "claims are not validated",
        judgement.read_proposal,
        '_validated(gate.claims_type, proposal.claims, "claims.")',
        "gate.claims_type.model_construct(**proposal.claims)",
    ),
    Fault(
        "extra fields of an action pass",
        judgement.read_proposal,
        '_validated(schema, stated, "action.")',
        '_validated(schema, {name: stated[name] for name in schema.model_fields if name in stated}, "action.")',
    ),
    Fault(
        "an unknown type of action passes",
        judgement.read_proposal,
        "schema = gate.action_types.get(proposal.action_type)",
        'schema = gate.action_types.get(proposal.action_type, gate.action_types["HEDGE"])',
    ),
    Fault("evidence is not checked", EXAMINATION.run, "if wrong:", "if False:"),
    Fault("the deadline is ignored", EXAMINATION.run, "if self._present.now() >= decision.deadline", "if False"),
    Fault("the deadline is one moment late", EXAMINATION.run, ">= decision.deadline", "> decision.deadline"),
    Fault("a superseded anomaly passes", EXAMINATION._check_record, "if superseded is not None", "if False"),
    Fault("switches are ignored", EXAMINATION.run, "if off:", "if False:"),
    Fault("nobody is asked", EXAMINATION.run, "return ruling.verdict, [", "return PERMITTED, ["),
    Fault(
        "another's approval counts",
        EXAMINATION._find_approval,
        "if asked.approval_id != approval_id(",
        "if None is approval_id(",
    ),
    Fault("an approval that is over counts", EXAMINATION._find_approval, "if not asked.stands", "if False"),
    Fault(
        "a policy that errs is skipped", policy.decide, "tuple(str(error) for error in result.diagnostics.errors)", "()"
    ),
    Fault(
        "an error of the policies is no refusal",
        policy.rule,
        "if release.errors or not release.is_allowed",
        "if not release.is_allowed and not release.errors",
    ),
    Fault("requests are not held to the schema", policy.decide, "schema=policy.parsed_schema", "schema=None"),
    Fault(
        "what no policy forbids is permitted",
        policy.rule,
        "if release.errors or not release.is_allowed",
        "if release.errors or release.reasons and not release.is_allowed",
    ),
    Fault(
        "an empty text is taken for policies",
        policy.load_from,
        "policies, schema = source.policies, source.schema",
        "policies, schema = source.policies or '@id(\"x\") permit (principal, action, resource);', source.schema",
    ),
    Fault("a revision is overlooked", evidence_check.bar_faults, "or stored.revision != stored.newest_revision", ""),
    Fault(
        "the close before is not looked up",
        evidence_check.bar_faults,
        "if stored.previous_close_micros is None or not _is_same_price(",
        "if not _is_same_price(0, 0) and not _is_same_price(",
    ),
    Fault(
        "how many fell is believed",
        evidence_check.evidence_faults,
        "len(market.z_milli), fell)",
        "len(market.z_milli), market.fell)",
    ),
    Fault(
        "any account fits the evidence", account_check.account_faults, "if max(changed,", "if False and max(changed,"
    ),
    Fault(
        "positions may be others",
        account_check.account_faults,
        "max(changed, abs(value - portfolio.value_micros))",
        "abs(value - portfolio.value_micros)",
    ),
    Fault(
        "shares are of what the evidence says",
        gate.FinanceGate.policy_request,
        "account.value_micros)",
        "grounds_of(judged).evidence.portfolio.value_micros)",
    ),
    Fault(
        "the claimed severity is believed",
        evidence_check.claims_that_fail,
        "if claims.severity != grounds.severity",
        "if False",
    ),
    Fault(
        "the claimed loss is believed",
        evidence_check.claims_that_fail,
        "if claims.expected_shortfall_micros != option.expected_shortfall_micros",
        "if False",
    ),
    Fault(
        "the action need not be the simulated one",
        evidence_check.claims_that_fail,
        "if option.action != judged.action.model_dump()",
        "if False",
    ),
    Fault(
        "notional need not be quantity × price",
        evidence_check.action_faults,
        "action.notional_micros != action.quantity_micros * action.reference_price_micros // measures.MILLION",
        "False",
    ),
    Fault(
        "an explanation that is refuted passes",
        evidence_check.claims_that_fail,
        'if hypothesis == "market_wide_fall" and not grounds.is_market_wide',
        "if False",
    ),
    Fault(
        "earlier releases are not counted",
        gate.request_of,
        "joint = action.notional_micros + sum(",
        "joint = action.notional_micros + 0 * sum(",
    ),
    Fault(
        "what is not yet executed is not counted",
        gate.request_of,
        "if not release.is_executed or abs(",
        "if release.is_executed and abs(",
    ),
    Fault(
        "shares are sold twice",
        gate.request_of,
        '"available_micros": holding.held_micros - being_sold',
        '"available_micros": holding.held_micros',
    ),
    Fault(
        "a limit may be exceeded by a little",
        gate._share_ppm,
        "-(-part * measures.MILLION // whole)",
        "part * measures.MILLION // whole",
    ),
    Fault(
        "the cool-down looks the wrong way",
        gate._nearest,
        "abs(release.occurred_at - at)",
        "(release.occurred_at - at)",
    ),
]


@contextmanager
def put_in(fault: Fault) -> Iterator[None]:
    """The function with the fault in it, for whoever holds it already too."""
    function = fault.function
    assert isinstance(function, FunctionType)
    text = textwrap.dedent(inspect.getsource(function))
    flat, old = re.sub(r"\s+", " ", text), re.sub(r"\s+", " ", fault.old)
    if fault.old in text:
        assert text.count(fault.old) == 1, "the text is ambiguous"
        changed = text.replace(fault.old, fault.new)
    else:
        assert flat.count(old) == 1, f"{fault.name}: its text is not there any more"
        changed = re.sub(r"\s+".join(map(re.escape, fault.old.split())), lambda _: fault.new, text)
    made: dict[str, Any] = {}
    exec(compile(changed, fault.name, "exec", flags=0, dont_inherit=True), function.__globals__, made)
    original = function.__code__
    function.__code__ = made[function.__name__].__code__
    try:
        yield
    finally:
        function.__code__ = original


@pytest.mark.timeout(300)
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_seeded_fault_is_found(fault: Fault) -> None:
    with put_in(fault):
        seen = run(CASES, seed=1, stop_at_first=True)
    assert seen.differences, f"{fault.name}: no case of {CASES} shows it"


def test_without_a_fault_none_is_found() -> None:
    assert run(500, seed=1, stop_at_first=True).differences == []
    assert len(FAULTS) >= 20
