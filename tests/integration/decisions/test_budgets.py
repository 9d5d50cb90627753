"""What agents cost never exceeds the limits, whatever happens to whoever spends it.

The ledger of the model endpoint is the judge: it holds what a provider would charge, told or not.
"""

import random
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID

import pytest
from psycopg import Connection
from tests.conftest import TestDatabase
from tests.integration.decisions.agent_world import (
    MICROS,
    REQUEST,
    ScriptedAgent,
    call_of,
    intend,
    model_agent,
    open_decision,
    rows,
    run,
    value,
)

from control_plane.decisions.agent_calls import run_call
from control_plane.decisions.models.model_agent import ModelAgent
from control_plane.platform.conflicts import retry_conflicts
from control_plane.platform.database import connect
from model_endpoint import ModelEndpoint, serve

WORKERS = 64
ROUNDS = 4
HONEST = ("right", "lie", "wrong_schema", "no_usage", "close", "cut_off", "error", "throttled", "out_of_tokens", "huge")
"""Behaviours of a provider that charges no more than a request can cost."""


@pytest.fixture(scope="module")
def running() -> Iterator[ModelEndpoint]:
    with serve(input_micros=MICROS.input_micros, output_micros=MICROS.output_micros) as endpoint:
        yield endpoint


@pytest.fixture
def endpoint(running: ModelEndpoint) -> ModelEndpoint:
    running.reset()
    return running


class Killed(BaseException):
    """Raised in a worker's place where its process would have been killed."""


def call_or_die(connection: Connection[Any], agent: ModelAgent, call_id: UUID, dies: str) -> None:
    """Runs a call; ``dies`` says where its process is killed: before it, after the model answered, or never."""
    if dies == "before":
        return
    connects = iter([connection, connection])

    def connection_until_killed() -> Connection[Any]:
        if dies == "after" and next(connects, None) is None:
            raise Killed
        return connection

    try:
        run_call(connection_until_killed, {agent.name: agent}, call_id, claimant="worker", lease_seconds=60)
    except Killed:
        """Nobody will answer this call."""


def test_sixty_four_workers_spend_no_more_than_a_day_allows(
    owner: Connection[Any], database: TestDatabase, endpoint: ModelEndpoint
) -> None:
    agent = model_agent(endpoint)
    worst = agent.most_micros(repr(REQUEST).replace("'", '"').encode())
    limit = worst * WORKERS  # a quarter of what all ask for at once, and less than the honest ones spend in all
    randomly = random.Random(20260105)
    deaths = [randomly.choices(["never", "before", "after"], [2, 1, 1], k=ROUNDS) for _ in range(WORKERS)]
    endpoint.behave_in_turn(*randomly.choices(HONEST, k=WORKERS * ROUNDS * 3))
    together = threading.Barrier(WORKERS)
    overspent: list[int] = []

    def work(number: int) -> Counter[str]:
        seen: Counter[str] = Counter()
        with connect(database.app_url, application_name="worker") as connection:
            of = open_decision(connection)
            together.wait(60)
            for dies in deaths[number]:
                intended = retry_conflicts(
                    lambda: intend(connection, agent, of=of, day_limit=limit, scope="agents", seconds=300)
                )
                seen["intended" if intended else "refused"] += 1
                if intended is not None:
                    call_or_die(connection, agent, intended.call_id, dies)
                budget = rows(connection, "SELECT * FROM budgets WHERE scope = 'agents'")[0]
                overspent.append(budget["spent_micros"] + budget["reserved_micros"] - limit)
        return seen

    with ThreadPoolExecutor(WORKERS) as pool:
        seen = sum(pool.map(work, range(WORKERS)), Counter())
    assert seen["refused"] > 0, "the limit was never reached"
    assert seen["intended"] >= WORKERS
    assert max(overspent) <= 0
    assert 0 < endpoint.spent_micros() <= limit
    # Timers come for those who never answered.
    owner.execute(
        "UPDATE agent_calls SET deadline = clock_timestamp(),"
        " lease_until = CASE WHEN lease_until IS NOT NULL THEN clock_timestamp() END WHERE outcome IS NULL"
    )
    open_calls = rows(owner, "SELECT DISTINCT decision_id FROM agent_calls WHERE outcome IS NULL")
    assert open_calls, "nobody was killed"
    for call in open_calls:
        fence = value(owner, "SELECT fence FROM decisions WHERE decision_id = %s", [call["decision_id"]])
        value(owner, "SELECT end_lost_calls(%s, %s)", [call["decision_id"], fence])
    budget = rows(owner, "SELECT * FROM budgets WHERE scope = 'agents'")[0]
    assert (budget["reserved_micros"], budget["overrun_micros"]) == (0, 0)
    assert endpoint.spent_micros() <= budget["spent_micros"] <= limit
    outcomes = {row["outcome"] for row in rows(owner, "SELECT DISTINCT outcome FROM agent_calls")}
    assert outcomes >= {"answered", "failed", "unknown", "never_started"}
    assert budget["spent_micros"] == value(owner, "SELECT sum(cost_micros) FROM agent_calls")
    unknown = rows(owner, "SELECT cost_micros, reserved_micros FROM agent_calls WHERE outcome = 'unknown'")
    assert all(call["cost_micros"] == call["reserved_micros"] for call in unknown)


def test_calls_of_one_decision_stay_within_its_own_budget(database: TestDatabase, app: Connection[Any]) -> None:
    agent = ScriptedAgent(micros=30)
    of = open_decision(app, budget=100)

    def work(attempt: int) -> bool:
        with connect(database.app_url, application_name="worker") as connection:
            return intend(connection, agent, of=of, attempt=attempt) is not None

    with ThreadPoolExecutor(5) as pool:
        assert sum(pool.map(work, range(1, 6))) == 3
    assert value(app, "SELECT sum(micros) FROM budget_reservations") == 90


def test_what_was_not_spent_is_there_again(app: Connection[Any]) -> None:
    of = open_decision(app, budget=100)
    agent = ScriptedAgent(micros=100)
    run(app, agent, intend(app, agent, of=of))  # a deterministic answer costs nothing
    assert intend(app, agent, of=of) is not None
    assert intend(app, agent, of=of) is None


def test_a_limit_that_falls_lets_nothing_new_in(app: Connection[Any]) -> None:
    agent = ScriptedAgent(micros=60)
    assert intend(app, agent, scope="agents", day_limit=100) is not None
    assert intend(app, agent, scope="agents", day_limit=100) is None
    assert intend(app, agent, scope="agents", day_limit=50) is None
    assert intend(app, agent, scope="agents", day_limit=120) is not None


def test_an_overrun_is_recorded_and_stops_the_model(app: Connection[Any], endpoint: ModelEndpoint) -> None:
    endpoint.behave("much_usage")
    agent = model_agent(endpoint)
    limit = 10 * agent.most_micros(b'{"bar":{}}')
    intended = intend(app, agent, scope="agents", day_limit=limit, request=b'{"bar":{}}')
    run(app, agent, intended)
    call = call_of(app, intended)
    budget = rows(app, "SELECT * FROM budgets")[0]
    assert budget["spent_micros"] == call["cost_micros"] == endpoint.spent_micros() > limit
    assert budget["overrun_micros"] == call["cost_micros"] - call["reserved_micros"]
    assert value(app, "SELECT model_is_off('stand-in')")
    assert rows(app, "SELECT is_off, set_by FROM switch_changes") == [{"is_off": True, "set_by": "control plane"}]
    assert intend(app, agent, scope="agents", day_limit=limit) is None, "the day's budget is gone"
