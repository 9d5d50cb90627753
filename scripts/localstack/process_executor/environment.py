"""A Lambda execution environment: it runs one process after another, and reports in Lambda's words."""

import json
import math
import shutil
import signal
import tempfile
import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from process_executor.process import Exited, FunctionProcess, FunctionSpec, TimedOut
from process_executor.runtime_api import InitFailed, Invocation, Ready, Reply

MAX_RESPONSE_BYTES = 6 * 1024 * 1024 + 100


class EnvironmentStoppedError(Exception):
    """Raised by `start` and `invoke` once `stop` was called, even if that happened while they waited."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """An invocation's result: the answer (Lambda's error JSON if `is_error`), and its log as lines with line ends."""

    payload: bytes
    is_error: bool
    log: str


@dataclass(frozen=True, slots=True)
class _Failure:
    """Why there is no answer: `payload` is for the caller, `line` and `status` are for the log."""

    payload: dict[str, str]
    line: str
    status: str


@dataclass(slots=True)
class _Boot:
    """A process, and how its init phase ended; `init_ms` is None once a log has reported it."""

    process: FunctionProcess
    event: Ready | InitFailed | Exited | TimedOut
    init_ms: float | None


class ExecutionEnvironment:
    """Runs a function's invocations, one at a time, in a process that is kept warm and replaced once it has died."""

    def __init__(self, spec: FunctionSpec, *, init_timeout_s: float) -> None:
        """Starts nothing yet. The environment has a temporary folder of its own until `stop`, as in Lambda."""
        self._spec = spec
        self._init_timeout_s = init_timeout_s
        self._tmp = Path(tempfile.mkdtemp(prefix="lambda-tmp-"))
        self._lock = threading.Lock()
        self._stopped = False
        self._process: FunctionProcess | None = None  # the process that stop() must end
        self._boot: _Boot | None = None  # None until start(), and after a failed init was reported

    def start(self) -> None:
        """Starts the process and waits for the end of its init phase.

        A failed init phase is not raised: the first invocation reports it, because only an invocation has a log. Raises
        OSError if there is no process at all, and EnvironmentStoppedError.
        """
        self._boot = self._start_process()

    def invoke(
        self,
        request_id: str,
        payload: bytes,
        *,
        function_arn: str,
        trace_id: str = "",
        client_context: str | None = None,
    ) -> Outcome:
        """Runs one invocation, on a new process if none lives; `payload` and `client_context` are JSON.

        Raises as `start` does; whatever goes wrong in the function is an Outcome.
        """
        last_words = ""
        if self._boot and isinstance(self._boot.event, Ready) and not self._boot.process.alive:
            last_words = self._boot.process.take_output()
            self._boot = None
        boot = self._boot = self._boot or self._start_process()
        log = _whole_lines(last_words + boot.process.take_output())
        if not isinstance(boot.event, Ready):
            self._boot = None
            return self._init_failed(request_id, boot, log)

        invocation = Invocation(
            request_id=request_id,
            payload=payload,
            function_arn=function_arn,
            deadline_ms=int((time.time() + self._spec.timeout_s) * 1000),
            trace_id=trace_id,
            client_context=client_context,
        )
        began = time.monotonic()
        event = boot.process.invoke(invocation, self._spec.timeout_s)
        duration_ms = (time.monotonic() - began) * 1000
        if self._stopped:
            raise EnvironmentStoppedError
        failure = self._why_no_answer(request_id, event)
        log += self._start_line(request_id) + _whole_lines(boot.process.take_output())
        log += self._end_lines(request_id, boot, duration_ms, failure)
        if failure:
            return Outcome(json.dumps(failure.payload).encode(), is_error=True, log=log)
        assert isinstance(event, Reply)
        return Outcome(event.body, event.is_error, log)

    def stop(self) -> None:
        """Ends the process with all it started and removes the temporary folder; an invocation under way raises."""
        with self._lock:
            self._stopped = True
            process = self._process
        if process:
            process.end()
        shutil.rmtree(self._tmp, ignore_errors=True)

    def _start_process(self) -> _Boot:
        began = time.monotonic()
        with self._lock:
            if self._stopped:
                raise EnvironmentStoppedError
            self._process = process = FunctionProcess(self._spec, self._tmp)
        event = process.wait_ready(self._init_timeout_s)
        if self._stopped:
            raise EnvironmentStoppedError
        return _Boot(process, event, init_ms=(time.monotonic() - began) * 1000)

    def _init_failed(self, request_id: str, boot: _Boot, log: str) -> Outcome:
        match boot.event:
            case InitFailed(error):
                payload = error
                failure = _Failure({}, "", _status(json.loads(error).get("errorType", "")))
            case TimedOut():
                message = f"Error: Init phase timed out after {self._init_timeout_s:.2f} seconds"
                failure = _failure(request_id, "Sandbox.Timedout", message, status="\tStatus: timeout")
                payload = json.dumps(failure.payload).encode()
            case Exited(code):
                failure = _exit_failure(request_id, code)
                payload = json.dumps(failure.payload).encode()
            case Ready():
                raise AssertionError("this init phase did not fail")
        log += f"INIT_REPORT Init Duration: {boot.init_ms:.2f} ms\tPhase: init{failure.status}\n"
        log += self._start_line(request_id) + self._end_lines(request_id, boot, 0, failure)
        return Outcome(payload, is_error=True, log=log)

    def _why_no_answer(self, request_id: str, event: Reply | Exited | TimedOut) -> _Failure | None:
        match event:
            case TimedOut():
                now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
                message = f"{now} {request_id} Task timed out after {self._spec.timeout_s:.2f} seconds"
                return _Failure({"errorMessage": message}, message + "\n", "\tStatus: timeout")
            case Exited(code):
                return _exit_failure(request_id, code)
            case Reply(body) if len(body) > MAX_RESPONSE_BYTES:
                limit = f"exceeded maximum allowed payload size ({MAX_RESPONSE_BYTES} bytes)."
                return _failure(request_id, "Function.ResponseSizeTooLarge", f"Response payload size {limit}")
            case Reply():
                return None

    def _start_line(self, request_id: str) -> str:
        version = self._spec.environment.get("AWS_LAMBDA_FUNCTION_VERSION", "$LATEST")
        return f"START RequestId: {request_id} Version: {version}\n"

    def _end_lines(self, request_id: str, boot: _Boot, duration_ms: float, failure: _Failure | None) -> str:
        init_ms, boot.init_ms = boot.init_ms, None
        fields = [
            f"REPORT RequestId: {request_id}",
            f"Duration: {duration_ms:.2f} ms",
            # AWS bills the init phase, too, since August 2025.
            f"Billed Duration: {math.ceil(duration_ms + (init_ms or 0))} ms",
            f"Memory Size: {self._spec.memory_mb} MB",
            f"Max Memory Used: {boot.process.peak_memory_mb} MB",
            *([f"Init Duration: {init_ms:.2f} ms"] if init_ms is not None else []),
        ]
        why, status = (failure.line, failure.status) if failure else ("", "")
        return f"{why}END RequestId: {request_id}\n" + "\t".join(fields) + status + "\n"


def _failure(request_id: str, error_type: str, message: str, status: str = "") -> _Failure:
    text = f"RequestId: {request_id} {message}"
    return _Failure(
        {"errorType": error_type, "errorMessage": text}, f"{text}\n{error_type}\n", status or _status(error_type)
    )


def _exit_failure(request_id: str, code: int) -> _Failure:
    if code == 0:
        reason = "Runtime exited without providing a reason"
    elif code > 0:
        reason = f"Runtime exited with error: exit status {code}"
    else:
        reason = f"Runtime exited with error: signal: {(signal.strsignal(-code) or str(-code)).lower()}"
    return _failure(request_id, "Runtime.ExitError", f"Error: {reason}")


def _status(error_type: str) -> str:
    return f"\tStatus: error\tError Type: {error_type}"


def _whole_lines(text: str) -> str:
    return text if not text or text.endswith("\n") else text + "\n"
