"""Scenarios of deciding: what a decision takes beside its agents, and how many are made in a second."""

from __future__ import annotations

import json
from collections import Counter
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Final

import psycopg

from bench.figures import Bar, Measured, median, percentile
from bench.rig import QUERIES, BenchError, Seed, deployed_settings
from bench.turns import race, rounds_of
from domains.finance.deciding.options import ACCOUNT
from local_cloud.roles import ACTION, AGENT, DECIDE, DETECT, GATEKEEPER

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from bench.rig import Child, Database, Rig
    from bench.sizes import Sizes

ENTITIES: Final = ("E1", "E2", "E3", "E4", "E5")
"""As many as a deployment has symbols by default."""
_ROLES: Final = {"decision": DECIDE, "agent": AGENT, "gatekeeper": GATEKEEPER, "action": ACTION, "detector": DETECT}
_AT_ONCE: Final = 10
"""Anomalies that a worker is handed together under load, as a queue delivers them."""
_WARM_UP: Final = 5
"""Decisions of each worker before the clock starts."""


def deciding(rig: Rig, sizes: Sizes, say: Callable[[str], object]) -> Measured:
    """Measures what a decision takes beside its agents' own time, one at a time: from its anomaly to its last message.

    That is until it is held, or judged and, where that is permitted, executed. Relay and queues are left out.
    """
    rounds: list[dict[str, Any]] = []
    for number in rounds_of(sizes.rounds):
        say(f"{number}: {sizes.single_decisions} decisions, one at a time")
        reports, _ = _decide(rig, sizes.single_decisions, [ENTITIES], at_once=1)
        rounds.append({"worker": reports[0]})
    title = "a decision beside its agents' time"
    by_round = [one["worker"]["overheads_ms"] for one in rounds]
    handed_over = [sum(one["worker"]["messages"].values()) / one["worker"]["decisions"] for one in rounds]
    python, postgres = _processor_ms([[one["worker"]] for one in rounds])
    return Measured(
        [
            median(f"{title}, p50", [percentile(one, 50) for one in by_round], "ms", Bar("≤", 150)),
            median(f"{title}, p99", [percentile(one, 99) for one in by_round], "ms", Bar("≤", 500)),
            median("messages of a decision", handed_over, ""),
            median("processor time of a decision, Python", python, "ms"),
            median("processor time of a decision, Postgres", postgres, "ms"),
        ],
        rounds,
        {"decisions": sizes.single_decisions, "entities": len(ENTITIES)},
    )


def decisions(rig: Rig, sizes: Sizes, say: Callable[[str], object]) -> Measured:
    """Measures how many decisions five workers make in a second, as many as the template lets run at once."""
    rounds: list[dict[str, Any]] = []
    for number in rounds_of(sizes.rounds):
        say(f"{number}: {sizes.decisions} decisions, {len(ENTITIES)} workers")
        reports, seconds = _decide(rig, sizes.decisions, [[entity] for entity in ENTITIES], at_once=_AT_ONCE)
        decided = sum(report["decisions"] for report in reports)
        rounds.append({"workers": {"seconds": seconds, "decisions": decided, "reports": reports}})
    rates = [one["workers"]["decisions"] / one["workers"]["seconds"] for one in rounds]
    python, postgres = _processor_ms([one["workers"]["reports"] for one in rounds])
    return Measured(
        [
            median("decisions, 5 workers", rates, "/s", Bar("≥", 50)),
            median("processor time of a decision, Python, 5 workers", python, "ms"),
            median("processor time of a decision, Postgres, 5 workers", postgres, "ms"),
        ],
        rounds,
        {"decisions": sizes.decisions, "workers": len(ENTITIES), "at_once": _AT_ONCE},
    )


def _processor_ms(rounds: Sequence[Sequence[Mapping[str, Any]]]) -> tuple[list[float], list[float]]:
    """Returns what a decision took of the processor in each round: of the workers, and of all of Postgres."""
    made = [sum(report["decisions"] for report in reports) for reports in rounds]
    python = [sum(report["cpu_seconds"] for report in reports) for reports in rounds]
    postgres = [reports[0]["server_cpu_seconds"] for reports in rounds]  # each report has that of all
    return (
        [1000 * seconds / number for seconds, number in zip(python, made, strict=True)],
        [1000 * seconds / number for seconds, number in zip(postgres, made, strict=True)],
    )


def _decide(
    rig: Rig, wanted: int, shares: Sequence[Sequence[str]], *, at_once: int
) -> tuple[list[dict[str, Any]], float]:
    """Lets one worker for each share of the entities decide; returns their reports, and how long all took."""
    warm_up = _WARM_UP * len(shares)
    with rig.fresh(Seed(0)) as database, ExitStack() as stack:
        _make_market(database, wanted + warm_up)
        workers = [stack.enter_context(_worker(rig, database, share, at_once)) for share in shares]
        reports, seconds = race(rig, workers)
    states: Counter[str] = Counter()
    for report in reports:
        states.update(report["states"])
    if (decided := sum(states.values())) != wanted + warm_up:
        msg = f"There are {decided:,} decisions, not {wanted + warm_up:,}."
        raise BenchError(msg, details=str(dict(states)))
    if left := states.keys() - {"observing", "awaiting_approval", "scored"}:
        msg = f"{sum(states[state] for state in left):,} decisions were not carried through."
        raise BenchError(msg, details=str(dict(states)))
    return reports, seconds


def _make_market(database: Database, anomalies: int) -> None:
    with psycopg.connect(database.admin_url, autocommit=True) as connection:
        connection.execute(QUERIES["make_market"].sql, {"entities": list(ENTITIES), "anomalies": anomalies})
        connection.execute(QUERIES["make_account"].sql, {"entities": list(ENTITIES), "account": ACCOUNT})
        # A table that was analysed while it was empty would be read from end to end once it has rows.
        connection.execute("ANALYZE detector_bars, paper_accounts, paper_positions")


def _worker(rig: Rig, database: Database, entities: Sequence[str], at_once: int) -> Child:
    functions = {
        name: deployed_settings(rig.workspace, f"{name.title()}Function") for name in _ROLES if name != "detector"
    }
    urls: Mapping[str, str] = {name: rig.url_as(role, database) for name, role in _ROLES.items()}
    return rig.child(
        "measured_deciding",
        database,
        options={"functions": functions, "entities": list(entities), "at_once": at_once, "warm_up": _WARM_UP},
        more_environ={
            "BENCH_DATABASE_URLS": json.dumps({**urls, "admin": database.admin_url}),
            "BENCH_FUNCTIONS": str(rig.workspace.checkout / "functions"),
        },
    )
