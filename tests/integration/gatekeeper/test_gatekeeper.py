"""The gatekeeper on a real database: each verdict, once, with everything that follows from it and nothing else."""

from datetime import timedelta
from typing import Any

import pytest
from psycopg import errors
from tests.integration.gatekeeper.world import World, read_json
from tests.judgements import AT, MILLION, Case, evidence, market_wide_case

from control_plane.decisions.timers import expire_actions
from control_plane.model.errors import ContractViolation
from control_plane.platform.telemetry import Telemetry

RELEASED_TO = {"decisions.events", "decisions.work", "client.actions"}
TOLD_TO = {"decisions.events", "decisions.work"}


def test_a_permitted_action_is_released_with_its_message(world: World) -> None:
    proposed = world.propose()
    verdict = proposed.judge()
    assert (verdict.verdict, verdict.is_released) == ("permitted", True)
    assert proposed.messages() == {"ACTION_RELEASED": RELEASED_TO}
    [(action_type, account, action, event_id, seconds)] = proposed.rows(
        "SELECT action_type, account, artifact.bytes, event_id, extract(epoch FROM expires_at - released_at)"
        " FROM actions JOIN artifacts AS artifact ON sha256 = action_sha256 WHERE decision_id = %(id)s"
    )
    assert (action_type, account) == ("HEDGE", "paper")
    assert read_json(action) == proposed.case.action
    assert proposed.rows("SELECT FROM events WHERE event_type = 'ACTION_RELEASED' AND event_id = %(id)s") == []
    assert world.owner.execute("SELECT event_type FROM events WHERE event_id = %s", [event_id]).fetchall() == [
        ("ACTION_RELEASED",)
    ]
    assert 590 < seconds < 601


def test_a_verdict_records_what_it_was_based_on(world: World) -> None:
    proposed = world.propose()
    proposed.judge()
    [(policy, schema, request, reasons)] = proposed.rows(
        "SELECT policy.bytes, schema.bytes, request.bytes, reasons FROM verdicts"
        " JOIN artifacts AS policy ON policy.sha256 = policy_sha256"
        " JOIN artifacts AS schema ON schema.sha256 = schema_sha256"
        " JOIN artifacts AS request ON request.sha256 = request_sha256 WHERE decision_id = %(id)s"
    )
    assert bytes(policy).startswith(b"// What finance releases")
    assert bytes(schema).startswith(b"entity Playbook;")
    context = read_json(request)["context"]
    assert (context["notional_micros"], context["notional_ppm"]) == (800 * MILLION, 8_000)
    assert (context["held_micros"], context["releases_of_day"], context["joint_micros"]) == (
        100 * MILLION,
        0,
        800 * MILLION,
    )
    assert reasons == ["policy: small_hedge_of_one_name"]


def test_verdict_and_release_are_steps_of_the_chain(world: World) -> None:
    proposed = world.propose()
    proposed.judge()
    steps = proposed.rows(
        "SELECT kind, author, parent FROM decision_steps WHERE decision_id = %(id)s ORDER BY seq DESC LIMIT 2"
    )
    assert steps == [("released", "gatekeeper", proposed.seq), ("verdict", "gatekeeper", proposed.seq)]


def test_a_refusal_wakes_the_decision_and_releases_nothing(world: World) -> None:
    case = Case()
    case.proposal["claims"]["severity"] = 0
    proposed = world.propose(case)
    assert not proposed.judge().is_released
    [(verdict, reasons, found)] = proposed.verdicts()
    assert (verdict, reasons, found) == ("refused", ["evidence: severity 0 is claimed, and it is 4"], [])
    assert proposed.messages() == {"ACTION_REFUSED": TOLD_TO}
    assert not proposed.is_released()


def test_what_needs_a_person_is_asked_and_not_released(world: World) -> None:
    proposed = world.propose(market_wide_case())
    assert proposed.judge().verdict == "needs_approval"
    assert proposed.messages() == {"APPROVAL_REQUESTED": TOLD_TO}
    assert not proposed.is_released()
    _, action, shown = proposed.approval()
    assert shown.startswith("HEDGE: sell 10.00 AAPL at 80.00 USD\n")
    assert action == proposed.rows("SELECT action_sha256 FROM verdicts WHERE decision_id = %(id)s")[0][0]
    assert proposed.rows("SELECT kind FROM timers WHERE decision_id = %(id)s AND kind = 'approval'")


