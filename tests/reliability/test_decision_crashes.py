"""Whoever works on a decision is killed, at every point and in every state: none is lost, nothing is done twice."""

import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
from tests.conftest import PASSWORD, TEMPLATE
from tests.reliability.decision_host import SCENARIOS, CrashWorld, crash_world

from control_plane.decisions.audit import audit
from control_plane.decisions.record import load
from control_plane.decisions.replay import replay
from local_cloud.postgres import PostgresServer

RESUMED_WITHIN = 200
"""Seconds for all of them, one after another, on a busy machine; what is stuck waits for a call's 900."""


@dataclass(frozen=True)
class Figures:
    """What the kills of one run cost."""

    points: int
    lost: int
    doubled: int
    extra_calls: int
    seconds: float


@pytest.fixture
def killed_world(postgres: PostgresServer, tmp_path: Path) -> Iterator[Callable[[], "Killed"]]:
    postgres._wished_port = postgres.port  # which a restart keeps
    name = f"killed_{tmp_path.name[-1]}"
    # A connection each time: a restart ends them.
    with psycopg.connect(postgres.url(), autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name} TEMPLATE {TEMPLATE} OWNER acp_owner".encode())
    yield lambda: Killed(postgres, name, tmp_path)
    with psycopg.connect(postgres.url(), autocommit=True) as admin:
        admin.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


class Killed:
    """Decisions whose functions were killed, each at another point."""

    def __init__(self, server: PostgresServer, name: str, folder: Path) -> None:
        self.server, self.folder = server, folder
        self.url = server.url("ROLE", name, PASSWORD)
        self.labels: dict[str, list[str]] = {}

    def kill_all(self) -> None:
        known: list[str] = []
        for scenario in SCENARIOS:
            found = subprocess.run(
                [
                    sys.executable,
                    "-m",
                    "tests.reliability.decision_host",
                    self.url,
                    scenario,
                    str(self.folder),
                    json.dumps(known),
                ],
                cwd=Path(__file__).parents[2],
                check=True,
                stdout=subprocess.PIPE,
                text=True,
            )
            self.labels[scenario] = json.loads(found.stdout.splitlines()[-1])  # the engine logs before it
            known += self.labels[scenario]

    def recover(self) -> float:
        """Delivers what was not delivered, and fires the timers, until all is decided; returns how long that took."""
        world = crash_world(self.url, self.folder)
        delivered = set((self.folder / "delivered").read_text().splitlines())
        for number, topic, event_id in world.rows("SELECT id, topic, event_id FROM outbox"):
            if f"{event_id} {topic}" in delivered:
                world._seen.add(number)
        began = time.monotonic()
        world.run(times=1)
        while world.help_on_all("true") or world.wake():
            assert time.monotonic() < began + RESUMED_WITHIN, _still_open(world)
            world.wake()
            world.run(times=1)
            time.sleep(0.1)
        world.run(times=1)
        seconds = time.monotonic() - began
        world.close()
        return seconds

    def figures(self, seconds: float) -> Figures:
        world = crash_world(self.url, self.folder)
        records = {record.decision.entity_id: record for record in world.records()}
        wanted = {f"{scenario}-{at}": SCENARIOS[scenario][1] for scenario, at in self.kills()}
        assert {entity: record.decision.state for entity, record in records.items()} == wanted
        rows = world.rows(
            "SELECT entity_id FROM actions JOIN executions USING (action_id) JOIN decisions USING (decision_id)"
        )
        executed = Counter(entity for (entity,) in rows)
        calls = Counter((self.folder / "calls").read_text().splitlines())
        for record in records.values():
            loaded = load(world.decide, record.decision.decision_id)
            assert loaded is not None
            assert replay(loaded, world.deciding["toy"]).difference is None
        # The test itself moved the deadlines of those that were to be abandoned.
        assert {finding.what.split(" ")[0] for finding in audit(world.owner).findings} == {"deadline"}
        extra = Counter(
            {entity: sum(n - 1 for key, n in calls.items() if key.split()[0] == entity) for entity in records}
        )
        assert max(extra.values()) <= 1, "more than one extra call for a kill"
        world.close()
        return Figures(
            points=sum(map(len, self.labels.values())),
            lost=len(wanted)
            - len(records)
            + sum(1 for entity in wanted if entity.startswith("approved") and not executed[entity]),
            doubled=sum(n - 1 for n in executed.values()),
            extra_calls=extra.total(),
            seconds=seconds,
        )

    def kills(self) -> set[tuple[str, str]]:
        entities = (line.split("-") for line in self.entities())
        return {(scenario, at) for scenario, at in entities}

    def entities(self) -> list[str]:
        world = crash_world(self.url, self.folder)
        rows = world.rows("SELECT DISTINCT entity_id FROM events WHERE event_type = 'ANOMALY_DETECTED'")
        world.close()
        return [entity for (entity,) in rows]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("restarts", [False, True], ids=["and it goes on", "and Postgres crashes"])
def test_killed_anywhere_a_decision_is_resumed_and_done_once(
    killed_world: Callable[[], Killed], restarts: bool
) -> None:
    killed = killed_world()
    killed.kill_all()
    if restarts:
        killed.server.stop("immediate")
        killed.server.start()
    figures = killed.figures(killed.recover())
    assert (figures.lost, figures.doubled) == (0, 0), figures
    assert figures.points > 80
    states = {label.partition(":")[0] for labels in killed.labels.values() for label in labels}
    assert states >= {
        "none", "opened", "gathering", "hypothesising", "scoring", "simulating", "proposed", "awaiting_approval",
        "approved", "released", "executed", "observing", "scored", "denied", "expired", "refused", "abandoned",
        "recorded",
    }  # fmt: skip
    sys.stdout.write(f"{figures}\n")


def _still_open(world: CrashWorld) -> str:
    rows = world.rows(
        "SELECT entity_id, state, held_by, lease_until < now(), ARRAY("
        "SELECT concat_ws(' ', agent, attempt, outcome) FROM agent_calls WHERE decision_id = decisions.decision_id"
        ") FROM decisions WHERE closed_at IS NULL"
    )
    return "\n".join(map(str, rows))
