"""acp approvals, approve, deny, switch, switches and policy on a real Postgres; the cloud around it is a stand-in."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.conftest import TestDatabase
from tests.integration.api_server import ApiServer, lead_to, no_deployment, serving
from tests.integration.functions.invoked import FakeContext
from tests.integration.gatekeeper.test_gatekeeper_approvals import make_person
from tests.integration.gatekeeper.world import World
from tests.integration.running_cloud import RunningCloud, run
from tests.judgements import MILLION, Case, market_wide_case

from acp_cli import asking, deciders
from control_plane.decisions.switches import set_switch
from domains.finance.gate import FinanceGate
from local_cloud.cloud import Cloud
from local_cloud.workspace import CHECKOUT, Workspace


@pytest.fixture(autouse=True)
def environ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    no_deployment(tmp_path, monkeypatch)


@pytest.fixture
def api(database: TestDatabase, monkeypatch: pytest.MonkeyPatch) -> Iterator[ApiServer]:
    with serving(database) as served:
        yield served


@pytest.fixture
def cloud(cloud: RunningCloud, api: ApiServer, monkeypatch: pytest.MonkeyPatch) -> RunningCloud:
    lead_to(api, cloud, monkeypatch)
    return cloud


@pytest.fixture
def nowhere(tmp_path: Path) -> Cloud:
    return Cloud(Workspace(CHECKOUT, tmp_path, tmp_path / "state"))


def test_a_person_approves_what_is_shown_as_themselves(
    cloud: RunningCloud, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    proposed = world.propose(market_wide_case())
    proposed.judge()
    listed = run(cloud, "approvals")
    assert listed.exit_code == 0, listed.output
    assert all(len(line) <= 80 for line in listed.output.splitlines())
    assert "  HEDGE: sell 10.00 AAPL at 80.00 USD" in listed.stdout
    [request] = json.loads(run(cloud, "approvals", "--json").stdout)
    assert request["decision_id"] == str(proposed.decision_id)

    monkeypatch.setattr(asking, "is_terminal", lambda: True)
    approved = run(
        cloud, "approve", request["approval_id"][:8], "--reason", "it is small", "--by", "grace", typed="y\n"
    )
    assert approved.exit_code == 0, approved.output
    assert "Approved by person_grace" in approved.stderr
    assert proposed.rows("SELECT is_given, decided_by, reason FROM approvals WHERE decision_id = %(id)s") == [
        (True, "person_grace", "it is small")
    ]
    assert "Nothing waits for an approval." in run(cloud, "approvals").stderr
    again = run(cloud, "approve", request["approval_id"], "--yes")
    assert again.exit_code == 1
    assert "does not count: it was answered before" in again.stderr

    proposed.move("awaiting_approval", "approved")
    assert proposed.judge(nth=1).is_released


def test_a_person_denies_it(cloud: RunningCloud, world: World) -> None:
    proposed = world.propose(market_wide_case())
    proposed.judge()
    approval_id, _, _ = proposed.approval()
    denied = run(cloud, "deny", str(approval_id), "--by", "ada")
    assert (denied.exit_code, "Denied by person_ada." in denied.stderr) == (0, True)
    assert proposed.messages()["APPROVAL_DENIED"] == {"decisions.events", "decisions.work"}


@pytest.mark.parametrize("typed", [None, "", "\n", "n\n"])
def test_nothing_is_approved_unless_it_is_confirmed(
    cloud: RunningCloud, world: World, typed: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    proposed = world.propose(market_wide_case())
    proposed.judge()
    approval_id, _, _ = proposed.approval()
    if typed is not None:
        monkeypatch.setattr(asking, "is_terminal", lambda: True)
    result = run(cloud, "approve", str(approval_id), typed=typed)
    assert result.exit_code == (2 if typed is None else 1)
    assert "HEDGE: sell" in result.stdout
    assert run(cloud, "approve", str(approval_id)[:8], "--yes").exit_code == 2
    assert proposed.rows("SELECT FROM approvals WHERE decision_id = %(id)s") == []


def test_a_beginning_names_open_requests_alone(cloud: RunningCloud, world: World) -> None:
    proposed = world.propose(market_wide_case())
    proposed.judge()
    approval_id, _, _ = proposed.approval()
    assert run(cloud, "deny", str(approval_id)[:7]).exit_code == 2
    assert run(cloud, "deny", str(approval_id)[:8].upper()).exit_code == 0
    assert run(cloud, "deny", str(approval_id)[:8]).exit_code == 2
    assert "does not count: it was answered before" in run(cloud, "deny", str(approval_id)).stderr


@pytest.mark.parametrize(
    "given", ["nope", "", "%", "________", "0", "%%%%%%%%", "00000000-0000-0000-0000-000000000000"]
)
def test_an_id_that_is_none_is_refused_with_where_to_look(cloud: RunningCloud, world: World, given: str) -> None:
    world.propose(market_wide_case()).judge()
    result = run(cloud, "approve", given)
    assert result.exit_code == 2
    assert "is no request's id" in " ".join(result.stderr.split())
    assert "scripts/acp approvals" in result.stderr


def test_an_empty_name_answers_nothing(cloud: RunningCloud) -> None:
    assert run(cloud, "approvals", "--by", " ").exit_code == 2


def test_a_scope_is_switched_off_and_on_again(cloud: RunningCloud, world: World) -> None:
    assert "Nothing was ever switched off." in run(cloud, "switches").stderr
    off = run(cloud, "switch", "off", "action:HEDGE", "--reason", "drill")
    assert off.stderr == "action:HEDGE is off until scripts/acp switch on action:HEDGE (by token:root).\n"
    assert world.propose().judge().reasons == ("switch: action:HEDGE is switched off",)
    table = run(cloud, "switches").stdout
    assert all(word in table for word in ("action:HEDGE", "off", "token:root", "drill"))
    assert run(cloud, "switch", "on", "action:HEDGE").exit_code == 0
    [row] = json.loads(run(cloud, "switches", "--json").stdout)
    assert (row["scope"], row["is_off"], row["set_by"]) == ("action:HEDGE", False, "token:root")
    assert row["reason"].startswith("asked for by ")
    assert run(cloud, "switch", "off", "all", "--by", "grace").exit_code == 0
    assert "person_grace" in run(cloud, "switches").stdout


@pytest.mark.parametrize("scope", ["everything", "domain:", "action:a b", "all "])
def test_what_is_no_scope_is_refused(cloud: RunningCloud, scope: str) -> None:
    result = run(cloud, "switch", "off", scope)
    assert result.exit_code == 2
    assert "is no scope" in result.stderr


@pytest.mark.parametrize("scope", ["action:hedge", "playbook:unusal_bar", "agent:nobody", "domain:Finance"])
def test_a_scope_that_nothing_has_is_refused(cloud: RunningCloud, scope: str) -> None:
    result = run(cloud, "switch", "off", scope)
    said = " ".join(result.stderr.split())
    assert result.exit_code == 2
    assert f"There is nothing called {scope} here." in said
    assert all(one in said for one in ("playbook:unusual_bar", "agent:hypotheses", "action:HEDGE", "model:NAME"))
    assert "Nothing was ever switched off." in run(cloud, "switches").stderr


def test_what_is_gone_can_be_switched_on(cloud: RunningCloud, world: World) -> None:
    set_switch(world.owner, "playbook:gone", off=True)
    assert run(cloud, "switch", "on", "playbook:gone").exit_code == 0
    assert run(cloud, "switch", "on", "playbook:other").exit_code == 2
    assert run(cloud, "switch", "off", "model:any/name").exit_code == 0


def test_a_switch_says_that_it_waits(cloud: RunningCloud, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deciders, "QUIET_SECONDS", 0.05)
    monkeypatch.setattr(deciders, "MOST_SECONDS", 0.2)
    with world.gatekeeper.transaction():
        world.gatekeeper.execute("SELECT switched_off(gen_random_uuid(), 'HEDGE')")
        world.gatekeeper.execute("SET LOCAL idle_in_transaction_session_timeout = '60s'")
        result = run(cloud, "switch", "off", "all", "--by", "grace")
    said = " ".join(result.stderr.split())
    assert result.exit_code == 1
    assert "Waiting for releases and executions that are under way." in said
    assert "all was not switched off: something has held the switches' lock" in said
    assert run(cloud, "switch", "off", "all").exit_code == 0


def test_a_deployed_database_is_used_by_ones_own_login(
    nowhere: Cloud, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    proposed = world.propose(market_wide_case())
    proposed.judge()
    approval_id, _, _ = proposed.approval()
    url = make_person(world, "person_remote")
    assert run(nowhere, "approvals").exit_code == 3
    assert str(approval_id) in run(nowhere, "approvals", "--database-url", url).stdout
    monkeypatch.setenv("ACP_DATABASE_URL", url)
    assert "Approved by person_remote" in run(nowhere, "approve", str(approval_id), "--yes").stderr
    assert "(by person_remote)" in run(nowhere, "switch", "off", "all").stderr
    assert "person_remote" in run(nowhere, "switches").stdout
    refused = run(nowhere, "switches", "--database-url", world.database.url("acp_reader"))
    assert refused.exit_code == 1
    assert "works as acp_command, and was given acp_reader" in " ".join(refused.stderr.split())


# Another deployment: a URL and a token, and no local cloud


def test_a_deployment_is_answered_by_the_tokens_name(nowhere: Cloud, api: ApiServer, world: World) -> None:
    proposed = world.propose(market_wide_case())
    proposed.judge()
    approver = ("--url", api.url, "--token", api.make_token("grace", "approve"))
    [request] = json.loads(run(nowhere, *approver, "approvals", "--json").stdout)
    assert (request["entity_id"], request["action_sha256"]) == ("AAPL", proposed.approval()[1].hex())
    approved = run(nowhere, *approver, "approve", request["approval_id"], "--yes", "--reason", "it is small")
    assert approved.exit_code == 0, approved.output
    assert "HEDGE: sell 10.00 AAPL at 80.00 USD" in approved.stdout
    assert "Approved by token:grace: it is judged once more" in " ".join(approved.stderr.split())
    assert proposed.rows("SELECT is_given, decided_by, reason FROM approvals WHERE decision_id = %(id)s") == [
        (True, "token:grace", "it is small")
    ]
    again = run(nowhere, *approver, "deny", request["approval_id"])
    assert (again.exit_code, "does not count: it was answered before" in again.stderr) == (1, True)
    assert run(nowhere, *approver, "approvals").stderr == "Nothing waits for an approval.\n"
    unknown = run(nowhere, *approver, "deny", "00000000-0000-4000-8000-000000000000")
    assert (unknown.exit_code, "is no request's id" in " ".join(unknown.stderr.split())) == (2, True)


def test_a_token_that_may_not_approve_is_told_so(nowhere: Cloud, api: ApiServer, world: World) -> None:
    proposed = world.propose(market_wide_case())
    proposed.judge()
    approval_id, _, _ = proposed.approval()
    operator = ("--url", api.url, "--token", api.make_token("kim", "operate"))
    refused = run(nowhere, *operator, "approve", str(approval_id), "--yes")
    assert refused.exit_code == 1
    assert "asks for the scope approve, which the token kim does not have" in " ".join(refused.stderr.split())
    assert proposed.rows("SELECT FROM approvals WHERE decision_id = %(id)s") == []


def test_a_deployment_is_switched_off(nowhere: Cloud, api: ApiServer, world: World) -> None:
    operator = ("--url", api.url, "--token", api.make_token("kim", "operate"))
    assert "(by token:kim)" in run(nowhere, *operator, "switch", "off", "action:HEDGE", "--reason", "drill").stderr
    assert world.propose().judge().reasons == ("switch: action:HEDGE is switched off",)
    elsewhere = run(nowhere, *operator, "switch", "off", "domain:weather")
    assert (elsewhere.exit_code, "or --force" in " ".join(elsewhere.stderr.split())) == (2, True)
    assert run(nowhere, *operator, "switch", "off", "domain:weather", "--force").exit_code == 0
    assert run(nowhere, *operator, "switch", "off", "model:any/name").exit_code == 0
    found = json.loads(run(nowhere, *operator, "switches", "--json").stdout)
    assert {one["scope"]: one["set_by"] for one in found} == dict.fromkeys(
        ("action:HEDGE", "domain:weather", "model:any/name"), "token:kim"
    )


def test_which_way_is_meant_is_said(
    nowhere: Cloud, api: ApiServer, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A deployment named by an option is asked by its token, whatever database the environment names."""
    url = make_person(world, "person_remote")
    assert run(nowhere, *api.options, "approvals", "--by", "ada").exit_code == 2
    assert run(nowhere, *api.options, "approvals", "--database-url", url).exit_code == 2
    monkeypatch.setenv("ACP_DATABASE_URL", url)
    assert "(by token:root)" in run(nowhere, *api.options, "switch", "off", "all").stderr
    assert "(by person_remote)" in run(nowhere, "switch", "on", "all").stderr


