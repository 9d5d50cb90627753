"""The test suite itself, started otherwise than from a terminal."""

import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parent.parent.parent
OF_SIGINT = "tests/integration/test_background_services.py"


@pytest.mark.parametrize("processes", ["0", "2"])
def test_tests_that_send_sigint_pass_where_it_is_ignored(processes: str) -> None:
    """SIGINT is ignored under nohup, in shells' background jobs and on many CI runners; stdin is closed, too."""
    command = [sys.executable, "-m", "pytest", OF_SIGINT, "-k", "survives_an_interrupt", "--numprocesses", processes]
    done = subprocess.run(
        ["sh", "-c", 'trap "" INT; exec "$@" <&-', "sh", *command],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout
