"""Real function processes, run by this interpreter over the real Runtime API."""

import json
import os
import re
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import psutil
import pytest

from process_executor.environment import EnvironmentStoppedError, ExecutionEnvironment, Outcome
from process_executor.process import MAX_LOG_BYTES, FunctionSpec, _Output

ARN = "arn:aws:lambda:eu-west-1:000000000000:function:shop"
LAMBDA_SETS = {
    "AWS_REGION": "eu-west-1",
    "AWS_LAMBDA_FUNCTION_NAME": "shop",
    "AWS_LAMBDA_FUNCTION_VERSION": "7",
    "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "256",
    "AWS_LAMBDA_LOG_GROUP_NAME": "/aws/lambda/shop",
    "AWS_LAMBDA_LOG_STREAM_NAME": "2026/01/01/[7]abc",
}


class Start(Protocol):
    def __call__(
        self,
        code: str,
        *,
        layers: tuple[Path, ...] = (),
        environment: dict[str, str] | None = None,
        timeout_s: float = 20,
        init_timeout_s: float = 20,
        handler: str = "app.handler",
    ) -> ExecutionEnvironment: ...


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts an environment for a function whose app.py is the given code, and stops it after the test."""
    started: list[ExecutionEnvironment] = []

    def start(
        code: str,
        *,
        layers: tuple[Path, ...] = (),
        environment: dict[str, str] | None = None,
        timeout_s: float = 20,
        init_timeout_s: float = 20,
        handler: str = "app.handler",
    ) -> ExecutionEnvironment:
        folder = tmp_path / f"code-{len(started)}"
        folder.mkdir()
        (folder / "app.py").write_text(textwrap.dedent(code))
        spec = FunctionSpec(
            python=Path(sys.executable),
            handler=handler,
            code=folder,
            layers=layers,
            environment=LAMBDA_SETS | (environment or {}),
            timeout_s=timeout_s,
            memory_mb=256,
        )
        started.append(ExecutionEnvironment(spec, init_timeout_s=init_timeout_s))
        started[-1].start()
        return started[-1]

    yield start
    for environment in started:
        environment.stop()


def invoke(environment: ExecutionEnvironment, event: Any = None, request_id: str = "req-1") -> Outcome:
    return environment.invoke(request_id, json.dumps(event).encode(), function_arn=ARN, trace_id="Root=1-2-3")


def answer(outcome: Outcome) -> Any:
    assert not outcome.is_error, outcome
    return json.loads(outcome.payload)


def error(outcome: Outcome) -> dict[str, Any]:
    assert outcome.is_error, outcome
    found = json.loads(outcome.payload)
    assert isinstance(found, dict)
    return found


def until(condition: Callable[[], bool], bound_s: float = 10) -> None:
    deadline = time.monotonic() + bound_s
    while not condition():
        assert time.monotonic() < deadline, "this did not come to pass in time"
        time.sleep(0.01)


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def layer(folder: Path, **modules: str) -> Path:
    (folder / "python").mkdir(parents=True)
    for name, code in modules.items():
        (folder / "python" / f"{name}.py").write_text(code)
    return folder


# Answers


def test_the_handlers_result_is_the_answer(start: Start) -> None:
    function = start("def handler(event, context): return {'twice': event['n'] * 2, 'ö': None}")
    assert answer(invoke(function, {"n": 21})) == {"twice": 42, "ö": None}


def test_one_process_serves_many_invocations(start: Start) -> None:
    function = start("""
        import os
        calls = 0
        def handler(event, context):
            global calls
            calls += 1
            return [os.getpid(), calls]
    """)
    (first, one), (second, two) = answer(invoke(function)), answer(invoke(function))
    assert first == second
    assert (one, two) == (1, 2)


def test_six_megabytes_go_in_and_out(start: Start) -> None:
    function = start("def handler(event, context): return event")
    event = "x" * (6 * 1024 * 1024 - 100)
    assert answer(invoke(function, event)) == event


def test_a_larger_answer_is_refused_and_the_process_stays(start: Start) -> None:
    function = start("import os\ndef handler(event, context): return 'x' * event or os.getpid()")
    pid = answer(invoke(function, 0))
    refused = invoke(function, 6 * 1024 * 1024 + 100)
    assert error(refused)["errorType"] == "Function.ResponseSizeTooLarge"
    assert "Function.ResponseSizeTooLarge" in refused.log
    assert answer(invoke(function, 0)) == pid


@pytest.mark.parametrize(
    ("expression", "written"),
    [
        ("Decimal('12345678901234567.890123456789')", b"12345678901234567.890123456789"),
        ("{'price': Decimal('1.10')}", b'{"price": 1.10}'),
        ("Decimal('nan')", b"NaN"),
        ("(1, 2)", b"[1, 2]"),
        ("None", b"null"),
        ("b'as it is'", b"as it is"),
    ],
)
def test_answers_are_written_as_lambda_writes_them(start: Start, expression: str, written: bytes) -> None:
    function = start(f"from decimal import Decimal\ndef handler(event, context): return {expression}")
    assert invoke(function).payload == written


@pytest.mark.parametrize("expression", ["object()", "{1, 2}", "__import__('datetime').datetime.now()"])
def test_an_answer_that_is_not_json_is_a_marshal_error(start: Start, expression: str) -> None:
    found = error(invoke(start(f"def handler(event, context): return {expression}")))
    assert found["errorType"] == "Runtime.MarshalError"
    assert found["errorMessage"].startswith("Unable to marshal response: Object of type ")


def test_the_context_tells_what_lambdas_does(start: Start) -> None:
    function = start(
        """
        def handler(event, context):
            told = {name: getattr(context, name) for name in event}
            told["left_ms"] = context.get_remaining_time_in_millis()
            told["identity"] = context.identity.cognito_identity_id
            told["client"] = context.client_context.custom if context.client_context else None
            return told
        """,
        timeout_s=9,
    )
    names = ["aws_request_id", "function_name", "function_version", "invoked_function_arn", "memory_limit_in_mb"]
    names += ["log_group_name", "log_stream_name"]
    told = answer(invoke(function, names, request_id="req-9"))
    assert 0 < told.pop("left_ms") <= 9000
    assert told == {
        "aws_request_id": "req-9",
        "function_name": "shop",
        "function_version": "7",
        "invoked_function_arn": ARN,
        "memory_limit_in_mb": "256",
        "log_group_name": "/aws/lambda/shop",
        "log_stream_name": "2026/01/01/[7]abc",
        "identity": None,
        "client": None,
    }
    outcome = function.invoke("req-2", b"[]", function_arn=ARN, client_context='{"custom": {"ö": 1}, "client": {}}')
    assert answer(outcome)["client"] == {"ö": 1}


# Errors


def test_a_handlers_exception_is_reported_with_its_stack_and_the_process_stays(start: Start) -> None:
    function = start("""
        import os
        def deeper(): raise KeyError("no such thing")
        def handler(event, context): return os.getpid() if event else deeper()
    """)
    pid = answer(invoke(function, 1))
    outcome = invoke(function, request_id="req-2")
    found = error(outcome)
    assert (found["errorType"], found["errorMessage"]) == ("KeyError", "'no such thing'")
    assert found["requestId"] == "req-2"
    assert [re.search(r'app\.py", line \d+, in (\w+)', frame)[1] for frame in found["stackTrace"]] == [  # type: ignore[index] # no match fails the test
        "handler",
        "deeper",
    ]
    (logged,) = (line for line in outcome.log.split("\n") if "KeyError" in line)
    assert logged.startswith("[ERROR] KeyError: 'no such thing'\rTraceback (most recent call last):\r  File ")
    assert answer(invoke(function, 1)) == pid


@pytest.mark.parametrize(
    ("code", "kind", "message"),
    [
        ("import no_such_module", "Runtime.ImportModuleError", "Unable to import module 'app': No module named"),
        ("def handler(:", "Runtime.UserCodeSyntaxError", "Syntax error in module 'app': "),
        ("other = 1", "Runtime.HandlerNotFound", "Handler 'handler' missing on module 'app'"),
        ("raise ValueError('bad setting')", "ValueError", "bad setting"),
    ],
)
def test_an_error_of_the_init_phase_is_reported_and_logged(start: Start, code: str, kind: str, message: str) -> None:
    outcome = invoke(start(f"print('on the way')\n{code}"))
    found = error(outcome)
    assert found["errorType"] == kind
    assert found["errorMessage"].startswith(message)
    if kind == "ValueError":
        assert "app.py" in found["stackTrace"][0]
    if kind != "Runtime.UserCodeSyntaxError":
        assert outcome.log.startswith("on the way\n")
    assert f"[ERROR] {kind}: {message}" in outcome.log
    assert re.search(
        rf"INIT_REPORT Init Duration: \d+\.\d\d ms\tPhase: init\tStatus: error\tError Type: {kind}\n", outcome.log
    )


def test_a_handlers_name_without_a_dot_is_an_init_error(start: Start) -> None:
    assert error(invoke(start("", handler="app")))["errorType"] == "Runtime.MalformedHandlerName"


def test_the_init_phase_is_tried_again_by_the_invocation_after_a_failed_one(start: Start, tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    function = start(f"""
        import pathlib
        if not pathlib.Path({str(flag)!r}).exists(): raise RuntimeError("not yet")
        def handler(event, context): return "now"
    """)
    assert error(invoke(function))["errorMessage"] == "not yet"
    flag.touch()
    assert answer(invoke(function)) == "now"


def test_an_init_phase_that_takes_too_long_is_ended(start: Start) -> None:
    outcome = invoke(start("while True: pass", init_timeout_s=0.5))
    assert error(outcome)["errorType"] == "Sandbox.Timedout"
    assert "Phase: init\tStatus: timeout" in outcome.log


def test_an_exit_in_the_init_phase_is_reported(start: Start) -> None:
    assert error(invoke(start("import sys; sys.exit(4)"))) == {
        "errorType": "Runtime.ExitError",
        "errorMessage": "RequestId: req-1 Error: Runtime exited with error: exit status 4",
    }


@pytest.mark.parametrize(
    ("death", "told"),
    [
        ("os._exit(3)", "Runtime exited with error: exit status 3"),
        ("sys.exit(0)", "Runtime exited without providing a reason"),
        ("os.kill(os.getpid(), 9)", "Runtime exited with error: signal: killed"),
        ("os.abort()", "Runtime exited with error: signal: aborted"),
    ],
)
def test_a_crash_is_reported_and_the_next_invocation_works(start: Start, death: str, told: str) -> None:
    function = start(f"""
        import os, sys
        def handler(event, context):
            if event:
                print("last words", end="")
                {death}
            return os.getpid()
    """)
    pid = answer(invoke(function))
    outcome = invoke(function, 1, request_id="req-2")
    assert error(outcome) == {"errorType": "Runtime.ExitError", "errorMessage": f"RequestId: req-2 Error: {told}"}
    assert f"last words\nRequestId: req-2 Error: {told}\nRuntime.ExitError\nEND" in outcome.log
    assert answer(invoke(function)) != pid


def test_a_process_that_dies_between_invocations_is_replaced_and_its_last_words_are_kept(start: Start) -> None:
    function = start("""
        import os, threading
        def die(): print("died idle"); os._exit(1)
        def handler(event, context):
            if event: threading.Timer(0.1, die).start()
            return os.getpid()
    """)
    pid = answer(invoke(function, 1))
    until(lambda: gone(pid))
    until(lambda: not function._boot.process.alive)  # type: ignore[union-attr] # it was booted: it has answered
    outcome = invoke(function)
    assert answer(outcome) != pid
    assert outcome.log.startswith("died idle\nSTART")


# Timeouts, groups, and the end


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


def test_a_timeout_ends_the_whole_group_and_the_next_invocation_gets_a_fresh_process(start: Start) -> None:
    function = start(SPAWNS_A_CHILD, timeout_s=1)
    began = time.monotonic()
    outcome = invoke(function, "hang", request_id="req-5")
    assert 1 <= time.monotonic() - began < 5
    message = error(outcome)["errorMessage"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z req-5 Task timed out after 1\.00 seconds", message)
    assert set(error(outcome)) == {"errorMessage"}
    assert f"{message}\nEND RequestId: req-5\n" in outcome.log
    assert outcome.log.endswith("\tStatus: timeout\n")
    parent, child = map(int, re.search(r"pids (\d+) (\d+)", outcome.log).groups())  # type: ignore[union-attr] # as above
    until(lambda: gone(parent) and gone(child))
    assert answer(invoke(function))[0] != parent


def test_a_crash_ends_the_children_too(start: Start) -> None:
    function = start(SPAWNS_A_CHILD)
    _, child = answer(invoke(function))
    error(invoke(function, "crash"))
    until(lambda: gone(child))


def test_stop_leaves_no_process_no_thread_and_no_file(start: Start) -> None:
    before = set(threading.enumerate())
    function = start(SPAWNS_A_CHILD)
    pids = answer(invoke(function))
    tmp = function._tmp
    assert tmp.is_dir()
    function.stop()
    until(lambda: all(map(gone, pids)))
    until(lambda: not set(threading.enumerate()) - before)
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
    until(lambda: len(threading.enumerate()) <= len(threads))
    until(lambda: psutil.Process().num_fds() <= before)


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
    until(flag.exists)
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
def test_a_function_ends_with_its_children_when_the_executor_is_killed(tmp_path: Path, state: str) -> None:
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
                until(lambda: bool(list(tmp_path.glob("lambda-tmp-*/busy"))))
        finally:
            executor.kill()
    until(lambda: all(map(gone, pids)))


def test_a_stopped_executors_function_cannot_wait_for_ever(start: Start) -> None:
    """The lifeline alone ends it: here the Runtime API is still there."""
    function = start("import os\ndef handler(event, context): return os.getpid()")
    pid = answer(invoke(function))
    os.close(os.dup(0))
    assert function._boot
    lifeline = function._boot.process._lifeline
    replacement = os.open(os.devnull, os.O_RDONLY)
    os.dup2(replacement, lifeline)  # closes our end; the number stays taken until the process has ended
    os.close(replacement)
    until(lambda: gone(pid))


# The log


def test_the_log_has_lambdas_lines_around_the_functions_output_in_order(start: Start) -> None:
    function = start("""
        import os, subprocess, sys
        print("loading")
        def handler(event, context):
            for n in range(3):
                print("out", n)
                print("err", n, file=sys.stderr)
            subprocess.run(["echo", "child"])
            os.write(1, b"no end of line")
    """)
    first, second = invoke(function, request_id="req-1").log, invoke(function, request_id="req-2").log
    number = r"\d+\.\d\d"
    body = "out 0\nerr 0\nout 1\nerr 1\nout 2\nerr 2\nchild\nno end of line\n"
    report = rf"Duration: {number} ms\tBilled Duration: \d+ ms\tMemory Size: 256 MB\tMax Memory Used: [1-9]\d* MB"
    assert re.fullmatch(
        rf"loading\nSTART RequestId: req-1 Version: 7\n{body}END RequestId: req-1\n"
        rf"REPORT RequestId: req-1\t{report}\tInit Duration: {number} ms\n",
        first,
    )
    assert re.fullmatch(
        rf"START RequestId: req-2 Version: 7\n{body}END RequestId: req-2\nREPORT RequestId: req-2\t{report}\n", second
    )


def test_duration_and_billed_duration_are_those_of_the_handler(start: Start) -> None:
    function = start("import time\ndef handler(event, context): time.sleep(0.3)")
    invoke(function)
    duration, billed = re.search(r"Duration: (\S+) ms\tBilled Duration: (\d+) ms", invoke(function).log).groups()  # type: ignore[union-attr] # as above
    assert 300 <= float(duration) < 3000
    assert int(billed) - 1 < float(duration) <= int(billed)


def test_memory_used_is_the_most_there_was(start: Start) -> None:
    function = start("def handler(event, context): len(bytearray(event))")
    used = [int(re.search(r"Max Memory Used: (\d+) MB", invoke(function, n).log)[1]) for n in (0, 100 << 20, 0)]  # type: ignore[index] # as above
    assert used[0] + 50 < used[1] <= used[2]


def test_the_logging_module_writes_lambdas_format(start: Start) -> None:
    function = start("""
        import logging
        def handler(event, context): logging.warning("careful, %s", "Jürgen")
    """)
    expected = r"\[WARNING\]\t\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z\treq-1\tcareful, Jürgen\n"
    assert re.search(expected, invoke(function).log)


def test_output_that_is_not_utf8_is_kept_as_far_as_it_can_be(start: Start) -> None:
    function = start("import os\ndef handler(event, context): os.write(2, b'caf\\xe9 \\xff\\n')")
    assert "caf\ufffd \ufffd\n" in invoke(function).log


def test_much_output_neither_blocks_nor_is_lost(start: Start) -> None:
    function = start("def handler(event, context):\n    for n in range(50_000): print('line', n)")
    lines = invoke(function).log.splitlines()
    assert lines[1:-2] == [f"line {n}" for n in range(50_000)]


def test_output_that_only_the_pipe_holds_yet_belongs_to_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_Output, "_pump", lambda self: None)
    reading, writing = os.pipe()
    output = _Output(reading)
    os.write(writing, b"just before the answer\n")
    assert output.take() == "just before the answer\n"
    os.close(reading)
    os.close(writing)


def test_endless_output_is_cut_before_it_fills_the_memory(start: Start) -> None:
    function = start("def handler(event, context):\n    for _ in range(event): print('x' * 1023)")
    log = invoke(function, MAX_LOG_BYTES // 1024 + 100).log
    assert "[the rest of this output was dropped]\nEND" in log
    assert len(log) < MAX_LOG_BYTES + 1000


def test_output_beyond_the_limit_is_read_but_not_kept() -> None:
    reading, writing = os.pipe()
    output = _Output(reading)
    with os.fdopen(writing, "wb") as pipe:
        pipe.write(b"x" * 2 * MAX_LOG_BYTES)
    until(lambda: not output._open)
    assert len(output._data) <= MAX_LOG_BYTES + 65536
    log = output.take()
    assert len(log) < MAX_LOG_BYTES + 1000


# The process's surroundings


def test_the_code_comes_before_layers_and_a_later_layer_before_an_earlier_one(start: Start, tmp_path: Path) -> None:
    name = f"lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
    first = layer(tmp_path / "first", a="which = 'first'", b="which = 'first'", c="which = 'first'", app="")
    second = layer(tmp_path / "second", b="which = 'second'", json="which = 'not the standard one'")
    (first / "python" / name).mkdir(parents=True)
    (first / "python" / name / "c.py").write_text("which = 'versioned'")
    code = """
        import a, b, c, os, sys
        def handler(event, context): return [a.which, b.which, c.which, sys.path[0] == os.getcwd(), sys.argv[1:]]
    """
    assert answer(invoke(start(code, layers=(first, second)))) == ["first", "second", "versioned", True, []]


def test_neither_the_hosts_environment_nor_its_home_reaches_the_function(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_OF_THE_HOST", "x")
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    monkeypatch.setenv("AWS_PROFILE", "production")
    declared = {"STAGE": "test", "EMPTY": "", "LANG": "C.UTF-8"}
    function = start(
        """
        import os, pathlib, site, sys, tempfile
        environment = dict(os.environ)
        def handler(event, context):
            return {
                "environment": environment,
                "cwd": os.getcwd(),
                "home": str(pathlib.Path.home()),
                "path": sys.path,
                "tmp": tempfile.gettempdir(),
                "trace": os.environ["_X_AMZN_TRACE_ID"],
                "user_site": site.ENABLE_USER_SITE,
                "fds": [fd for fd in range(3, 50) if os.path.exists(f"/dev/fd/{fd}")],
            }
        """,
        environment=declared,
    )
    told = answer(invoke(function))
    environment = told["environment"]
    code = environment["LAMBDA_TASK_ROOT"]
    assert told["cwd"] == code == told["path"][0]
    assert told["home"] == told["tmp"] == environment["TMPDIR"] == str(function._tmp)
    assert told["trace"] == "Root=1-2-3"
    assert told["user_site"] is False
    assert not [entry for entry in told["path"] if entry.endswith("process_executor")]
    assert len(told["fds"]) <= 3, "the lifeline, the connection to the Runtime API, and the folder that lists these"
    assert environment.items() >= (LAMBDA_SETS | declared | {"TZ": ":UTC"}).items()
    assert environment.keys() - LAMBDA_SETS.keys() == {
        *("STAGE", "EMPTY", "LANG", "TZ", "PATH", "LD_LIBRARY_PATH", "TMPDIR", "HOME", "_HANDLER"),
        *("LAMBDA_TASK_ROOT", "LAMBDA_RUNTIME_DIR", "AWS_LAMBDA_RUNTIME_API"),
    }


def test_a_function_cannot_wait_for_the_executors_standard_input(start: Start) -> None:
    reading, writing = os.pipe()
    saved = os.dup(0)
    os.dup2(reading, 0)
    try:
        function = start("import sys\ndef handler(event, context): return sys.stdin.read()", timeout_s=5)
        assert answer(invoke(function)) == ""
    finally:
        os.dup2(saved, 0)
        for fd in (reading, writing, saved):
            os.close(fd)


def test_each_environment_has_a_runtime_api_and_a_temporary_folder_of_its_own(start: Start) -> None:
    code = "import os\ndef handler(event, context): return [os.environ['AWS_LAMBDA_RUNTIME_API'], os.environ['TMPDIR']]"
    (one_api, one_tmp), (two_api, two_tmp) = answer(invoke(start(code))), answer(invoke(start(code)))
    assert one_api.startswith("127.0.0.1:")
    assert one_api != two_api
    assert one_tmp != two_tmp