# Policies


def stricter(tmp_path: Path) -> str:
    file = tmp_path / "stricter.cedar"
    file.write_text(FinanceGate().policies.replace("notional_ppm <= 50000", "notional_ppm <= 5000"))
    return str(file)


def test_policies_are_checked_without_a_cloud(cloud: RunningCloud, tmp_path: Path) -> None:
    checked = run(cloud, "policy", "check")
    assert (checked.exit_code, checked.stderr) == (0, "finance's policies: 15 policies fit their schema.\n")
    assert run(cloud, "policy", "check", stricter(tmp_path)).exit_code == 0
    broken = tmp_path / "broken.cedar"
    broken.write_text('@id("x") permit (principal, action, resource) when { context.nope };')
    result = run(cloud, "policy", "check", str(broken))
    assert result.exit_code == 1
    assert "attribute `nope` in context" in result.stderr.replace("\n", " ")
    assert run(cloud, "policy", "check", str(tmp_path / "none")).exit_code == 2
    assert run(cloud, "policy", "check", "--domain", "x").exit_code == 2


def test_another_policy_is_tried_on_every_verdict_so_far(cloud: RunningCloud, world: World, tmp_path: Path) -> None:
    released = world.propose()
    assert released.judge().is_released
    world.propose(market_wide_case(), entity="MSFT").judge()
    refused = Case()
    refused.proposal["claims"]["severity"] = 0
    world.propose(refused, entity="IBM").judge()
    own = tmp_path / "own.cedar"
    own.write_text(FinanceGate().policies)
    assert "0 of 2 verdicts would differ.\n1 fell before" in run(cloud, "policy", "test", str(own)).stderr

    result = run(cloud, "policy", "test", stricter(tmp_path))
    assert result.exit_code == 0, result.output
    assert all(len(line) <= 80 for line in result.output.splitlines())
    assert "1 of 2 verdicts would differ; permitted → approval: 1." in result.stderr
    assert str(released.decision_id)[:8] in result.stdout
    told = json.loads(run(cloud, "policy", "test", stricter(tmp_path), "--json").stdout)
    assert (told["recorded"], told["tried"], told["stopped_by"], told["unasked"]) == (2, 2, None, 1)
    assert told["counts"]["moves"] == [{"was": "permitted", "would_be": "needs_approval", "count": 1}]
    [difference] = told["rows"]
    assert (difference["was"], difference["would_be"]) == ("permitted", "needs_approval")
    assert difference["decision_id"] == str(released.decision_id)
    newest = run(cloud, "policy", "test", stricter(tmp_path), "--limit", "1")
    assert "0 of 1 verdicts would differ.\n1 older ones were not tried." in newest.stderr


