"""Decides, and is killed: a process of its own that forks one child per decision, each to be killed at another point.

``python -m tests.reliability.decision_host URL SCENARIO FOLDER LABELS`` prints, as JSON, the points that its children
were killed at. A point is before a transaction, before its commit, after its commit, and on either side of a call.
Nothing in production knows of them: the connections and the agents are wrapped here. Labels are points to be left out.
"""

import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

from tests.conftest import TestDatabase
from tests.integration.decisions import toy
from tests.integration.decisions.world import World, anomaly

from control_plane.decisions.steps import EnginePolicy
from control_plane.model.contract import Event

WRITES = (
    "claim_decision(", "leave_decision(", "advance_decision(", "set_timer(", "answer_call(", "claim_call(",
    "end_lost_calls(", "expire_action(", "insert_decision_events(",
)  # fmt: skip
"""Statements that are a transaction of their own, where they are not within another."""
LEASE_SECONDS = 2.0
SCENARIOS = {
    # name: the verdict, and where the decision ends
    "approved": ("needs_approval", "scored"),
    "denied": ("needs_approval", "scored"),
    "expired": ("needs_approval", "scored"),
    "refused": ("refused", "scored"),
    "abandoned": (None, "abandoned"),
    "recorded": ("permitted", "recorded"),
}