@pytest.mark.parametrize("make", [Case, market_wide_case, lambda: Case(hypothesis="unexplained")], ids=range(3))
def test_a_second_message_changes_nothing(world: World, make: Any) -> None:
    proposed = world.propose(make())
    proposed.judge()
    before = proposed.rows("SELECT count(*) FROM decision_steps"), proposed.rows("SELECT count(*) FROM outbox")
    again = proposed.judge()
    assert (again.verdict, again.is_released) == (None, False)
    assert before == (
        proposed.rows("SELECT count(*) FROM decision_steps"),
        proposed.rows("SELECT count(*) FROM outbox"),
    )


@pytest.mark.parametrize("make", [Case, market_wide_case, lambda: Case(hypothesis="unexplained")], ids=range(3))
def test_in_shadow_it_is_judged_and_never_released(world: World, make: Any) -> None:
    proposed = world.propose(make(), is_shadow=True)
    verdict = proposed.judge()
    assert (verdict.verdict, verdict.is_released) == (make().judge().verdict, False)
    assert proposed.rows("SELECT is_shadow FROM verdicts WHERE decision_id = %(id)s") == [(True,)]
    assert proposed.rows("SELECT FROM approval_requests WHERE decision_id = %(id)s") == []
    assert proposed.messages() == {"ACTION_REFUSED": TOLD_TO}


@pytest.mark.parametrize("state", ["observing", "abandoned"])
def test_a_decision_that_does_not_wait_gets_no_verdict(world: World, state: str) -> None:
    proposed = world.propose()
    world.owner.execute("UPDATE decisions SET state = %s WHERE decision_id = %s", [state, proposed.decision_id])
    assert proposed.judge().verdict is None
    assert proposed.verdicts() == []
    assert proposed.messages() == {}


def test_a_step_that_is_no_proposal_gets_no_verdict(world: World) -> None:
    proposed = world.propose()
    for seq in (0, 1, 99):
        proposed.seq = seq
        with pytest.raises(ContractViolation, match="newest proposal"):
            proposed.judge()
    assert proposed.verdicts() == []


def test_after_its_deadline_nothing_is_released(world: World) -> None:
    proposed = world.propose(minutes=-1)
    assert proposed.judge().reasons == ("deadline: the decision's is over",)
    assert not proposed.is_released()


# Revisions


def test_a_bar_corrected_before_the_verdict_is_not_acted_on(world: World) -> None:
    proposed = world.propose()
    world.revise_bar(81.0)
    verdict = proposed.judge()
    assert verdict.verdict == "refused"
    assert "superseded: it was revision 0, and 1 is the newest" in verdict.reasons[0]
    assert not proposed.is_released()


def test_a_correction_back_to_the_same_price_supersedes_too(world: World) -> None:
    proposed = world.propose()
    world.revise_bar(81.0)
    world.store_bar(80.0, before=100.0)
    assert proposed.judge().verdict == "refused"


def test_a_corrected_or_late_bar_before_it_supersedes(world: World) -> None:
    proposed = world.propose()
    world.store_bar(99.0, at=AT - timedelta(seconds=30))
    assert proposed.judge().reasons == ("evidence: the close before is superseded, or is not the one in the evidence",)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"event_id": "5f2b8f0e-1c1d-5a39-9b62-7d0f2f7a1b02"}, "its bar is no event"),
        ({"event_id": "nope"}, "badly formed"),
    ],
)
def test_a_bar_that_was_never_stored_is_not_acted_on(world: World, change: dict[str, Any], reason: str) -> None:
    case = Case()
    case.evidence["bar"] |= change
    proposed = world.propose(case, bars=False)
    assert reason in proposed.judge().reasons[0]


def test_a_withdrawn_anomaly_is_not_acted_on(world: World) -> None:
    proposed = world.propose()
    world.owner.execute(
        "SELECT append_step(%s, 'joined', 'engine', 0, convert_to('{\"supersedes\": true}', 'UTF8'))",
        [proposed.decision_id],
    )
    assert "superseded" in proposed.judge().reasons[0]


