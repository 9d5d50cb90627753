from __future__ import annotations

import stat
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from local_cloud.errors import AcpError, BusyError
from local_cloud.workspace import CHECKOUT, Workspace, locked, read_json, write_private

if TYPE_CHECKING:
    from pathlib import Path

HOLDER = """
import pathlib, sys
from local_cloud.workspace import locked
with locked(pathlib.Path(sys.argv[1]), "up", on_wait=print):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_everything_lies_below_the_checkout_unless_told_otherwise() -> None:
    workspace = Workspace.from_environ({})
    assert workspace.home == CHECKOUT / ".acp"
    assert workspace.state == CHECKOUT / ".acp" / "state"
    assert (CHECKOUT / "pyproject.toml").exists()


def test_an_empty_variable_counts_as_absent() -> None:
    assert Workspace.from_environ({"ACP_HOME": "", "ACP_STATE": ""}) == Workspace.from_environ({})


def test_a_relative_home_starts_at_the_checkout(tmp_path: Path) -> None:
    workspace = Workspace.from_environ({"ACP_HOME": "elsewhere", "ACP_STATE": str(tmp_path)})
    assert workspace.home == CHECKOUT / "elsewhere"
    assert workspace.state == tmp_path


def test_a_private_file_stays_private_when_replaced(tmp_path: Path) -> None:
    path = tmp_path / "new" / "secret.json"
    for text in ("{}", '{"a": 1}'):
        write_private(path, text)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert read_json(path) == {"a": 1}
    assert [entry.name for entry in path.parent.iterdir()] == ["secret.json"]


def test_a_missing_file_is_none_a_damaged_one_an_error(tmp_path: Path) -> None:
    assert read_json(tmp_path / "none.json") is None
    for damaged in ("", "{", "[]"):
        (tmp_path / "damaged.json").write_text(damaged)
        with pytest.raises(AcpError, match="acp down"):
            read_json(tmp_path / "damaged.json")


def test_a_second_command_learns_the_locks_holder_and_gives_up(tmp_path: Path) -> None:
    told: list[str] = []
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            HOLDER,
            str(tmp_path / "state"),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with (
            pytest.raises(BusyError, match=rf"acp up \(pid {holder.pid}\)"),
            locked(tmp_path / "state", "down", on_wait=told.append, wait_seconds=0.2),
        ):
            pytest.fail("two at once")
        assert told == [f"Waiting for acp up (pid {holder.pid}) …"]
        # However the holder ends, the lock ends with it.
        holder.kill()
    with locked(tmp_path / "state", "down", on_wait=told.append, wait_seconds=20):
        pass


def test_the_lock_survives_the_clearing_of_what_it_guards(tmp_path: Path) -> None:
    with locked(tmp_path / "state", "down", on_wait=print):
        assert not (tmp_path / "state").exists()
        assert (tmp_path / "state.lock").exists()
