"""Ctrl-C in tests of a whole local cloud: what they have started is taken down first, however long that takes."""

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType

import pytest
from execnet.gateway_base import WorkerGateway
from xdist.workermanage import NodeManager

CLEAN_UP_SECONDS = 90
"""What an interrupted test, or command, may take to clean up."""


def clean_up_when_interrupted(config: pytest.Config) -> None:
    """Gives the process, one of xdist's or the one that starts them, CLEAN_UP_SECONDS after Ctrl-C.

    Without this the test processes get a second SIGINT after five seconds, which ends the cleaning up, and are killed
    ten seconds later.
    """
    NodeManager.EXIT_TIMEOUT = CLEAN_UP_SECONDS
    if hasattr(config, "workerinput"):
        WorkerGateway._terminate_execution = _terminate_execution  # type: ignore[method-assign, assignment]
        signal.signal(signal.SIGINT, _interrupt_once)


def _interrupt_once(_number: int, _frame: FrameType | None) -> None:
    # A function, as children would inherit SIG_IGN.
    signal.signal(signal.SIGINT, lambda *_: None)
    raise KeyboardInterrupt


def _terminate_execution(gateway: WorkerGateway) -> None:
    """Ends the tests' process; execnet calls this in another thread when the process that gives it tests has ended."""
    gateway._execpool.trigger_shutdown()
    # It does nothing where Ctrl-C has reached this process, too.
    os.kill(os.getpid(), signal.SIGINT)
    if not gateway._execpool.waitall(CLEAN_UP_SECONDS):
        os._exit(1)


def run(
    command: Sequence[str | Path], *, env: Mapping[str, str], timeout: float, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs a command; where the tests are interrupted or its time is up, the command is interrupted and may clean up.

    subprocess.run kills a command that has not ended within 0.25 s of Ctrl-C.
    """
    with subprocess.Popen(
        command,
        env=env,
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # The terminal's Ctrl-C does not reach it, so that it is interrupted once.
        start_new_session=True,
    ) as process:
        try:
            out, err = process.communicate(timeout=timeout)
        except BaseException:
            process.send_signal(signal.SIGINT)
            try:
                process.communicate(timeout=CLEAN_UP_SECONDS)
            finally:
                process.kill()
            raise
    return subprocess.CompletedProcess(command, process.returncode, out, err)
