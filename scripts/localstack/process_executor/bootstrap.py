"""The runtime: loads a Python function's handler and runs its invocations, one after another, over the Runtime API.

It is run by path, under the functions' own interpreter: `python bootstrap.py <lifeline fd> [<layer> ...]`, with the
layers in the function's order. It follows awslambdaric, AWS's own runtime, which has no wheels for macOS, and uses only
the standard library.
"""

import http.client
import importlib
import json
import logging
import math
import os
import re
import signal
import site
import sys
import threading
import time
import traceback
import uuid
from collections.abc import Callable
from decimal import Decimal
from types import SimpleNamespace, TracebackType
from typing import Any, NoReturn

_API = "/2018-06-01/runtime"
_DECIMAL = uuid.uuid4().hex  # This marks a number that json itself cannot write.
_request_id = ""

type Handler = Callable[[Any, "LambdaContext"], Any]


class FaultError(Exception):
    """Raised if the runtime, not the function's code, finds the error; `kind` is Lambda's name for it."""

    def __init__(self, kind: str, message: str, stack: list[str] | None = None) -> None:
        super().__init__(message)
        self.kind = kind
        self.stack = stack or []


class LambdaContext:
    """What a handler is told of its invocation.

    Source: https://docs.aws.amazon.com/lambda/latest/dg/python-context.html
    """

    def __init__(self, headers: http.client.HTTPMessage) -> None:
        self.aws_request_id = headers["Lambda-Runtime-Aws-Request-Id"]
        self.invoked_function_arn = headers["Lambda-Runtime-Invoked-Function-Arn"]
        self.function_name = os.environ.get("AWS_LAMBDA_FUNCTION_NAME")
        self.function_version = os.environ.get("AWS_LAMBDA_FUNCTION_VERSION")
        self.memory_limit_in_mb = os.environ.get("AWS_LAMBDA_FUNCTION_MEMORY_SIZE")
        self.log_group_name = os.environ.get("AWS_LAMBDA_LOG_GROUP_NAME")
        self.log_stream_name = os.environ.get("AWS_LAMBDA_LOG_STREAM_NAME")
        self.identity = SimpleNamespace(cognito_identity_id=None, cognito_identity_pool_id=None)
        self.client_context = _client_context(headers["Lambda-Runtime-Client-Context"])
        self._deadline_ms = int(headers["Lambda-Runtime-Deadline-Ms"])

    def get_remaining_time_in_millis(self) -> int:
        """Milliseconds until the function times out; 0 when that has passed."""
        return max(0, self._deadline_ms - int(time.time() * 1000))

    def log(self, message: object) -> None:
        """Writes to the function's log unchanged, without a line end."""
        sys.stdout.write(str(message))


def _client_context(header: str | None) -> SimpleNamespace | None:
    if not header:
        return None
    given = json.loads(header)
    names = ("installation_id", "app_title", "app_version_name", "app_version_code", "app_package_name")
    client = given.get("client")
    return SimpleNamespace(
        custom=given.get("custom"),
        env=given.get("env"),
        client=None if client is None else SimpleNamespace(**{name: client.get(name) for name in names}),
    )


def _die_with_the_executor(lifeline: int) -> None:
    """Waits until the executor closes its end of the pipe, as the kernel does for a killed one; then ends the group."""
    while os.read(lifeline, 1):
        pass
    os.killpg(0, signal.SIGKILL)


def extend_import_path(code: str, layers: list[str]) -> None:
    """Puts the code, then the layers, before the runtime's own packages; runs their .pth files, as Lambda does.

    Lambda unpacks layers into /opt in their order, a later one over an earlier one, so the last layer comes first here.
    Source: https://docs.aws.amazon.com/lambda/latest/dg/packaging-layers.html
    """
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    latest_first = layers[::-1]
    folders = [
        code,
        *(f"{layer}/python/lib/{version}/site-packages" for layer in latest_first),
        *(f"{layer}/python" for layer in latest_first),
    ]
    sys.path[:0] = folders
    for folder in folders:
        site.addsitedir(folder)


def load_handler(name: str) -> Handler:
    """Returns the function that `name` ("module.function") means.

    Raises FaultError, or what the module's own code raises.
    """
    module_name, dot, attribute = name.rpartition(".")
    if not dot:
        raise FaultError("Runtime.MalformedHandlerName", f"Bad handler '{name}': no dot between module and function")
    try:
        module = importlib.import_module(module_name.replace("/", "."))
    except ImportError as error:
        message = f"Unable to import module '{module_name}': {error}"
        raise FaultError("Runtime.ImportModuleError", message, _stack(error.__traceback__)) from error
    except SyntaxError as error:
        message = f"Syntax error in module '{module_name}': {error}"
        where = f'  File "{error.filename}" Line {error.lineno}\n    {error.text}'
        raise FaultError("Runtime.UserCodeSyntaxError", message, [where]) from error
    try:
        handler: Handler = getattr(module, attribute)
    except AttributeError as error:
        message = f"Handler '{attribute}' missing on module '{module_name}'"
        raise FaultError("Runtime.HandlerNotFound", message) from error
    return handler


