"""One function process: started in a group of its own, watched, and ended with everything it started."""

import contextlib
import os
import queue
import re
import select
import signal
import subprocess
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from process_executor.runtime_api import InitFailed, Invocation, Ready, Reply, RuntimeApi

MAX_LOG_BYTES = 16 * 1024 * 1024  # per invocation; a function that prints for ever must not fill LocalStack's memory

_BOOTSTRAP = Path(__file__).with_name("bootstrap.py")
_PIPE_BYTES = 1024 * 1024  # No pipe holds more, unless root allows it.

_SET_BY_LAMBDA = frozenset(
    {
        "AWS_REGION",
        "AWS_DEFAULT_REGION",
        "AWS_LAMBDA_FUNCTION_NAME",
        "AWS_LAMBDA_FUNCTION_MEMORY_SIZE",
        "AWS_LAMBDA_FUNCTION_VERSION",
        "AWS_LAMBDA_INITIALIZATION_TYPE",
        "AWS_LAMBDA_LOG_GROUP_NAME",
        "AWS_LAMBDA_LOG_STREAM_NAME",
        "AWS_LAMBDA_LOG_FORMAT",
        "AWS_LAMBDA_LOG_LEVEL",
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
        "AWS_XRAY_CONTEXT_MISSING",
        "AWS_XRAY_DAEMON_ADDRESS",
        "_AWS_XRAY_DAEMON_ADDRESS",
        "_AWS_XRAY_DAEMON_PORT",
        "_HANDLER",
    }
)


@dataclass(frozen=True, slots=True)
class FunctionSpec:
    """How to run a function: the interpreter, the unpacked code, the layers in the function's order, and its limits.

    `environment` holds what the function declares and what Lambda sets; nothing of the host's is added to it.
    """

    python: Path
    handler: str
    code: Path
    layers: tuple[Path, ...]
    environment: Mapping[str, str]
    timeout_s: float
    memory_mb: int


@dataclass(frozen=True, slots=True)
class Exited:
    """The process has ended; `code` is its exit status, negative for a signal."""

    code: int


@dataclass(frozen=True, slots=True)
class TimedOut:
    """The process gave no answer in time."""


class FunctionProcess:
    """A running function and its Runtime API. One thread at a time waits for it; `end` may come from any."""

    def __init__(self, spec: FunctionSpec, tmp: Path) -> None:
        """Starts the process; `tmp` becomes its TMPDIR and HOME."""
        self._events: queue.SimpleQueue[object] = queue.SimpleQueue()
        self._api = RuntimeApi(self._events)
        # The child reads from the lifeline until our end of it closes, which happens at the latest when this process
        # dies.
        lifeline, self._lifeline = os.pipe()
        output, output_end = os.pipe()
        try:
            self._popen = subprocess.Popen(
                [spec.python, "-P", "-s", "-u", _BOOTSTRAP, str(lifeline), *spec.layers],
                cwd=spec.code,
                env=process_environment(spec, tmp) | {"AWS_LAMBDA_RUNTIME_API": self._api.address},
                stdin=subprocess.DEVNULL,
                stdout=output_end,
                stderr=output_end,
                pass_fds=(lifeline,),
                start_new_session=True,
            )
        except BaseException:
            self._api.close()
            os.close(self._lifeline)
            os.close(output)
            raise
        finally:
            os.close(lifeline)
            os.close(output_end)
        self._output = _Output(output)
        self._lock = threading.Lock()
        self._reaped = False
        self._ended = threading.Event()
        self._peak_mb = 0
        threading.Thread(target=self._watch, name="lambda-process-watcher", daemon=True).start()

    @property
    def pid(self) -> int:
        """The id of the process, and of its group."""
        return self._popen.pid

    @property
    def alive(self) -> bool:
        """Whether the process still runs."""
        return not self._ended.is_set()

    def wait_ready(self, timeout_s: float) -> Ready | InitFailed | Exited | TimedOut:
        """Returns the end of the init phase; unless it is Ready, the process is ended."""
        event = self._next_event(time.monotonic() + timeout_s)
        assert not isinstance(event, Reply), "no invocation is under way before the first"
        if not isinstance(event, Ready):
            self.end()
        return event

    def invoke(self, invocation: Invocation, timeout_s: float) -> Reply | Exited | TimedOut:
        """Returns the function's answer; unless it is a Reply, the process is ended."""
        deadline = time.monotonic() + timeout_s
        self._api.hand_over(invocation)
        event = self._next_event(deadline)
        assert not isinstance(event, Ready | InitFailed), "the init phase ends once, before the first invocation"
        if not isinstance(event, Reply):
            self.end()
        return event

    def take_output(self) -> str:
        """Returns what the process has written to stdout and stderr since the last call, in its order."""
        return self._output.take()

    @property
    def peak_memory_mb(self) -> int:
        """Returns the most memory in MiB that the process was seen to use, after init and after each invocation."""
        return self._peak_mb

    def end(self) -> None:
        """Ends the process and its whole group at once. Calling it again changes nothing."""
        with self._lock:
            if not self._reaped:
                _kill_group(self.pid)
        self._ended.wait()

    def _next_event(self, deadline: float) -> Ready | InitFailed | Reply | Exited | TimedOut:
        try:
            event = self._events.get(timeout=max(0, deadline - time.monotonic()))
        except queue.Empty:
            event = TimedOut()
        if self.alive:
            self._peak_mb = max(self._peak_mb, _memory_mb(self.pid))
        assert isinstance(event, Ready | InitFailed | Reply | Exited | TimedOut)
        return event

    def _watch(self) -> None:
        # Until it is reaped, the dead process keeps its id, so no other group can have that id yet.
        os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        with self._lock:
            _kill_group(self.pid)
            code = self._popen.wait()
            self._reaped = True
        os.close(self._lifeline)
        self._api.close()
        self._ended.set()
        self._events.put(Exited(code))


