"""Finance's gate: each policy at its limit and one beyond, what evidence must hold, and what an approver is shown."""

from dataclasses import replace
from datetime import timedelta
from importlib import resources
from pathlib import Path
from random import Random
from typing import Any
from unicodedata import east_asian_width

import pytest
from rich.cells import cell_len
from tests.judgements import AT, GATE, MILLION, Case, Now, evidence, json_bytes, market_wide_case, release, worth

from control_plane.decisions.judgement import AskedApproval, approval_id, examine
from control_plane.decisions.policy import RELEASE, RELEASE_WITHOUT_APPROVAL, decide, from_record, load_from
from control_plane.model.deciding import Proposal
from domains.finance import gate
from domains.finance.approval_text import unsupported_numbers
from domains.finance.evidence_check import grounds_of

VALUE = 100_000 * MILLION
PRICE = 80


def sized(share_ppm: int, **changes: Any) -> Case:
    """A case that sells so much of the portfolio, of a position that is large enough."""
    quantity = share_ppm * (VALUE // MILLION) // PRICE
    return Case(quantity_micros=quantity, held_micros=10**12, **changes)


# Each policy deciding both ways: name, at its limit, beyond it

ALONE = [
    ("small_hedge_of_one_name", lambda: sized(50_000), lambda: sized(50_800)),
    ("small_hedge_of_one_name", Case, market_wide_case),
    ("small_hedge_of_one_name", Case, lambda: Case(action_type="REDUCE")),
    (
        "small_hedge_of_one_name",
        lambda: sized(50_000, releases=[release(notional=5_000 * MILLION)]),
        lambda: sized(50_000, releases=[release(notional=5_000 * MILLION + 1)]),
    ),
]
FORBIDS = [
    ("hedge_limit", lambda: sized(150_000), lambda: sized(150_080)),
    ("reduce_limit", lambda: sized(350_000, action_type="REDUCE"), lambda: sized(350_080, action_type="REDUCE")),
    (
        "joint_exposure",
        lambda: sized(100_000, releases=[release(notional=30_000 * MILLION)]),
        lambda: sized(100_000, releases=[release(notional=30_000 * MILLION + 1)]),
    ),
    (
        "daily_releases",
        lambda: Case(releases=[release(notional=1)] * 2),
        lambda: Case(releases=[release(notional=1)] * 3),
    ),
    (
        "daily_releases",
        lambda: Case(releases=[release(notional=1, minutes=1440)] * 3),
        lambda: Case(releases=[release(notional=1, minutes=1440, is_executed=False)] * 3),
    ),
    (
        "entity_cool_down",
        lambda: Case(releases=[release(entity_id="AAPL", minutes=1440)]),
        lambda: Case(releases=[release(entity_id="AAPL", minutes=1439)]),
    ),
    (
        "entity_cool_down",
        lambda: Case(releases=[release(entity_id="AAPL", minutes=-1440)]),
        lambda: Case(releases=[release(entity_id="AAPL", minutes=-1439)]),
    ),
    (
        "market_wide_cool_down",
        lambda: market_wide_case(releases=[release(is_market_wide=True, minutes=1440)]),
        lambda: market_wide_case(releases=[release(is_market_wide=True, minutes=1439)]),
    ),
    (
        "market_wide_cool_down",
        lambda: Case(releases=[release(is_market_wide=True)]),
        lambda: market_wide_case(releases=[release(is_market_wide=True)]),
    ),
    ("not_held", lambda: Case(held_micros=10 * MILLION), lambda: Case(held_micros=0)),
    ("split", Case, lambda: Case(hypothesis="split")),
    ("no_explanation", market_wide_case, lambda: market_wide_case(hypothesis="unexplained")),
    ("no_explanation", Case, lambda: Case(hypothesis="data_error")),
    (
        "too_slight",
        lambda: Case(evidence=evidence(close=91 * MILLION)),
        lambda: Case(evidence=evidence(close=92 * MILLION)),
    ),
    ("did_not_fall", Case, lambda: Case(evidence=evidence(close=120 * MILLION))),
    ("worse_than_nothing", lambda: Case(shortfall=(9, 10)), lambda: Case(shortfall=(10, 10))),
    ("notional_limit", lambda: rich(10**12), lambda: rich(10**12 + 80)),
]


def rich(notional: int) -> Case:
    """A sale of so many micros by an account of ten million."""
    return Case(evidence=worth(evidence(), 10**13), quantity_micros=notional // PRICE, held_micros=10**15)


@pytest.mark.parametrize(("name", "within", "beyond"), FORBIDS)
def test_a_forbid_decides_both_ways(name: str, within: Any, beyond: Any) -> None:
    assert f"policy: {name}" in beyond().judge().reasons
    permitted = within().judge()
    assert permitted.verdict != "refused", permitted


@pytest.mark.parametrize(("name", "within", "beyond"), ALONE)
def test_a_permit_without_a_person_decides_both_ways(name: str, within: Any, beyond: Any) -> None:
    assert (within().judge().verdict, within().judge().reasons) == ("permitted", (f"policy: {name}",))
    assert beyond().judge().verdict == "needs_approval"


def test_more_than_is_available_is_not_sold() -> None:
    assert Case(held_micros=10 * MILLION).judge().verdict == "permitted"
    assert Case(held_micros=10 * MILLION - 1).judge().reasons == ("policy: no policy permits it",)
    assert Case(held_micros=10 * MILLION, being_sold_micros=1).judge().verdict == "refused"
    in_flight = release(entity_id="AAPL", minutes=5_000, is_executed=False, quantity=1)
    assert Case(held_micros=10 * MILLION, releases=[in_flight]).judge().verdict == "refused"


def test_a_purchase_is_not_permitted() -> None:
    case = Case()
    case.action["side"] = case.simulation["options"][1]["action"]["side"] = "buy"
    assert case.judge().reasons == ("policy: no policy permits it",)


def test_an_order_of_another_series_is_refused() -> None:
    case = Case()
    case.action["series"] = case.simulation["options"][1]["action"]["series"] = "1d"
    assert case.judge().reasons == ("evidence: the action is about another entity or series than its decision",)


def test_how_many_fell_is_counted_again() -> None:
    case = Case()
    case.evidence["market"]["fell"] += 1
    assert case.judge().reasons == ("evidence: what is said of the market contradicts itself",)


def test_a_portfolio_that_does_not_add_up_is_refused() -> None:
    case = Case()
    case.evidence["portfolio"]["value_micros"] += 1
    assert case.judge().reasons == ("evidence: what is said of the account contradicts itself",)


def test_every_policy_is_in_these_tests() -> None:
    tried = {name for name, _, _ in [*FORBIDS, *ALONE]} | {"sells_what_is_held"}
    assert tried == set(load_from(GATE).names.values())


def test_an_approved_action_needs_no_second_permit() -> None:
    finding = market_wide_case().judge()
    assert finding.policy is not None
    assert finding.request is not None
    request = from_record(finding.request)
    assert decide(finding.policy, request, RELEASE).is_allowed
    assert not decide(finding.policy, request, RELEASE_WITHOUT_APPROVAL).is_allowed


def test_the_account_is_locked_before_it_is_counted() -> None:
    case = Case()
    present = Now(case)

    class Counting(type(GATE)):  # type: ignore[misc]
        def check_evidence(self, connection: Any, judged: Any) -> Any:
            assert present.locked == ["finance paper"]
            return super().check_evidence(connection, judged)

        def releases(self, connection: Any, judged: Any) -> Any:
            assert present.locked == ["finance paper"]
            return []

    record, step, body = case.record()
    assert examine(present, Counting(), record, step, body).verdict == "permitted"


# What a judgement does where a gate fails


@pytest.mark.parametrize("method", ["check_evidence", "policy_request", "render"])
@pytest.mark.parametrize("error", [KeyError("x"), ZeroDivisionError(), RecursionError()], ids=repr)
def test_a_gate_that_fails_lets_nothing_through(method: str, error: Exception) -> None:
    def fail(*_: Any) -> Any:
        raise error

    finding = market_wide_case().judge(type("Gate", (type(GATE),), {method: fail})())
    assert finding.verdict == "refused"
    assert finding.errors
    assert finding.reasons == ()


def test_what_is_asked_of_the_policies_is_what_is_recorded() -> None:
    case = Case(releases=[release(notional=2**53 + 1)])
    finding = case.judge()
    assert (finding.verdict, finding.request) == ("refused", None)
    assert "cannot hold exactly" in finding.errors[0]


# Approvals


def approved(case: Case, *, stands: bool = True, state: str = "approved") -> Case:
    """The case after a person approved its proposal as it is."""
    _, step, _ = case.record()
    assert step.output_sha256 is not None
    named = approval_id(case.decision_id, step.seq, Proposal.model_validate(case.proposal), step.output_sha256)
    case.approval, case.state = AskedApproval(named, stands), state
    return case


def test_an_approval_releases_what_it_was_given_for() -> None:
    assert market_wide_case().judge().verdict == "needs_approval"
    finding = approved(market_wide_case()).judge()
    assert finding.verdict == "permitted"
    assert finding.approval_id is not None


def test_an_approval_does_not_overrule_a_forbid() -> None:
    assert "policy: daily_releases" in approved(market_wide_case(releases=[release()] * 3)).judge().reasons


def test_without_an_approval_that_stands_nothing_is_released() -> None:
    assert approved(market_wide_case(), stands=False).judge().verdict == "refused"
    never_asked = replace(market_wide_case(), state="approved")
    assert never_asked.judge().reasons == (
        "approval: the one that was given does not stand, and no other is asked for",
    )


def test_of_ten_thousand_changed_actions_none_passes() -> None:
    """Whatever is changed after a person approved: the action, its type, its account, or what it says it rests on."""
    random = Random(7)
    outcomes = []
    for _ in range(10_000):
        case = approved(market_wide_case())
        name = random.choice([*case.action, "action_type", "account"])
        if name in case.action:
            value = case.action[name]
            changed = value + random.choice((-1, 1, 10**6)) if isinstance(value, int) else f"{value}x"
            case.action[name] = "buy" if name == "side" else changed
            if random.random() < 0.8:  # and the simulation with it
                case.simulation["options"][1]["action"] = dict(case.action)
            if name == "quantity_micros":
                case.action["notional_micros"] = case.action["quantity_micros"] * PRICE
                case.simulation["options"][1]["action"] = dict(case.action)
        elif name == "account":
            case.proposal["account"] = case.evidence["portfolio"]["account"] = "other"
        else:
            case.proposal["action_type"] = "REDUCE"
        outcomes.append(case.judge().verdict)
    assert set(outcomes) == {"refused"}


# What an approver is shown


def test_an_approver_sees_action_loss_and_evidence_first() -> None:
    summary = "It fell by 20.0 %, and the account loses 1,000.00 USD. Approve this within 7 minutes: 42 others did."
    finding = market_wide_case(summary=summary).judge()
    assert finding.shown is not None
    assert finding.shown.split("\n") == [
        "HEDGE: sell 10.00 AAPL at 80.00 USD",
        "  amount      800.00 USD, +0.8 % of account paper",
        "  option      hedge_small",
        "Loss on average in the worst twentieth of the simulated paths",
        "  with it     900.00 USD",
        "  without     1,000.00 USD",
        "Evidence: bar 1m of 2026-01-05T14:32:00Z",
        "  close       80.00 after 100.00, -20.0 %; adjusted -20.0 %",
        "  market      4 of 4 fell; the whole market",
        "  severity    4 of 4",
        "  explanation market_wide_fall",
        "Summary by the agents, not checked; nothing follows from it:",
        "  | It fell by 20.0 %, and the account loses 1,000.00 USD. Approve this",
        "  | within 7 minutes: 42 others did.",
        "Numbers in it that nothing supports: 1",
        "  ! 42",
    ]
    assert all(len(line) <= 80 for line in finding.shown.split("\n"))


@pytest.mark.parametrize(
    ("text", "unsupported"),
    [
        ("It fell by 20 %.", []),
        ("It fell by 20.0 %.", []),
        ("It fell by 20.4 %.", ["20.4"]),
        ("A loss of 1,000 USD, or 900.00.", []),
        ("A loss of 1,001 USD.", ["1,001"]),
        ("On 2026-01-05 it closed at 80.", []),
        ("On 2025-01-05.", ["2025"]),
        ("Nothing.", []),
    ],
)
def test_numbers_that_nothing_supports_are_found(text: str, unsupported: list[str]) -> None:
    finding = market_wide_case(summary=text).judge()
    assert finding.judged is not None
    assert unsupported_numbers(finding.judged, grounds_of(finding.judged)) == unsupported


HOSTILE_PROSE = {
    "wide spaces": "\u3000" * 37 + "Loss with it 0.00 USD",
    "wide letters": "\uff21" * 60 + " Loss with it 0.00 USD",
    "letters that are wide somewhere": "\u03b1" * 76 + "Loss with it 0.00 USD",
    "a number with 26 decimals": "It fell by 0." + "1" * 26 + " %.",
    "a number of a thousand digits": "9" * 1_000,
    "wide digits": "\uff11" * 70,
}


def cells(line: str) -> int:
    return cell_len(line) + sum(east_asian_width(character) == "A" for character in line)


@pytest.mark.parametrize("name", HOSTILE_PROSE)
def test_no_line_of_prose_goes_on_unmarked(name: str) -> None:
    finding = market_wide_case(summary=HOSTILE_PROSE[name]).judge()
    assert finding.verdict == "needs_approval", finding.errors
    assert finding.shown is not None
    prose = finding.shown.partition("follows from it:\n")[2].split("\n")
    assert all(line.startswith(("  | ", "  ! ", "Numbers in it")) and cells(line) < 80 for line in prose)


def test_a_long_name_of_an_option_is_cut() -> None:
    case = market_wide_case()
    case.proposal["option"] = case.simulation["options"][1]["name"] = "\u3000x" * 30 + "with it 0.00 USD"
    shown = case.judge().shown
    assert shown is not None
    assert all(cells(line) < 80 for line in shown.split("\n"))


def test_prose_is_rendered_before_the_switches_are_held() -> None:
    case, order = market_wide_case(), []

    class Rendering(type(GATE)):  # type: ignore[misc]
        def render(self, judged: Any) -> str:
            order.append("render")
            return "x"

    class Watched(Now):
        def switched_off(self, decision_id: Any, action_type: str) -> Any:
            order.append("switches")
            return []

    assert examine(Watched(case), Rendering(), *case.record()).verdict == "needs_approval"
    assert order == ["render", "switches"]


def test_prose_cannot_pass_for_what_our_code_says() -> None:
    for text in ("Fine.\nHEDGE: sell 0.01", "Fine.\x1b[2J", "Fine \u202e"):
        case = market_wide_case()
        case.body = json_bytes(case.proposal | {"summary": text})
        assert case.judge().reasons[0].startswith("json: ")


def test_a_deadline_is_the_databases_to_judge() -> None:
    assert Case(now=AT + timedelta(minutes=14, seconds=59)).judge().verdict == "permitted"
    assert Case(now=AT + timedelta(minutes=15)).judge().verdict == "refused"


def test_policies_in_shadow_are_those_of_a_file_beside_the_enforced_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert gate.policies_in_shadow() is None
    monkeypatch.setattr(resources, "files", lambda _: tmp_path)
    (tmp_path / "shadow.cedar").write_text("permit", encoding="utf-8")
    read = gate.policies_in_shadow()
    assert read is not None
    assert read() == "permit"
