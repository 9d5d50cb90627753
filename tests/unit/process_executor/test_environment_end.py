"""How a function's processes end: timeouts, crashes, stops, and a killed executor."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import psutil
import pytest
from tests.unit.process_executor.functions import ARN, LAMBDA_SETS, Start, answer, error, gone, invoke
from tests.waiting import wait_until

from process_executor import bootstrap
from process_executor.environment import EnvironmentStoppedError

SPAWNS_A_CHILD = """
    import os, subprocess, sys
    child = None
    def handler(event, context):
        global child
        child = child or subprocess.Popen([sys.executable, "-c", "while True: pass"])
        if event == "crash": os._exit(1)
        if event == "hang":
            print(f"pids {os.getpid()} {child.pid}")
            open(os.environ["TMPDIR"] + "/busy", "w").close()
            while True: pass
        return [os.getpid(), child.pid]
"""


def test_a_timeout_ends_the_group_and_a_process_follows(start: Start) -> None:
    function = start(SPAWNS_A_CHILD, timeout_s=1)
    began = time.monotonic()
    outcome = invoke(function, "hang", request_id="req-5")
    assert 1 <= time.monotonic() - began < 5
    message = error(outcome)["errorMessage"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z req-5 Task timed out after 1\.00 seconds", message)
    assert set(error(outcome)) == {"errorMessage"}
    assert f"{message}\nEND RequestId: req-5\n" in outcome.log
    assert outcome.log.endswith("\tStatus: timeout\n")
    parent, child = map(int, re.search(r"pids (\d+) (\d+)", outcome.log).groups())  # type: ignore[union-attr] # no match fails the test
    wait_until(lambda: gone(parent) and gone(child))
    assert answer(invoke(function))[0] != parent


def test_a_crash_ends_the_children_too(start: Start) -> None:
    function = start(SPAWNS_A_CHILD)
    _, child = answer(invoke(function))
    error(invoke(function, "crash"))
    wait_until(lambda: gone(child))


def test_stop_leaves_no_process_no_thread_and_no_file(start: Start) -> None:
    before = set(threading.enumerate())
    function = start(SPAWNS_A_CHILD)
    pids = answer(invoke(function))
    tmp = function._tmp
    assert tmp.is_dir()
    function.stop()
    wait_until(lambda: all(map(gone, pids)))
    wait_until(lambda: not set(threading.enumerate()) - before)
    assert not tmp.exists()
    with pytest.raises(EnvironmentStoppedError):
        invoke(function)
    function.stop()


def test_no_descriptor_is_left_by_processes_that_come_and_go(start: Start) -> None:
    function = start("import os\ndef handler(event, context): os._exit(1)")
    invoke(function)
    threads = set(threading.enumerate())
    before = psutil.Process().num_fds()
    for _ in range(5):
        error(invoke(function))
    wait_until(lambda: len(threading.enumerate()) <= len(threads))
    wait_until(lambda: psutil.Process().num_fds() <= before)


def test_stop_interrupts_an_invocation(start: Start, tmp_path: Path) -> None:
    flag = tmp_path / "running"
    function = start(f"""
        import pathlib
        def handler(event, context):
            pathlib.Path({str(flag)!r}).touch()
            while True: pass
    """)
    raised: list[BaseException] = []

    def run() -> None:
        try:
            invoke(function)
        except EnvironmentStoppedError as stopped:
            raised.append(stopped)

    thread = threading.Thread(target=run)
    thread.start()
    wait_until(flag.exists)
    function.stop()
    thread.join(5)
    assert len(raised) == 1


EXECUTOR = """
import sys
from pathlib import Path
from process_executor.environment import ExecutionEnvironment
from process_executor.process import FunctionSpec
spec = FunctionSpec(Path(sys.executable), "app.handler", Path(sys.argv[1]), (), {}, 60, 128)
environment = ExecutionEnvironment(spec, init_timeout_s=20)
environment.start()
print(environment.invoke("1", b'"idle"', function_arn="").payload.decode(), flush=True)
if sys.argv[2] == "busy":
    environment.invoke("2", b'"hang"', function_arn="")
sys.stdin.read()
"""


@pytest.mark.parametrize("state", ["idle", "busy"])
def test_killing_the_executor_ends_a_function_and_its_children(tmp_path: Path, state: str) -> None:
    (tmp_path / "app.py").write_text(textwrap.dedent(SPAWNS_A_CHILD))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        [sys.executable, "-c", EXECUTOR, str(tmp_path), state],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as executor:
        try:
            assert executor.stdout
            pids = json.loads(executor.stdout.readline())
            assert not any(map(gone, pids))
            if state == "busy":
                wait_until(lambda: bool(list(tmp_path.glob("lambda-tmp-*/busy"))))
        finally:
            executor.kill()
    wait_until(lambda: all(map(gone, pids)))


@pytest.mark.parametrize("path", ["/invocation/next", "/response"], ids=["its event", "what its answer got"])
def test_a_function_ends_with_its_children_amid_what_it_reads(tmp_path: Path, path: str) -> None:
    """The executor is killed when a half of that is sent; the lifeline alone would end it, too, and is held open."""
    (tmp_path / "app.py").write_text(textwrap.dedent(SPAWNS_A_CHILD) + "handler('', None)\n")

    class Killed(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Lambda-Runtime-Aws-Request-Id", "1")
            self.send_header("Lambda-Runtime-Trace-Id", "Root=1-2-3")
            self.send_header("Lambda-Runtime-Deadline-Ms", "0")
            self.send_header("Lambda-Runtime-Invoked-Function-Arn", ARN)
            self.send_header("Content-Length", "3" if self.path.endswith(path) else "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.do_GET()

        def log_message(self, *_: object) -> None:
            pass

    lifeline, held = os.pipe()
    with HTTPServer(("127.0.0.1", 0), Killed) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        environment = os.environ | LAMBDA_SETS
        environment |= {"LAMBDA_TASK_ROOT": str(tmp_path), "_HANDLER": "app.handler"}
        environment |= {"AWS_LAMBDA_RUNTIME_API": f"127.0.0.1:{server.server_port}"}
        function = subprocess.Popen(
            [sys.executable, bootstrap.__file__, str(lifeline)],
            env=environment,
            stderr=subprocess.DEVNULL,
            pass_fds=(lifeline,),
            start_new_session=True,
        )
        try:
            assert function.wait(20) == -signal.SIGKILL
            wait_until(lambda: not [process for process in psutil.process_iter() if group_of(process) == function.pid])
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(function.pid, signal.SIGKILL)
            server.shutdown()
            thread.join()
            os.close(lifeline)
            os.close(held)


def group_of(process: psutil.Process) -> int | None:
    """The process group, of one that runs."""
    with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
        return None if gone(process.pid) else os.getpgid(process.pid)
    return None


def test_a_stopped_executors_function_cannot_wait_for_ever(start: Start) -> None:
    """Only the lifeline ends it, because the Runtime API is still there in this test."""
    function = start("import os\ndef handler(event, context): return os.getpid()")
    pid = answer(invoke(function))
    os.close(os.dup(0))
    assert function._boot
    lifeline = function._boot.process._lifeline
    replacement = os.open(os.devnull, os.O_RDONLY)
    os.dup2(replacement, lifeline)  # This closes our end; the number stays taken until the process has ended.
    os.close(replacement)
    wait_until(lambda: gone(pid))