class CrashWorld(World):
    """Is told what to do by the entity of each decision, ``scenario-number``; and notes every call of an agent."""

    folder: Path
    answering: str = ""
    """The entity of the decision whose agent is called."""
    point: Callable[[str], None] = staticmethod(lambda moment: None)

    def judge(self, decision_id: UUID, nth: int) -> None:
        verdict, _ = SCENARIOS[self.scenario_of(decision_id)]
        if verdict is not None:  # None: the gatekeeper is away
            self.verdict = verdict
            self.approval_seconds = 0.2 if self.scenario_of(decision_id) == "expired" else 300
            super().judge(decision_id, nth)

    def claim(self, call_id: UUID, lease_seconds: float = 1) -> Any:
        if claimed := super().claim(call_id, lease_seconds):
            self.answering = claimed[6]
        return claimed

    def deliver(self, topic: str, event: Event) -> None:
        super().deliver(topic, event)
        self.note("delivered", f"{event.event_id} {topic}")

    def note(self, what: str, line: str) -> None:
        """Written at once, in one piece, by whichever process."""
        descriptor = os.open(self.folder / what, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(descriptor, f"{line}\n".encode())
        os.close(descriptor)

    def scenario_of(self, decision_id: UUID) -> str:
        ((entity,),) = self.rows("SELECT entity_id FROM decisions WHERE decision_id = %s", decision_id)
        return str(entity).partition("-")[0]

    def help_on_all(self, which: str, *given: Any) -> int:
        """Does what people and the clock do for open decisions; returns how many are open."""
        rows = self.rows(
            "SELECT decision_id, split_part(entity_id, '-', 1), state FROM decisions "
            f"WHERE closed_at IS NULL AND {which}",
            *given,
        )
        for decision_id, scenario, state in rows:
            if scenario in ("approved", "denied") and state == "awaiting_approval":
                self.approve(decision_id, gives=scenario == "approved")
            if scenario == "abandoned" and state == "proposed":
                for statement in (
                    "UPDATE decisions SET deadline = clock_timestamp() WHERE decision_id = %s",
                    "UPDATE timers SET due_at = clock_timestamp() WHERE kind = 'deadline' AND decision_id = %s",
                ):
                    self.owner.execute(statement, [decision_id])
        return len(rows)


def crash_world(url: str, folder: Path) -> CrashWorld:
    """The world of a database whose URL has ``ROLE`` in the place of the role."""
    database = TestDatabase("", url.replace("ROLE", "acp_test"), url.replace("ROLE", "acp_owner"), "")
    plug_ins = toy.deciding()
    CrashWorld.folder = folder
    world = CrashWorld(database, plug_ins, EnginePolicy(lease_seconds=LEASE_SECONDS, call_wait_seconds=900))
    for agent in plug_ins["toy"].agents:
        _watch(agent, world)
    return world


def _watch(agent: Any, world: CrashWorld) -> None:
    call: Callable[..., Any] = agent.call

    def watched(request: bytes, **options: Any) -> Any:
        world.point("before the agent's call")
        world.note("calls", f"{world.answering} {agent.name}")
        answered = call(request, **options)
        world.point("after the agent's call")
        return answered

    agent.call = watched


class Killer:
    """Counts points, and kills the process at one of them."""

    def __init__(self, world: CrashWorld, at: int) -> None:
        self.labels: list[str] = []
        self._world, self._at = world, at

    def __call__(self, moment: str) -> None:
        row = self._world.owner.execute(
            "SELECT state FROM decisions WHERE entity_id = %s", [os.environ["ACP_ENTITY"]]
        ).fetchone()
        self.labels.append(f"{row[0] if row else 'none'}: {moment}")
        if len(self.labels) == self._at:
            os.kill(os.getpid(), signal.SIGKILL)


class Deadly:
    """A connection on whose transactions the process may be killed."""

    def __init__(self, connection: Any, point: Callable[[str], None], role: str) -> None:
        self._connection, self._point, self._role, self._depth = connection, point, role, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        self._point(f"before a transaction of {self._role}")
        with self._connection.transaction():
            self._depth += 1
            try:
                yield
            finally:
                self._depth -= 1
            self._point(f"before the commit of {self._role}")
        self._point(f"after the commit of {self._role}")

    def execute(self, query: Any, *given: Any, **options: Any) -> Any:
        write = next((name for name in WRITES if name in str(query)), None)
        if write is None or self._depth:
            return self._connection.execute(query, *given, **options)
        self._point(f"before {write[:-1]}")
        result = self._connection.execute(query, *given, **options)
        self._point(f"after {write[:-1]}")
        return result


def decide(url: str, scenario: str, folder: Path, at: int) -> list[str]:
    """Decides one decision to its end, unless it is killed; returns the points that it passed."""
    entity = os.environ["ACP_ENTITY"] = f"{scenario}-{at}"
    world = crash_world(url, folder)
    killer = Killer(world, at)
    world.detect(anomaly(entity=entity, at=toy_instant(scenario)))
    world.as_role.close()
    world.as_role.wrap = lambda role, connection: Deadly(connection, killer, role.removeprefix("acp_"))
    world.point = killer
    new_messages = world.new_messages

    def of_this_decision() -> list[tuple[str, str]]:
        return [(topic, text) for topic, text in new_messages() if json.loads(text)["entity_id"] == entity]

    world.new_messages = of_this_decision  # type: ignore[method-assign]
    for _ in range(60):
        world.run(times=1)
        if world.help_on_all("entity_id = %s", entity) == 0:
            break
        time.sleep(0.05)
        world.wake()
    world.close()
    return killer.labels


def toy_instant(scenario: str) -> datetime:
    return datetime.now(UTC) - (timedelta(days=2) if scenario == "recorded" else timedelta())


def fork(work: Callable[[], object]) -> tuple[int, bytes]:
    """Runs work in a child; returns how it ended, and what it returned as JSON."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        try:
            os.write(writer, json.dumps(work()).encode())
        except BaseException:  # noqa: BLE001 - a fork must not return into its parent's code
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        said = stream.read()
    return os.waitpid(child, 0)[1], said


def main(url: str, scenario: str, folder: Path, known: list[str]) -> None:
    status, said = fork(lambda: decide(url, scenario, folder, 0))
    assert status == 0, "it could not be decided at all"
    killed: list[str] = []
    for at, label in enumerate(json.loads(said), start=1):
        if label in known or (label in killed and killed.count(label) >= 2):
            continue
        status, _ = fork(lambda at=at: decide(url, scenario, folder, at))  # type: ignore[misc]
        assert status == signal.SIGKILL, f"{label} was not reached again"
        killed.append(label)
    print(json.dumps(killed))  # noqa: T201 - its answer


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), json.loads(sys.argv[4]))