# Limits


def at_minute(minute: int) -> dict[str, Any]:
    return {"at": AT + timedelta(minutes=minute)}


def test_an_entity_is_left_alone_after_a_release(world: World) -> None:
    assert world.propose().judge().is_released
    again = world.propose(**at_minute(5)).judge()
    assert "policy: entity_cool_down" in again.reasons


def test_of_symbols_that_fall_apart_not_all_are_hedged(world: World) -> None:
    verdicts = [world.propose(entity=entity).judge() for entity in ("AAPL", "MSFT", "IBM", "GOOG", "FB")]
    assert [verdict.is_released for verdict in verdicts] == [True, True, True, False, False]
    assert verdicts[-1].reasons == ("policy: daily_releases",)


def test_joint_exposure_needs_a_person_and_then_ends(world: World) -> None:
    def sized(share: int) -> Case:  # of the account, in per cent
        return Case(quantity_micros=share * 1_000 * MILLION // 80, action_type="HEDGE")

    world.owner.execute("UPDATE paper_positions SET quantity_micros = 1000000000000")
    assert world.propose(sized(5)).judge().is_released
    assert world.propose(sized(5), entity="MSFT").judge().is_released
    assert world.propose(sized(1), entity="IBM").judge().verdict == "needs_approval"


def test_what_was_executed_counts_and_what_failed_or_expired_not(world: World) -> None:
    first = world.propose()
    assert first.judge().is_released
    first.executed()
    assert world.propose(**at_minute(5)).judge().reasons == ("policy: entity_cool_down",)
    second = world.propose(entity="MSFT")
    assert second.judge().is_released
    second.executed("failed")
    assert world.propose(entity="MSFT", **at_minute(5)).judge().is_released
    third = world.propose(entity="IBM", **at_minute(5))
    assert third.judge().is_released
    third.expire()
    assert world.propose(entity="IBM", **at_minute(9)).judge().is_released


def test_what_the_timers_fail_counts_no_longer(world: World) -> None:
    first = world.propose()
    assert first.judge().is_released
    first.expire(minutes=0)
    assert world.propose(**at_minute(5)).judge().reasons == ("policy: entity_cool_down",)
    assert expire_actions(world.decide, Telemetry("test")) == 1
    assert world.propose(**at_minute(9)).judge().is_released


def test_shares_that_are_being_sold_are_not_sold_twice(world: World) -> None:
    world.owner.execute("UPDATE paper_positions SET quantity_micros = 15000000")
    assert world.propose().judge().is_released
    world.owner.execute("DELETE FROM paper_orders")
    late = world.propose(**at_minute(60 * 24 * 3))
    verdict = late.judge()
    assert verdict.reasons == ("policy: no policy permits it",)


def test_an_entity_that_is_not_held_is_not_sold(world: World) -> None:
    world.owner.execute("DELETE FROM paper_positions WHERE entity_id = 'AAPL'")
    assert "policy: not_held" in world.propose().judge().reasons


def test_a_split_is_refused(world: World) -> None:
    case = Case(hypothesis="split")
    assert "policy: split" in world.propose(case).judge().reasons


def test_a_slight_move_is_refused(world: World) -> None:
    slight = Case(evidence=evidence(close=93 * MILLION))
    assert world.propose(slight).judge().reasons == ("policy: too_slight",)


# What goes wrong on the way


def test_without_a_gate_the_proposal_is_refused(world: World) -> None:
    proposed = world.propose()
    verdict = proposed.judge(gate=None)
    assert verdict.errors == ("there is no gate for the domain finance",)
    assert not proposed.is_released()


def test_a_failing_database_records_nothing(world: World) -> None:
    proposed = world.propose()
    world.owner.execute("ALTER TABLE paper_positions RENAME TO gone")
    with pytest.raises(errors.UndefinedTable):
        proposed.judge()
    assert proposed.verdicts() == []
    world.owner.execute("ALTER TABLE gone RENAME TO paper_positions")
    assert proposed.judge().is_released
