"""The suite itself: started otherwise than from a terminal, and its parts that run side by side."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import psutil
import pytest
from tests.checkout import ROOT
from tests.e2e.conftest import wait_for
from tests.integration.conftest import LONGEST_FIRST, OF_POSTGRES

from local_cloud.processes import is_alive

OF_SIGINT = "tests/integration/test_background_services.py"


@pytest.mark.parametrize("processes", ["0", "2"])
def test_tests_that_send_sigint_pass_where_it_is_ignored(processes: str) -> None:
    """SIGINT is ignored under nohup, in shells' background jobs and on many CI runners; stdin is closed, too."""
    command = [sys.executable, "-m", "pytest", OF_SIGINT, "-k", "survives_an_interrupt", "--numprocesses", processes]
    done = subprocess.run(
        ["sh", "-c", 'trap "" INT; exec "$@" <&-', "sh", *command],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout


# Side by side

STAND_IN = """\
#!/bin/sh
# pytest's: does what the test has written for the part, and notes when it begins and ends.
part=${1#tests/}
echo "$part with $*"
echo "$part begins" >>"$NOTES"
trap 'echo "$part is interrupted" >>"$NOTES"; exit 2' INT
noted() { for _ in $(seq 300); do grep -q "$1" "$NOTES" && return; sleep 0.1; done; return 1; }
eval "$(cat "$PARTS/$part" 2>/dev/null)"
echo "$part ends" >>"$NOTES"
"""
type Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    """What the parts noted, a line each."""
    file = tmp_path / "notes"
    file.touch()
    return file


@pytest.fixture
def start(tmp_path: Path, notes: Path) -> Iterator[Start]:
    """Starts scripts/test with a stand-in for pytest; keyword arguments are what a part does, in shell."""
    copy, parts = tmp_path / "checkout", tmp_path / "parts"
    shutil.copytree(ROOT / "scripts" / "lib", copy / "scripts" / "lib")
    shutil.copy2(ROOT / "scripts" / "test", copy / "scripts" / "test")
    with (copy / "scripts" / "lib" / "environment.sh").open("a") as file:
        file.write("environment() { :; }\n")
    stand_in = copy / ".acp" / "venvs" / "dev" / "bin" / "pytest"
    stand_in.parent.mkdir(parents=True)
    stand_in.write_text(STAND_IN)
    stand_in.chmod(0o755)
    parts.mkdir()

    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str, **does: str) -> subprocess.Popen[str]:
        for part, shell in does.items():
            (parts / part).write_text(textwrap.dedent(shell))
        suite = subprocess.Popen(
            [copy / "scripts" / "test", *arguments],
            env={"PATH": os.environ["PATH"], "TMPDIR": str(tmp_path), "NOTES": str(notes), "PARTS": str(parts)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(suite)
        return suite

    yield start
    for suite in started:
        for process in psutil.process_iter():
            with contextlib.suppress(ProcessLookupError):
                if os.getsid(process.pid) == suite.pid:
                    process.kill()
        suite.communicate()


def test_what_waits_runs_beside_and_is_shown_afterwards(start: Start, notes: Path) -> None:
    both = start(
        "e2e", "unit", "integration", "--", "-x", e2e="noted 'integration begins'", integration="noted 'e2e ends'"
    )
    out, err = both.communicate(timeout=60)
    assert both.returncode == 0, out + err
    assert notes.read_text().splitlines()[-2:] == ["e2e ends", "integration ends"]
    shown = [line.partition(" with ")[0] for line in out.splitlines() if " with " in line]
    assert shown == ["unit", "integration", "e2e"]
    assert all("-x" in line for line in out.splitlines() if " with " in line)


@pytest.mark.parametrize("part", ["e2e", "browser", "containers"])
def test_alone_it_runs_as_any_other_part(start: Start, part: str) -> None:
    alone = start(part)
    out, err = alone.communicate(timeout=60)
    assert alone.returncode == 0
    assert out.startswith(f"{part} with tests/{part}")
    assert "beside" not in err


def test_a_failure_beside_fails_the_whole_and_starts_no_more(start: Start, notes: Path) -> None:
    both = start(
        "unit", "integration", "e2e", "browser", e2e="exit 3", unit="noted 'e2e begins'; sleep 1", integration="exit 9"
    )
    out, err = both.communicate(timeout=60)
    assert both.returncode == 3, out + err
    assert "e2e with" in out
    assert sorted(notes.read_text().splitlines()) == ["e2e begins", "unit begins", "unit ends"]


def test_a_failure_interrupts_what_runs_beside_and_awaits_its_end(start: Start, notes: Path) -> None:
    both = start(
        *("unit", "e2e", "browser"),
        unit="noted 'e2e begins'; exit 4",
        e2e='trap \'sleep 1; echo "e2e has cleaned up" >>"$NOTES"; exit 2\' INT; while :; do sleep 0.1; done',
    )
    out, err = both.communicate(timeout=60)
    assert both.returncode == 4, out + err
    assert sorted(notes.read_text().splitlines()) == ["e2e begins", "e2e has cleaned up", "unit begins"]


def test_ctrl_c_ends_both(start: Start, notes: Path) -> None:
    both = start("unit", "e2e", unit="while :; do sleep 0.1; done", e2e="while :; do sleep 0.1; done")
    wait_for(lambda: notes.read_text().count("begins") == 2, seconds=30, what="both begun")
    os.killpg(both.pid, signal.SIGINT)
    out, err = both.communicate(timeout=60)
    assert both.returncode != 0, out + err
    assert sorted(notes.read_text().splitlines())[1::2] == ["e2e is interrupted", "unit is interrupted"]


INTERRUPTED_CONFTEST = """\
import pytest
from execnet.gateway_base import WorkerPool
from tests.interrupts import clean_up_when_interrupted

waitall = WorkerPool.waitall
# xdist's own patience, 5 s and 10 s, is over at once.
WorkerPool.waitall = lambda pool, timeout=None: waitall(pool, 0.1 if timeout in (5.0, 10.0) else timeout)


def pytest_configure(config):
    clean_up_when_interrupted(config)
"""
INTERRUPTED_TESTS = """\
import os

import pytest
from tests.interrupts import run

COMMAND = "trap 'sleep 1; echo interrupted >>$NOTES; exit 2' INT; echo begins >>$NOTES; while :; do sleep 0.1; done"


@pytest.fixture
def cloud():
    yield
    run(["sh", "-c", "trap '' INT; sleep 1; echo down >>$NOTES"], env=os.environ, timeout=60)


@pytest.mark.parametrize("number", range(2))
def test_it(cloud, number):
    run(["sh", "-c", COMMAND], env=os.environ, timeout=60)
"""


@pytest.mark.parametrize("whom", ["the group", "one process"])
def test_interrupted_tests_have_the_time_to_clean_up(notes: Path, tmp_path: Path, whom: str) -> None:
    """xdist's processes, and the commands that they wait for, as e2e tests wait for `acp`."""
    (tmp_path / "conftest.py").write_text(INTERRUPTED_CONFTEST)
    (tmp_path / "test_it.py").write_text(INTERRUPTED_TESTS)
    suite = subprocess.Popen(
        [sys.executable, "-m", "pytest", "-n2", "-pno:cacheprovider", f"-c{os.devnull}", tmp_path],
        env={**os.environ, "NOTES": str(notes), "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
    wait_for(lambda: notes.read_text().count("begins") == 2, seconds=60, what="both tests begun")
    if whom == "the group":
        os.killpg(suite.pid, signal.SIGINT)
    else:
        suite.send_signal(signal.SIGINT)
    suite.wait(60)
    assert sorted(notes.read_text().splitlines()) == [*["begins"] * 2, *["down"] * 2, *["interrupted"] * 2]


# Files that the integration tests treat in a way of their own


@pytest.mark.parametrize("names", [OF_POSTGRES, LONGEST_FIRST])
def test_each_file_that_is_named_is_there(names: Collection[str]) -> None:
    folder = Path(__file__).parent
    assert [name for name in names if not any(folder.rglob(name))] == []


def test_the_longest_files_begin_first(request: pytest.FixtureRequest) -> None:
    assert not request.config.getoption("loadscopereorder")
    ranks = [LONGEST_FIRST.index(item.path.name) for item in request.session.items if item.path.name in LONGEST_FIRST]
    assert ranks == sorted(ranks)


SLEEPING_TEST = """\
import os
import time
from pathlib import Path

from tests.conftest import *


def test_it(postgres):
    Path(os.environ["NOTES"]).write_text(str(postgres.data_dir))
    time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_killed_tests_leave_no_postgres(notes: Path, tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "test_it.py").write_text(SLEEPING_TEST)
    suite = subprocess.Popen(
        [sys.executable, "-m", "pytest", "-pno:cacheprovider", f"-c{os.devnull}", tmp_path],
        env={**os.environ, "NOTES": str(notes), "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
    data = Path(wait_for(notes.read_text, seconds=60, what="a test that has a database"))
    postmaster = psutil.Process(int((data / "postmaster.pid").read_text().split()[0]))
    suite.send_signal(number)
    assert suite.wait(30) == -number
    wait_for(lambda: not data.parent.exists(), seconds=30, what="its folder removed")
    assert not is_alive(postmaster)
