"""The policy port: what is loaded, what is refused, and that no error ever permits."""

from collections.abc import Callable
from typing import Any

import pytest
from tests.judgements import Case, CaseGate

from control_plane.decisions import policy
from control_plane.decisions.policy import PolicyUnusable, load, load_from, rule

SCHEMA = """
entity Playbook; entity Account;
action Release, ReleaseWithoutApproval appliesTo {
    principal: Playbook, resource: Account, context: { amount: Long, kind: String, maybe?: Long }
};
"""
PERMIT = '@id("all") permit (principal, action, resource);'


def request(**context: Any) -> dict[str, Any]:
    return {
        "principal": {"type": "Playbook", "id": "finance.x"},
        "resource": {"type": "Account", "id": "paper"},
        "context": {"amount": 1, "kind": "a"} | context,
        "entities": [],
    }


def verdict(policies: str, **context: Any) -> str:
    return rule(load(policies, SCHEMA), request(**context)).verdict


def test_what_no_policy_permits_is_refused() -> None:
    only_small = '@id("small") permit (principal, action, resource) when { context.amount < 5 };'
    assert verdict(only_small, amount=4) == "permitted"
    refused = rule(load(only_small, SCHEMA), request(amount=5))
    assert (refused.verdict, refused.reasons, refused.errors) == ("refused", ("no policy permits it",), ())


def test_a_forbid_wins_and_is_named() -> None:
    ruling = rule(load(PERMIT + '@id("no") forbid (principal, action, resource);', SCHEMA), request())
    assert (ruling.verdict, ruling.reasons) == ("refused", ("no",))


def test_a_release_without_approval_needs_its_own_permit() -> None:
    loaded = load('@id("r") permit (principal, action == Action::"Release", resource);', SCHEMA)
    assert rule(loaded, request()).verdict == "needs_approval"
    assert rule(loaded, request(), is_approved=True).verdict == "permitted"


BROKEN = '@id("broken") forbid (principal, action, resource) when { context.amount * 9000000000000000000 > 9 };'


def test_a_policy_that_errs_refuses_although_another_permits() -> None:
    loaded = load(PERMIT + BROKEN, SCHEMA)
    ruling = rule(loaded, request(amount=5))
    assert ruling.verdict == "refused"
    assert "overflow" in ruling.errors[0]
    assert rule(loaded, request(amount=5), is_approved=True).verdict == "refused"
    assert rule(loaded, request(amount=0)).verdict == "permitted"


def test_a_policy_that_errs_for_the_second_question_refuses() -> None:
    only_alone = BROKEN.replace("action,", 'action == Action::"ReleaseWithoutApproval",')
    assert rule(load(PERMIT + only_alone, SCHEMA), request(amount=5)).verdict == "refused"


@pytest.mark.parametrize(
    "context",
    [
        {"amount": "1"},
        {"amount": 1.5},
        {"amount": True},
        {"amount": 2**63},
        {"amount": None},
        {"extra": 1},
        {"kind": "\ud800"},
        {"maybe": "x"},
    ],
    ids=str,
)
def test_a_request_outside_of_the_schema_is_refused(context: dict[str, Any]) -> None:
    ruling = rule(load(PERMIT, SCHEMA), request(**context))
    assert ruling.verdict == "refused"
    assert ruling.errors


@pytest.mark.parametrize("missing", ["principal", "resource", "context", "entities"])
def test_a_request_that_lacks_a_part_is_refused(missing: str) -> None:
    ruling = rule(load(PERMIT, SCHEMA), {name: value for name, value in request().items() if name != missing})
    assert ruling.verdict == "refused"
    assert ruling.errors


@pytest.mark.parametrize(
    ("policies", "reason"),
    [
        ("", "there are no policies"),
        ("  \n", "there are no policies"),
        ("// nothing\n", "only comments"),
        ("permit (", "cannot be parsed"),
        ("permit (principal, action, resource);", "no @id"),
        (PERMIT + PERMIT, "given to two"),
        ('@id("x") permit (principal == ?principal, action, resource);', "template"),
        ('@id("x") permit (principal, action, resource) when { context.nope };', "x: "),
        ('@id("x") permit (principal, action == Action::"Nope", resource);', "do not fit"),
    ],
)
def test_policies_that_cannot_be_used_are_not_loaded(policies: str, reason: str) -> None:
    with pytest.raises(PolicyUnusable, match=reason):
        load(policies, SCHEMA)


@pytest.mark.parametrize("schema", ["", "entity (", "entity Playbook;"])
def test_a_schema_that_cannot_be_used_refuses(schema: str) -> None:
    with pytest.raises(PolicyUnusable):
        load(PERMIT, schema)


def test_policies_are_parsed_once_per_text() -> None:
    assert load(PERMIT, SCHEMA) is load(PERMIT, SCHEMA)
    assert load(PERMIT, SCHEMA).sha256 != load(PERMIT + "\n", SCHEMA).sha256


def unreadable() -> str:
    raise OSError("gone")


@pytest.mark.parametrize("name", ["policies", "schema"])
@pytest.mark.parametrize("read", [unreadable, lambda: "", lambda: None, lambda: "permit ("], ids=range(4))
def test_a_proposal_is_refused_while_policies_cannot_be_read(name: str, read: Callable[[], Any]) -> None:
    gate_type = type("Gate", (CaseGate,), {name: property(lambda _gate: read())})
    with pytest.raises(PolicyUnusable):
        load_from(gate_type())
    finding = Case().judge(gate_type())
    assert (finding.verdict, finding.request) == ("refused", None)
    assert finding.errors
    assert Case().judge().verdict == "permitted"


@pytest.mark.parametrize("error", [ValueError("x"), RuntimeError("x"), KeyError("x")], ids=repr)
def test_whatever_the_binding_raises_refuses(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(policy.cedarpy, "is_authorized", fail)
    assert verdict(PERMIT) == "refused"