def _stack(trace: TracebackType | None) -> list[str]:
    """Returns the stack without the frames of this runtime and the import system."""
    ours = (__file__, importlib.__file__, "<frozen importlib")
    return traceback.format_list([f for f in traceback.extract_tb(trace) if not f.filename.startswith(ours)])


def error_report(error: Exception) -> dict[str, Any]:
    """Returns the error as Lambda describes it: errorMessage, errorType, requestId, stackTrace."""
    if isinstance(error, FaultError):
        kind, stack = error.kind, error.stack
    else:
        kind, stack = type(error).__name__, _stack(error.__traceback__)
    return {"errorMessage": str(error), "errorType": kind, "requestId": _request_id, "stackTrace": stack}


def log_error(report: dict[str, Any]) -> None:
    """Writes the error into the function's log as one entry, with carriage returns between its lines."""
    lines = [f"[ERROR] {report['errorType']}: {report['errorMessage']}", "Traceback (most recent call last):"]
    lines += [line for frame in report["stackTrace"] for line in frame.splitlines()]
    sys.stdout.write("\r".join(line.replace("\n", "\r") for line in lines) + "\n")


def to_json(value: Any) -> str:
    """Returns the handler's result as Lambda's JSON: a Decimal is a number with all its digits, NaN is NaN."""

    def encode(item: object) -> object:
        if not isinstance(item, Decimal):
            raise TypeError(f"Object of type {type(item).__name__} is not JSON serializable")
        return math.nan if item.is_nan() else f"{_DECIMAL}{item}"

    return re.sub(f'"{_DECIMAL}([^"]*)"', r"\1", json.dumps(value, default=encode))


def answer(handler: Handler, payload: bytes, headers: http.client.HTTPMessage) -> tuple[str, bytes]:
    """Runs the handler; returns the kind of answer ("response" or "error") and its body."""
    try:
        try:
            event = json.loads(payload)
        except ValueError as error:
            raise FaultError("Runtime.UnmarshalError", f"Unable to unmarshal input: {error}") from error
        result = handler(event, LambdaContext(headers))
        if isinstance(result, bytes):
            return "response", result
        try:
            return "response", to_json(result).encode()
        except Exception as error:
            raise FaultError("Runtime.MarshalError", f"Unable to marshal response: {error}") from error
    except Exception as error:  # noqa: BLE001 - whatever a function raises is its answer
        report = error_report(error)
        log_error(report)
        return "error", json.dumps(report).encode()


class _RequestIdFilter(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        record.aws_request_id = _request_id
        return True


def set_up_logging() -> None:
    """Gives the root logger Lambda's handler and format."""
    logging.Formatter.converter = time.gmtime
    handler = logging.StreamHandler(sys.stdout)
    layout = "[%(levelname)s]\t%(asctime)s.%(msecs)03dZ\t%(aws_request_id)s\t%(message)s"
    handler.setFormatter(logging.Formatter(layout, "%Y-%m-%dT%H:%M:%S"))
    handler.addFilter(_RequestIdFilter())
    root = logging.getLogger()
    root.addHandler(handler)
    if level := os.environ.get("AWS_LAMBDA_LOG_LEVEL"):
        root.setLevel({"TRACE": "DEBUG"}.get(level.upper(), level.upper()))


def call(
    api: http.client.HTTPConnection, method: str, path: str, body: bytes | None = None
) -> tuple[http.client.HTTPMessage, bytes]:
    """The Runtime API's answer, headers and body. Without a whole one the group ends: nobody waits for it."""
    try:
        api.request(method, _API + path, body)
        response = api.getresponse()
        return response.headers, response.read()
    except (OSError, http.client.HTTPException):
        os.killpg(0, signal.SIGKILL)
        raise


def main(lifeline: int, layers: list[str]) -> NoReturn:
    """Runs the function that the environment names, until the executor ends it."""
    global _request_id  # noqa: PLW0603 - one process runs one invocation at a time
    threading.Thread(target=_die_with_the_executor, args=(lifeline,), name="lifeline", daemon=True).start()
    api = http.client.HTTPConnection(os.environ["AWS_LAMBDA_RUNTIME_API"])
    set_up_logging()
    extend_import_path(os.environ["LAMBDA_TASK_ROOT"], layers)
    try:
        handler = load_handler(os.environ["_HANDLER"])
    except Exception as error:  # noqa: BLE001 - a function's module may raise anything
        report = error_report(error)
        log_error(report)
        call(api, "POST", "/init/error", json.dumps(report).encode())
        sys.exit(1)
    while True:
        headers, payload = call(api, "GET", "/invocation/next")
        _request_id = headers["Lambda-Runtime-Aws-Request-Id"]
        os.environ["_X_AMZN_TRACE_ID"] = headers["Lambda-Runtime-Trace-Id"]
        kind, body = answer(handler, payload, headers)
        call(api, "POST", f"/invocation/{_request_id}/{kind}", body)


if __name__ == "__main__":
    fd, *layer_folders = sys.argv[1:]
    del sys.argv[1:]
    main(int(fd), layer_folders)