class _Output:
    """Reads a pipe for as long as anybody can write to it, and hands out what came."""

    def __init__(self, fd: int) -> None:
        os.set_blocking(fd, False)
        self._fd = fd
        self._open = True
        self._lock = threading.Lock()
        self._data = bytearray()
        threading.Thread(target=self._pump, name="lambda-output", daemon=True).start()

    def take(self) -> str:
        """Returns all that was written before this call, even what is still in the pipe."""
        with self._lock:
            self._read(_PIPE_BYTES)
            data, self._data = self._data, bytearray()
        if len(data) > MAX_LOG_BYTES:
            data[MAX_LOG_BYTES:] = b"\n[the rest of this output was dropped]\n"
        return data.decode(errors="replace")

    def _pump(self) -> None:
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        while self._open:
            poll.poll()
            with self._lock:
                self._read(_PIPE_BYTES)
        os.close(self._fd)

    def _read(self, limit: int) -> None:
        """Reads what is there, up to about `limit` bytes. The caller holds the lock."""
        while self._open and limit > 0:
            try:
                chunk = os.read(self._fd, 65536)
            except BlockingIOError:
                return
            limit -= len(chunk)
            if not chunk:
                self._open = False
            elif len(self._data) <= MAX_LOG_BYTES:
                self._data += chunk


def function_environment(
    env_vars: Mapping[str, object], *, declared: Mapping[str, object], endpoint_url: str, runtime: str
) -> dict[str, str]:
    """Returns what Lambda sets and what the function declares, out of all that LocalStack lists for its own containers.

    LocalStack's list may hold numbers. An endpoint that is declared empty counts as not declared, because boto3 would
    take it for "the real AWS".
    """
    names = _SET_BY_LAMBDA | declared.keys()
    environment = {name: str(value) for name, value in env_vars.items() if name in names}
    environment = {k: v for k, v in environment.items() if v or not k.startswith("AWS_ENDPOINT_URL")}
    return {"AWS_ENDPOINT_URL": endpoint_url, "AWS_EXECUTION_ENV": f"AWS_Lambda_{runtime}"} | environment


def process_environment(spec: FunctionSpec, tmp: Path) -> dict[str, str]:
    """Returns the whole environment of the process, except the Runtime API's address."""
    layers = list(reversed(spec.layers))
    bins = [str(spec.python.parent), "/usr/local/bin", "/usr/bin", "/bin", *(str(layer / "bin") for layer in layers)]
    libs = [spec.code, spec.code / "lib", *(layer / "lib" for layer in layers)]
    defaults = {
        "PATH": ":".join(bins),
        "LD_LIBRARY_PATH": ":".join(map(str, libs)),
        "LANG": "en_US.UTF-8",
        "TZ": ":UTC",
        "TMPDIR": str(tmp),
        # Lambda sets no HOME. Without one, libraries would find the home of whoever runs LocalStack, and ~/.aws in it.
        "HOME": str(tmp),
    }
    fixed = {
        "_HANDLER": spec.handler,
        "LAMBDA_TASK_ROOT": str(spec.code),
        "LAMBDA_RUNTIME_DIR": str(_BOOTSTRAP.parent),
    }
    return defaults | dict(spec.environment) | fixed


def _kill_group(group: int) -> None:
    # macOS refuses (EPERM) if only a dead leader is left.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)


def _memory_mb(pid: int) -> int:
    """Returns peak resident memory in MiB where /proc has it, else what is resident now; 0 if the process has ended."""
    if Path("/proc/self/status").exists():
        with contextlib.suppress(OSError):
            status = Path(f"/proc/{pid}/status").read_text()
            return max((-(-int(kib) // 1024) for kib in re.findall(r"^VmHWM:\s*(\d+) kB", status, re.M)), default=0)
        return 0
    listed = subprocess.run(["ps", "-o", "rss=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return -(-int(listed.stdout.strip() or 0) // 1024)
