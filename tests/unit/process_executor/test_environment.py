"""What a real function process answers, over the real Runtime API, and what surrounds it."""

import os
import re
import sys
from pathlib import Path

import pytest
from tests.unit.process_executor.functions import ARN, LAMBDA_SETS, Start, answer, error, gone, invoke
from tests.waiting import wait_until

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


def test_a_handlers_exception_is_reported_and_the_process_stays(start: Start) -> None:
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


def test_the_invocation_after_a_failed_init_phase_tries_it_again(start: Start, tmp_path: Path) -> None:
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


def test_a_process_dying_idle_is_replaced_and_its_output_kept(start: Start) -> None:
    function = start("""
        import os, threading
        def die(): print("died idle"); os._exit(1)
        def handler(event, context):
            if event: threading.Timer(0.1, die).start()
            return os.getpid()
    """)
    pid = answer(invoke(function, 1))
    wait_until(lambda: gone(pid))
    wait_until(lambda: not function._boot.process.alive)  # type: ignore[union-attr] # it was booted: it has answered
    outcome = invoke(function)
    assert answer(outcome) != pid
    assert outcome.log.startswith("died idle\nSTART")


# The process's surroundings


def layer(folder: Path, **modules: str) -> Path:
    (folder / "python").mkdir(parents=True)
    for name, code in modules.items():
        (folder / "python" / f"{name}.py").write_text(code)
    return folder


def test_code_comes_before_layers_and_later_layers_before_earlier(start: Start, tmp_path: Path) -> None:
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


def test_each_environment_has_its_own_runtime_api_and_temporary_folder(start: Start) -> None:
    code = "import os\ndef handler(event, context): return [os.environ['AWS_LAMBDA_RUNTIME_API'], os.environ['TMPDIR']]"
    (one_api, one_tmp), (two_api, two_tmp) = answer(invoke(start(code))), answer(invoke(start(code)))
    assert one_api.startswith("127.0.0.1:")
    assert one_api != two_api
    assert one_tmp != two_tmp
