""".ci/run with stand-ins for what it calls: what runs beside is shown, counts, and is taken down."""

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.checkout import ROOT
from tests.e2e.conftest import wait_for

STAND_IN = """\
#!/bin/sh
# Notes what it is called with and does what the test has written for that; interrupted, it cleans up.
called="$(basename "$0") $1"
echo "$called" >>"$NOTES"
trap 'echo "$called cleans up" >>"$NOTES"; exit 2' INT
noted() { for _ in $(seq 300); do grep -q "$1" "$NOTES" && return; sleep 0.1; done; return 1; }
echo "this is $called"
eval "$(cat "$DOES/$1" 2>/dev/null)"
"""
type Run = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    """What was called, a line each."""
    file = tmp_path / "notes"
    file.touch()
    return file


@pytest.fixture
def run(tmp_path: Path, notes: Path) -> Iterator[Run]:
    """Starts .ci/run; keyword arguments are what scripts/test does with a first part, or .ci/containers, in shell."""
    copy, tools, does = (tmp_path / name for name in ("checkout", "tools", "does"))
    for folder in (copy / ".ci", copy / "scripts" / "lib", tools, does):
        folder.mkdir(parents=True)
    shutil.copy2(ROOT / ".ci" / "run", copy / ".ci" / "run")
    (copy / "scripts" / "lib" / "environment.sh").write_text("find_uv() { :; }\nfind_python() { :; }\n")
    for path in (copy / "scripts" / "test", copy / ".ci" / "containers", tools / "apt-get"):
        path.write_text(STAND_IN)
        path.chmod(0o755)
    started: list[subprocess.Popen[str]] = []

    def run(**what: str) -> subprocess.Popen[str]:
        for name, shell in what.items():
            (does / name).write_text(shell)
        process = subprocess.Popen(
            [copy / ".ci" / "run"],
            env={
                "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}",
                "TMPDIR": str(tmp_path),
                "NOTES": str(notes),
                "DOES": str(does),
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield run
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def lines(notes: Path) -> list[str]:
    return [line for line in notes.read_text().splitlines() if not line.startswith("apt-get")]


def test_containers_and_the_oldest_postgres_run_beside_the_others(run: Run, notes: Path) -> None:
    ran = run(unit="noted 'test containers'", postgres15="noted 'test unit'")
    out, _ = ran.communicate(timeout=60)
    assert ran.returncode == 0, out
    assert lines(notes)[0] == "test checks"
    assert sorted(lines(notes)[1:-1]) == ["containers up", "test containers", "test postgres15", "test unit"]
    assert lines(notes)[-1] == "containers down"
    shown = [line for line in out.splitlines() if line.startswith("this is test")]
    assert shown == [f"this is test {part}" for part in ("checks", "unit", "containers", "postgres15")]


def test_a_failure_beside_fails_the_whole(run: Run, notes: Path) -> None:
    ran = run(containers="exit 3")
    out, _ = ran.communicate(timeout=60)
    assert ran.returncode == 3, out
    assert "this is test containers" in out
    assert lines(notes)[-1] == "containers down"
    assert "test postgres15" not in lines(notes)


def test_a_failure_interrupts_what_runs_beside(run: Run, notes: Path) -> None:
    ran = run(unit="noted 'test containers'; exit 4", containers="while :; do sleep 0.1; done")
    out, _ = ran.communicate(timeout=60)
    assert ran.returncode == 4, out
    assert lines(notes)[-2:] == ["test containers cleans up", "containers down"]


def test_an_engine_is_not_left_half_made(run: Run, notes: Path) -> None:
    ran = run(
        unit="noted 'containers up'; sleep 0.5; exit 4", up="sleep 2; echo made >>$NOTES", containers="echo no >>$NOTES"
    )
    out, _ = ran.communicate(timeout=60)
    assert ran.returncode == 4, out
    assert lines(notes)[-2:] == ["made", "containers down"]


def test_ctrl_c_ends_both(run: Run, notes: Path) -> None:
    forever = "while :; do sleep 0.1; done"
    ran = run(unit=forever, containers=forever)
    wait_for(lambda: {"test unit", "test containers"} <= set(lines(notes)), seconds=30, what="both begun")
    os.killpg(ran.pid, signal.SIGINT)
    ran.communicate(timeout=60)
    assert ran.returncode != 0
    assert {"test unit cleans up", "test containers cleans up"} <= set(lines(notes))
    assert lines(notes)[-1] == "containers down"
