"""Runs a piece of work in a child process: it may fail, crash or hang without harm to the process that needs it."""

import os
import select
import signal
import time
import warnings
from collections.abc import Callable
from contextlib import suppress

from control_plane.model.errors import ControlPlaneError

CHUNK = 65_536


class ChildFailed(ControlPlaneError):
    """Raised when a child process ended without an answer, or had none in time."""


def run_in_child(work: Callable[[], bytes], seconds: float) -> bytes:
    """Returns what ``work`` returns, in a fork of this process that lives ``seconds`` at most. Raises ChildFailed.

    The work may read everything that is in memory here, and must use no connection: both processes have the same one.
    """
    reads, writes = os.pipe()
    with warnings.catch_warnings():
        # A lock that another thread holds stays locked in the child, which then is out of time: no harm is done.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        _answer(work, reads, writes)
    os.close(writes)
    try:
        answer = _read(reads, time.monotonic() + seconds)
    finally:
        os.close(reads)
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
    if answer is None:
        raise ChildFailed(f"there was no answer within {seconds:g} s")
    if not answer:
        raise ChildFailed(f"the process that was to answer ended with {_ending(status)}")
    return answer[1:]


def _answer(work: Callable[[], bytes], reads: int, writes: int) -> None:
    """Does the work as the child, and ends the process, without whatever an interpreter does at its end."""
    status = 1
    try:
        os.close(reads)
        # The first byte tells an empty answer from none.
        content = memoryview(b"=" + work())
        while content:
            content = content[os.write(writes, content) :]
        status = 0
    finally:
        os._exit(status)


def _read(reads: int, ends: float) -> bytes | None:
    """Returns all that is written until the other end is closed; None where time is over before."""
    chunks: list[bytes] = []
    while (left := ends - time.monotonic()) > 0:
        if not select.select([reads], [], [], left)[0]:
            break
        if not (chunk := os.read(reads, CHUNK)):
            return b"".join(chunks)
        chunks.append(chunk)
    return None


def _ending(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    return f"signal {-code}" if code < 0 else f"status {code}"
