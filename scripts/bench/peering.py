"""The scenario `peers`: messages a second of the relay, of a bare boto3 loop, and of other queues on PostgreSQL."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from bench.figures import Measured, median
from bench.rig import QUERIES, Seed
from bench.turns import drain, rates, rounds_of, timed
from local_cloud import tools
from local_cloud.environ import isolated
from local_cloud.workspace import locked

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from bench.rig import Database, Rig
    from bench.sizes import Sizes
    from local_cloud.workspace import Workspace

QUEUE, NOWHERE, FUNCTION = "to a queue", "to nobody", "to a function in the same process"
"""Where a message goes in the end."""


@dataclass(frozen=True, slots=True)
class Side:
    """One side of the comparison: who, and where its messages go."""

    name: str
    to: str

    @property
    def title(self) -> str:
        """What its figure is called."""
        return f"{self.name}, {self.to}"


SIDES: Final = {
    "relay": Side("relay", QUEUE),
    "bare": Side("bare boto3 loop, no outbox", QUEUE),
    "claiming": Side("relay that sends nothing", NOWHERE),
    "graphile_worker": Side("graphile-worker", FUNCTION),
    "pgqueuer": Side("pgqueuer", FUNCTION),
    "faststream_outbox": Side("faststream-outbox", FUNCTION),
}


@dataclass(frozen=True, slots=True)
class Peers:
    """The peers as installed: an environment of Python with Node.js, and the packages of npm."""

    python: Path
    packages: Path
    folder: Path

    def command(self, name: str) -> list[str]:
        """Returns the command line of a peer's measured program."""
        if name == "graphile_worker":
            return [str(self.python.with_name("node")), str(self.folder / "graphile_worker.mjs")]
        return [str(self.python), "-m", f"bench.peers.{name}_worker"]

    def environ(self, database: Database) -> dict[str, str]:
        """Returns a peer's environment. It imports nothing of the project but how a child reports."""
        return {
            **isolated(os.environ),
            "PEER_DATABASE_URL": database.admin_url,
            "PEER_MESSAGES": QUERIES["pending_bodies"].sql,
            "PEER_PACKAGES": str(self.packages),
            "PYTHONPATH": str(self.folder.parents[1]),
        }


def peers(rig: Rig, sizes: Sizes, say: Callable[[str], object]) -> Measured:
    """Compares the messages a second of the relay, of a bare boto3 loop and of other queues, each in one process.

    Every side has the same messages in a database of its own on the same server, and starts with all of them pending.
    """
    say("installing the peers")
    installed = _install(rig.workspace, say)
    seed = Seed(sizes.events)
    rounds = []
    for number in rounds_of(sizes.rounds):
        one: dict[str, Any] = {}
        for side in SIDES:
            say(f"{number}: {SIDES[side].name}")
            with rig.fresh(seed) as database:
                one[side] = _measured(rig, installed, side, database, sizes.events)
        rounds.append(one)
    figures = [median(SIDES[side].title, rates(rounds, side), "/s") for side in SIDES]
    for side in SIDES:
        micros = [(one[side]["cpu_seconds"] + one[side]["server_cpu_seconds"]) / sizes.events * 1e6 for one in rounds]
        figures.append(median(f"{SIDES[side].name}: processor time of a message, Postgres's too", micros, "µs"))
    return Measured(figures, rounds, {"events": sizes.events})


def _measured(rig: Rig, installed: Peers, side: str, database: Database, events: int) -> dict[str, Any]:
    if side in {"relay", "claiming"}:
        return drain(rig, database, events, publish=side == "relay")
    if side == "bare":
        return timed(rig, rig.child("bare_publish", database), events)
    return timed(rig, rig.peer(side, installed.command(side), installed.environ(database)), events)


def _install(workspace: Workspace, say: Callable[[str], object]) -> Peers:
    """Installs what the locks name, unless it is there already. Raises ToolError."""
    folder = workspace.checkout / "scripts" / "bench" / "peers"
    packages = workspace.venvs / "peers" / "npm"
    with locked(workspace.venvs, "bench", on_wait=say):
        python = tools.environment(workspace, "peers", "requirements/peers.txt")
        lock, stamp = (folder / "package-lock.json").read_text(encoding="utf-8"), packages / ".lock"
        if not stamp.exists() or stamp.read_text(encoding="utf-8") != lock:
            packages.mkdir(exist_ok=True)
            for name in ("package.json", "package-lock.json"):
                shutil.copy(folder / name, packages)
            # Its own scripts are not run: none of these packages needs them.
            tools.run(
                workspace,
                [
                    str(python.with_name("npm")),
                    "ci",
                    "--prefix",
                    str(packages),
                    "--ignore-scripts",
                    "--no-audit",
                    "--no-fund",
                ],
                log="npm",
                env={**os.environ, "PATH": f"{python.parent}{os.pathsep}{os.environ.get('PATH', '')}"},
            )
            stamp.write_text(lock, encoding="utf-8")
    return Peers(python, packages, folder)
