"""Runs `scripts/demo` as somebody who has just cloned the repository."""

import os
import re
import signal
import subprocess
from pathlib import Path

import pytest
from tests.e2e.conftest import CHECKOUT, processes_of, wait_for


@pytest.fixture
def command(cloud_name: str) -> list[str]:
    return [str(CHECKOUT / "scripts" / "demo"), "--cloud", cloud_name, "--market", "replay"]


def environ(state: Path) -> dict[str, str]:
    return {**os.environ, "ACP_STATE": str(state), "NO_COLOR": "1"}


def test_once_shows_an_events_timeline_and_leaves_nothing(command: list[str], tmp_path: Path) -> None:
    state = tmp_path / "state"
    demo = subprocess.run(
        [*command, "--once"],
        env=environ(state),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert demo.returncode == 0, demo.stdout + demo.stderr
    assert "replay" in demo.stdout + demo.stderr
    assert "processed by signal_lab" in demo.stdout
    assert processes_of(state) == []
    assert not state.exists()


def test_it_shows_a_decision_and_stays_up_until_ctrl_c(command: list[str], tmp_path: Path) -> None:
    state, output = tmp_path / "state", tmp_path / "output"
    with (
        output.open("w") as file,
        subprocess.Popen(
            [*command, "--from", "2008-09-26"],
            env=environ(state),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        ) as demo,
    ):
        try:
            wait_for(lambda: "scripts/acp watch" in output.read_text(), seconds=560, what="the hint where to look")
            assert demo.poll() is None
            shown = output.read_text()
            assert "is that of 2008-09-29." in shown, shown
            assert "a person is asked to approve" in shown, shown
            assert re.search(r"^http://\S+/ui#token=\S+$", shown, re.MULTILINE), shown
            # At Ctrl-C a terminal signals the whole foreground process group.
            os.killpg(demo.pid, signal.SIGINT)
            assert demo.wait(180) == 0, output.read_text()
        finally:
            if demo.poll() is None:
                os.killpg(demo.pid, signal.SIGTERM)
    assert processes_of(state) == []
    assert not state.exists()
