"""Work in a child process: whatever becomes of it, its parent goes on."""

import os
import signal
import time

import psutil
import pytest

from control_plane.platform.child import ChildFailed, run_in_child

PATIENCE = 60.0
"""Seconds, for a busy machine."""


def children() -> set[int]:
    """Returns the process ids of this process's children, among them those of other tests."""
    return {process.pid for process in psutil.Process().children()}


@pytest.mark.parametrize("answer", [b"", b"yes", bytes(range(256)) * 4096])
def test_what_the_work_returns_is_returned(answer: bytes) -> None:
    assert run_in_child(lambda: answer, PATIENCE) == answer


def test_the_work_changes_nothing_here() -> None:
    changed: list[int] = []

    def work() -> bytes:
        changed.append(1)
        return b"done"

    assert run_in_child(work, PATIENCE) == b"done"
    assert changed == []


def test_work_that_raises_is_no_answer() -> None:
    def work() -> bytes:
        raise RuntimeError

    with pytest.raises(ChildFailed, match="ended with status 1"):
        run_in_child(work, PATIENCE)


def test_work_that_ends_the_process_is_no_answer() -> None:
    def work() -> bytes:
        os.kill(os.getpid(), signal.SIGKILL)
        return b"never"

    with pytest.raises(ChildFailed, match="signal 9"):
        run_in_child(work, PATIENCE)


def test_work_that_hangs_is_ended() -> None:
    def work() -> bytes:
        time.sleep(PATIENCE)
        return b"too late"

    before, began = children(), time.monotonic()
    with pytest.raises(ChildFailed, match=r"no answer within 0\.2 s"):
        run_in_child(work, 0.2)
    assert time.monotonic() - began < PATIENCE / 2
    assert children() <= before
