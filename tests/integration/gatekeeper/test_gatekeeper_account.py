"""What a proposal rests on: the account is read as it is, under its lock, and no step can be read in two ways."""

from typing import Any

import pytest
from tests.integration.gatekeeper.world import HELD, Proposed, World, read_json, without
from tests.judgements import AT, ENTITY, MILLION, SERIES, SOURCE, Case, json_bytes

from control_plane.decisions import gatekeeper
from domains.finance.gate import FinanceGate

NOT_SO = "evidence: the account is not what the evidence says, or is no longer"


class Uncooled(FinanceGate):
    """Without the limits that would refuse a second sale anyway."""

    policies = property(lambda _: without("daily_releases", "entity_cool_down"))


@pytest.mark.parametrize("lie", [{"cash_micros": 10**14}, {"others_micros": 10**14}, {"cash_micros": -(10**10)}])
def test_an_account_that_evidence_makes_up_is_refused(world: World, lie: dict[str, int]) -> None:
    case = Case(quantity_micros=100 * MILLION)
    assert world.propose(case, says=lie).judge().reasons == (NOT_SO,)


def test_a_position_that_is_not_held_is_refused(world: World) -> None:
    positions = [{"source": SOURCE, "entity_id": "ZZZ", "value_micros": 48_000 * MILLION}]
    assert world.propose(says={"positions": positions}).judge().reasons == (NOT_SO,)


def test_shares_are_of_the_account_as_it_is(world: World) -> None:
    proposed = world.propose()
    world.owner.execute("UPDATE paper_accounts SET cash_micros = cash_micros - %s", [4_000 * MILLION])
    assert proposed.judge().is_released
    [(request,)] = proposed.rows(
        "SELECT bytes FROM verdicts JOIN artifacts ON sha256 = request_sha256 WHERE decision_id = %(id)s"
    )
    context = read_json(request)["context"]
    assert context["portfolio_micros"] == 96_000 * MILLION
    assert context["notional_ppm"] == 8_334


def test_an_account_that_is_gone_is_refused(world: World) -> None:
    proposed = world.propose()
    world.owner.execute("DELETE FROM paper_positions")
    world.owner.execute("DELETE FROM paper_accounts")
    assert proposed.judge().reasons == ("evidence: there is no such account",)


def test_what_is_executed_between_two_reads_is_counted(world: World) -> None:
    """The client executes one sale after the gate has read the first half of what it counts, whichever that is."""
    world.open_account(held_micros=100 * MILLION, entities=HELD)
    first = world.propose(Case(quantity_micros=60 * MILLION))
    assert first.judge(gate=Uncooled()).is_released

    class Racing(Uncooled):
        def holding(self, connection: Any, judged: Any) -> Any:
            found = super().holding(connection, judged)
            execute(world, first)
            return found

        def releases(self, connection: Any, judged: Any) -> Any:
            found = super().releases(connection, judged)
            execute(world, first)
            return found

    late = world.propose(Case(quantity_micros=60 * MILLION), at=AT.replace(hour=15))
    assert late.judge(gate=Racing()).reasons == ("policy: no policy permits it",)


def execute(world: World, released: Proposed) -> None:
    """Places the order of a released action, once, as its client does."""
    if released.rows("SELECT FROM executions JOIN actions USING (action_id) WHERE decision_id = %(id)s"):
        return
    with world.owner.transaction():
        released.executed()
        world.owner.execute(
            "INSERT INTO paper_orders (action_id, account, source, entity_id, series, side, quantity_micros,"
            " fill_after) SELECT action_id, 'paper', %s, %s, %s, 'sell', %s, %s FROM actions WHERE decision_id = %s",
            [SOURCE, ENTITY, SERIES, released.case.quantity_micros, AT, released.decision_id],
        )


def test_a_revision_committed_while_the_lock_is_awaited_is_seen(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    proposed, lock = world.propose(), gatekeeper.Database.lock_account

    def wait_for_it(present: gatekeeper.Database, domain: str, account: str) -> None:
        lock(present, domain, account)
        world.revise_bar(81.0)

    monkeypatch.setattr(gatekeeper.Database, "lock_account", wait_for_it)
    assert "superseded" in proposed.judge().reasons[0]


# The database refuses what is no JSON: NaN, or two values.
AMBIGUOUS = {
    "a key twice": (b'"problem":null', b'"problem":"x","problem":null', "gives the key 'problem' twice"),
    "beyond a double": (b'"problem":null', b'"problem":null,"x":1e999', "holds 1e999, which is beyond any number"),
    "an invisible text": (b'"problem":null', b'"problem":null,"x":"\\u202e"', "holds a text with"),
}


@pytest.mark.parametrize("name", AMBIGUOUS)
def test_evidence_that_can_be_read_in_two_ways_is_refused(world: World, name: str) -> None:
    case, (old, new, reason) = Case(), AMBIGUOUS[name]
    case.evidence_bytes = json_bytes(case.evidence).replace(old, new)
    (told,) = world.propose(case).judge().reasons
    assert told.startswith("json: step 1, evidence, ")
    assert reason in told


def test_a_simulation_that_can_be_read_in_two_ways_is_refused(world: World) -> None:
    case = Case()
    case.simulation_bytes = json_bytes(case.simulation)[:-1] + b',"options":[]}'
    (told,) = world.propose(case).judge().reasons
    assert "simulation, gives the key 'options' twice" in told


def test_a_mark_that_it_is_superseded_cannot_be_given_twice(world: World) -> None:
    proposed = world.propose()
    world.owner.execute(
        "SELECT append_step(%s, 'joined', 'engine', 0, %s)",
        [proposed.decision_id, b'{"supersedes":true,"supersedes":false}'],
    )
    (told,) = proposed.judge().reasons
    assert "joined, gives the key 'supersedes' twice" in told
