"""The peers that the relay is compared with: installed from locks with hashes, each by a program that is there."""

import json
import re

import pytest

from bench.peering import FUNCTION, SIDES, Peers
from bench.scenarios import ON_DEMAND, SCENARIOS
from local_cloud.workspace import CHECKOUT, Workspace
from supply_chain.locks import read_lock

FOLDER = CHECKOUT / "scripts" / "bench" / "peers"
PEERS = [name for name, side in SIDES.items() if side.to == FUNCTION]
WORKSPACE = Workspace(CHECKOUT, CHECKOUT / ".acp", CHECKOUT / ".acp" / "state")


def test_nothing_is_installed_unless_it_is_asked_for() -> None:
    assert {"peers"} == ON_DEMAND
    assert SCENARIOS.keys() > ON_DEMAND


@pytest.mark.parametrize("name", PEERS)
def test_a_peer_has_a_program(name: str) -> None:
    python = WORKSPACE.python_of("peers")
    command = Peers(python, python.parent, FOLDER).command(name)
    files = [f"{part.removeprefix('bench.peers.')}.py" for part in command if part.startswith("bench.peers.")]
    assert (FOLDER / (files or [command[-1]])[0]).is_file()
    assert command[0].startswith(str(python.parent))


def test_every_package_of_npm_is_locked_by_its_hash() -> None:
    asked = json.loads((FOLDER / "package.json").read_text(encoding="utf-8"))["dependencies"]
    locked = json.loads((FOLDER / "package-lock.json").read_text(encoding="utf-8"))["packages"]
    assert locked.pop("")["dependencies"] == asked
    for name, package in locked.items():
        assert re.fullmatch(r"sha512-\S{88}", package["integrity"]), name
        assert not package.get("hasInstallScript"), name
    for name, version in asked.items():
        assert locked[f"node_modules/{name}"]["version"] == version


def test_the_page_names_the_versions_that_are_locked() -> None:
    page = (CHECKOUT / "docs" / "performance.md").read_text(encoding="utf-8")
    locked = {one.name: one.version for one in read_lock(CHECKOUT / "requirements" / "peers.txt")}
    asked = json.loads((FOLDER / "package.json").read_text(encoding="utf-8"))["dependencies"]
    versions = {name: locked[name] for name in ("pgqueuer", "faststream-outbox")} | {
        "graphile-worker": asked["graphile-worker"]
    }
    for name, version in versions.items():
        assert re.search(rf"\[{name}\]\(\S+\) {re.escape(version)} \|", page), name
