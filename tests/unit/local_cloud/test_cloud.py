from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from botocore.exceptions import WaiterError
from rich.console import Console

from local_cloud import cloud as cloud_module
from local_cloud import deployment, queues
from local_cloud.cloud import Cloud, UpOptions
from local_cloud.emulators.emulator import Emulator
from local_cloud.errors import AcpError
from local_cloud.progress import Progress
from local_cloud.queues import QueueDepth
from local_cloud.run_state import Deployment, RunState
from local_cloud.workspace import Workspace

if TYPE_CHECKING:
    from pathlib import Path

DEPLOYED = Deployment(held_by="it", template="", code="", outputs={}, environ={})


class FakeEmulator(Emulator):
    """An emulator that runs where a test says."""

    running: set[str]

    def prepare(self) -> None: ...

    def endpoint(self, asked: str | None, current: str | None) -> str:
        return asked or current or f"http://{self.name}"

    def start(self, endpoint: str) -> None: ...

    def wait_until_ready(self, endpoint: str) -> None: ...

    def is_there(self, endpoint: str) -> bool:
        return endpoint in self.running

    def holder(self, endpoint: str, stack: str) -> str | None:
        return "it" if endpoint in self.running else None

    def stop(self) -> None:
        self.running.discard(f"http://{self.name}")

    def log_tail(self) -> str:
        return ""


class World:
    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.running: set[str] = set()
        self.removed: list[tuple[str, str]] = []
        self.waiting = 0
        kinds = {"one": False, "two": False, "external": True}
        emulators = {
            name: type(
                name, (FakeEmulator,), {"name": name, "title": name, "outlives_us": outlives, "running": self.running}
            )
            for name, outlives in kinds.items()
        }
        monkeypatch.setattr(cloud_module, "EMULATORS", emulators)
        monkeypatch.setattr(queues, "queue_depths", lambda *_: [QueueDepth("a", self.waiting, 0)])
        monkeypatch.setattr(deployment, "remove", lambda aws, stack: self.removed.append((aws.endpoint, stack)))
        self.console = Console(record=True, width=200)
        self.workspace = Workspace(tmp_path, tmp_path, tmp_path / "state")
        self.run = RunState(cloud="one", endpoint="http://one", deployment=DEPLOYED, stack_is_ours=True)

    def settle(self, options: UpOptions, *, endpoint_url: str | None = None) -> str:
        """Settles the emulator; returns what was printed meanwhile."""
        Cloud(self.workspace, endpoint_url)._settle_emulator(self.run, options, Progress(self.console))
        return self.console.export_text()


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    world = World(tmp_path, monkeypatch)
    world.running.add("http://one")
    return world


def test_the_running_cloud_is_kept_by_default(world: World) -> None:
    assert world.settle(UpOptions(), endpoint_url="http://somewhere") == ""
    assert (world.run.cloud, world.run.endpoint, world.run.deployment) == ("one", "http://one", DEPLOYED)
    assert world.running == {"http://one"}


def test_an_ended_emulator_has_lost_its_stack(world: World) -> None:
    world.running.clear()
    world.settle(UpOptions())
    assert world.run.deployment is None
    assert not world.run.stack_is_ours


def test_switching_clouds_says_what_is_lost_with_the_old_one(world: World) -> None:
    world.waiting = 3
    said = world.settle(UpOptions(cloud="two"))
    assert "Stopping one, for another cloud takes its place: 3 messages that waited in its queues go with it" in said
    assert (world.run.cloud, world.run.endpoint, world.run.deployment) == ("two", "http://two", None)
    assert world.running == set()
    assert world.removed == []


def test_an_external_cloud_loses_our_stack_and_keeps_running(world: World) -> None:
    world.run = RunState(cloud="external", endpoint="http://theirs", deployment=DEPLOYED, stack_is_ours=True)
    world.running.add("http://theirs")
    said = world.settle(UpOptions(cloud="one"))
    assert "Deleting the stack ai-control-plane on external" in said
    assert world.removed == [("http://theirs", "ai-control-plane")]
    assert "http://theirs" in world.running


def test_a_stack_that_is_not_ours_is_left_alone(world: World) -> None:
    world.run = RunState(cloud="external", endpoint="http://theirs", stack_is_ours=False)
    world.running.add("http://theirs")
    world.settle(UpOptions(cloud="one"))
    assert world.removed == []


def test_a_silent_external_cloud_is_named_with_what_remains_there(world: World) -> None:
    world.run = RunState(cloud="external", endpoint="http://theirs", deployment=DEPLOYED, stack_is_ours=True)
    said = world.settle(UpOptions(cloud="one"))
    assert "http://theirs does not answer: if it kept the stack ai-control-plane, delete it there." in said


@pytest.mark.parametrize("keep", [True, False])
def test_down_goes_on_and_reports_a_stack_it_cannot_delete(
    world: World, monkeypatch: pytest.MonkeyPatch, keep: bool
) -> None:
    world.run = RunState(cloud="external", endpoint="http://theirs", deployment=DEPLOYED, stack_is_ours=True)
    world.run.save(world.workspace)
    world.running.add("http://theirs")

    def refuse(*_: object) -> None:
        raise WaiterError("StackDeleteComplete", "DELETE_FAILED", {})

    monkeypatch.setattr(deployment, "remove", refuse)
    with pytest.raises(AcpError, match="The stack ai-control-plane at http://theirs could not be deleted"):
        Cloud(world.workspace).down(Progress(world.console), keep=keep)
    assert world.running == {"http://theirs"}, "what is ours is stopped"
    assert world.workspace.state.exists() == keep


def test_the_endpoint_variable_counts_only_if_a_cloud_is_named(world: World) -> None:
    world.settle(UpOptions(cloud="external"), endpoint_url="http://theirs")
    assert (world.run.cloud, world.run.endpoint) == ("external", "http://theirs")
    world.running.add("http://theirs")
    world.settle(UpOptions(), endpoint_url="http://elsewhere")
    assert world.run.endpoint == "http://theirs"


def test_renaming_the_stack_deletes_the_old_one_only(world: World) -> None:
    world.settle(UpOptions(stack="another"))
    assert world.removed == [("http://one", "ai-control-plane")]
    assert world.running == {"http://one"}
    assert (world.run.stack, world.run.deployment) == ("another", None)