def test_a_trial_without_time_answers_what_it_has_tried(
    cloud: RunningCloud, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.propose().judge()
    world.propose(market_wide_case(), entity="MSFT").judge()
    left = iter([20.0, 7.0])
    monkeypatch.setattr(FakeContext, "get_remaining_time_in_millis", lambda _: round(next(left) * 1000))
    result = run(cloud, "policy", "test", stricter(tmp_path), "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert (told["recorded"], told["tried"], told["stopped_by"]) == (2, 1, "time")
    assert told["counts"]["same"] + told["counts"]["different"] == 1
    monkeypatch.setattr(FakeContext, "get_remaining_time_in_millis", lambda _: 0)
    told = json.loads(run(cloud, "policy", "test", stricter(tmp_path), "--json").stdout)
    assert (told["tried"], told["stopped_by"], told["rows"]) == (0, "time", [])
    assert "There was no time for 2 older ones.\n" in run(cloud, "policy", "test", stricter(tmp_path)).stderr


def test_a_recorded_verdict_is_what_its_policies_say_again(cloud: RunningCloud, world: World, tmp_path: Path) -> None:
    """An approved release counts as approved when it is judged again."""
    proposed = world.propose(market_wide_case(quantity_micros=20 * MILLION))
    proposed.judge()
    [request] = json.loads(run(cloud, "approvals", "--json").stdout)
    assert run(cloud, "approve", request["approval_id"], "--yes").exit_code == 0
    proposed.move("awaiting_approval", "approved")
    assert proposed.judge(nth=1).is_released
    file = tmp_path / "nothing.cedar"
    file.write_text('@id("none") forbid (principal, action, resource);')
    told = json.loads(run(cloud, "policy", "test", str(file), "--json").stdout)
    assert [(one["recorded"], one["was"], one["would_be"]) for one in told["rows"]] == [
        ("permitted", "permitted", "refused"),
        ("needs_approval", "needs_approval", "refused"),
    ]
