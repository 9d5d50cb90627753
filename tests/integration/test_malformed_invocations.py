"""Every function, invoked with JSON that is not its kind of event: it logs one clear line and does no harm."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from psycopg import Connection
from tests.integration.functions.invoked import NEEDED, FakeContext, Function, count, record_of, tick

from control_plane.model.errors import ControlPlaneError, MalformedInvocation

ROOT = Path(__file__).parents[2]
type Load = Callable[[str], Function]

FUNCTIONS = [*NEEDED, "ops_api", "retrial"]
RECORD = {"messageId": "1", "body": "{}", "attributes": {}, "messageAttributes": {}}
REQUEST = {"httpMethod": "GET", "path": "/health"}


def each(*values: Any) -> tuple[Any, ...]:
    """Returns the values, typed as values of any type."""
    return values


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch, database: Any) -> Iterator[Load]:
    with ExitStack() as stack:

        def load(name: str) -> Function:
            variables = {
                "DATABASE_URL": database.app_url,
                "API_TOKEN": "token",
                "RETRIAL_FUNCTION": "retrial",
                **NEEDED.get(name, {}),
            }
            for variable, value in variables.items():
                monkeypatch.setenv(variable, value)
            function = Function(name)
            stack.callback(function.close)
            return function

        yield load


def invoke(function: Function, event: Any) -> Any:
    """Invokes the function without the stand-in for a missing event."""
    function.forget_logs()
    return function.module.handler(event, FakeContext())


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize(
    ("event", "kind"),
    [
        (None, "null"),
        ([], "a list"),
        ([{}], "a list"),
        ("text", "a string"),
        (1, "a number"),
        (1.5, "a number"),
        (True, "a boolean"),
    ],
)
def test_an_event_that_is_no_object_is_named(load: Load, name: str, event: Any, kind: str) -> None:
    function = load(name)
    with pytest.raises(MalformedInvocation, match=rf"the event is {kind}: it must be a JSON object; events/\w+\.json"):
        invoke(function, event)
    [error] = function.errors
    assert error["message"] == "MalformedInvocation"
    assert "exception" not in error


@pytest.mark.parametrize(
    ("name", "event", "named"),
    [
        *[
            ("ingestion", {"symbols": value}, "symbols of the event")
            for value in each("AAPL", 1, {}, [None], [1], [[]], True)
        ],
        *[
            ("relay", {"linger_seconds": value}, "linger_seconds of the event")
            for value in each("1", [], {}, True, -1, 1e9)
        ],
        ("signal_lab", {}, "no list of Records"),
        *[("signal_lab", {"Records": value}, "no list of Records") for value in each(None, {}, "text", 1)],
        *[("retrial", value, "asks for no retrial") for value in each({}, {"kind": "x"}, {"kind": "decision"})],
        ("retrial", {"kind": "decision", "decision_id": "7"}, "decision_id"),
        ("retrial", {"kind": "policies", "domain": None, "policies": 7}, "policies"),
        ("ops_api", {}, "no httpMethod and path"),
        *[("ops_api", REQUEST | {"httpMethod": value}, "no httpMethod and path") for value in each(None, 1, [], {})],
        *[("ops_api", REQUEST | {"path": value}, "no httpMethod and path") for value in each(None, 1, [], {})],
        *[("ops_api", REQUEST | {"resource": value}, "resource") for value in each(1, [], {}, True)],
        *[("ops_api", REQUEST | {"headers": value}, "header") for value in each("text", 1, [], {"a": 1}, {"a": None})],
        *[
            ("ops_api", REQUEST | {"multiValueHeaders": value}, "eader")
            for value in each("text", [1], {"a": "b"}, {"a": None}, {"a": [1]}, {"a": [None]})
        ],
        *[("ops_api", REQUEST | {"pathParameters": value}, "pathParameters") for value in each("text", [], {"a": 1})],
        *[("ops_api", REQUEST | {"requestContext": value}, "requestContext") for value in each("text", [], 1)],
        ("ops_api", REQUEST | {"requestContext": {"identity": []}}, "identity"),
        *[("ops_api", REQUEST | {"queryStringParameters": value}, "query") for value in each("text", 1, [1], {"a": 1})],
        *[("ops_api", REQUEST | {"multiValueQueryStringParameters": value}, "uery") for value in each([1], {"a": "b"})],
        *[("ops_api", REQUEST | {"body": value}, "body") for value in each(1, [1], {"a": 1})],
        ("ops_api", REQUEST | {"body": "no Base64", "isBase64Encoded": True}, "Base64"),
        ("ops_api", REQUEST | {"resource": "/events/{event_id}"}, "event_id"),
    ],
)
def test_a_field_of_the_wrong_type_is_named(load: Load, name: str, event: Any, named: str) -> None:
    function = load(name)
    with pytest.raises(ControlPlaneError, match=named):
        invoke(function, event)
    assert function.errors[0]["error"].count("\n") == 0
    assert "exception" not in function.errors[0]


@pytest.mark.parametrize("identity", [None, {}, {"sourceIp": None}, {"sourceIp": 1}, {"sourceIp": []}])
def test_a_request_without_an_address_is_answered(load: Load, identity: Any) -> None:
    answer = invoke(load("ops_api"), REQUEST | {"requestContext": {"identity": identity}})
    assert answer["statusCode"] == 200


@pytest.mark.parametrize("name", ["migration", "maintenance"])
def test_a_function_that_ignores_its_event_takes_any_object(
    monkeypatch: pytest.MonkeyPatch, database: Any, load: Load, name: str
) -> None:
    function = load(name)
    monkeypatch.setenv("DATABASE_URL", database.owner_url)
    assert invoke(function, {"symbols": 1, "Records": None})


@pytest.mark.parametrize(
    "bad", [None, [], "text", 1, {}, {"messageId": None}, {"messageId": ""}, {"messageId": 7, "body": "{}"}]
)
def test_a_record_without_an_id_stops_no_other(load: Load, app: Connection[Any], bad: Any) -> None:
    function = load("signal_lab")
    records = [record_of(tick(), 1), bad, record_of(tick(minute=1), 2)]
    assert invoke(function, {"Records": records}) == {"batchItemFailures": []}
    assert count(app, "processed_events") == 2
    [error] = function.errors
    assert (error["subscription"], error["state"]) == ("signal_lab", "failed")
    assert "record 1 of the batch" in error["error"]


@pytest.mark.parametrize(
    "wrong",
    [
        *[
            {"body": value}
            for value in each(None, [], {}, 1, True, "", "text", "null", "[]", "{}", "\0", "[" * 100_000)
        ],
        *[{"attributes": value, "body": "{}"} for value in each(None, [], "text", 1, {"ApproximateReceiveCount": []})],
        *[
            {"messageAttributes": value, "body": "{}"}
            for value in each(
                None, [], "text", 1, {"trace_id": None}, {"trace_id": []}, {"trace_id": {"stringValue": 1}}
            )
        ],
    ],
)
def test_a_malformed_record_goes_back_alone(load: Load, app: Connection[Any], wrong: dict[str, Any]) -> None:
    function = load("signal_lab")
    records = [record_of(tick(), 1), RECORD | wrong | {"messageId": "bad"}, record_of(tick(minute=1), 2)]
    assert invoke(function, {"Records": records}) == {"batchItemFailures": [{"itemIdentifier": "bad"}]}
    assert count(app, "processed_events") == 2
    [error] = function.errors
    assert (error["message"], error["message_id"]) == ("ContractViolation", "bad")


@pytest.mark.parametrize(
    ("variable", "value", "wanted"),
    [
        ("POWERTOOLS_LOG_LEVEL", "verbose", "DEBUG, INFO, WARNING, ERROR or CRITICAL"),
        ("LOG_LEVEL", "loud", "DEBUG, INFO, WARNING, ERROR or CRITICAL"),
        ("POWERTOOLS_LOGGER_SAMPLE_RATE", "often", "a number from 0 to 1"),
        ("POWERTOOLS_LOGGER_SAMPLE_RATE", "2", "a number from 0 to 1"),
        ("POWERTOOLS_DEBUG", "perhaps", "true or false"),
        ("POWERTOOLS_DEV", "perhaps", "true or false"),
        ("POWERTOOLS_LOG_DEDUPLICATION_DISABLED", "perhaps", "true or false"),
        ("POWERTOOLS_METRICS_DISABLED", "perhaps", "true or false"),
    ],
)
def test_a_variable_that_powertools_cannot_read_is_named(variable: str, value: str, wanted: str) -> None:
    code = """
import app, types
try:
    app.handler({}, types.SimpleNamespace(aws_request_id="1", function_name="f"))
except Exception as error:
    raise SystemExit(f"{type(error).__name__}: {error}")
"""
    environ = {name: text for name, text in os.environ.items() if not name.startswith(("POWERTOOLS", "LOG_LEVEL"))}
    environ["PYTHONPATH"] = os.pathsep.join(str(ROOT / part) for part in ("functions/signal_lab", "layers/core"))
    result = subprocess.run(
        [sys.executable, "-c", code], env=environ | {variable: value}, capture_output=True, text=True, check=False
    )
    said = f"{variable} is {value!r}: it must be {wanted}"
    assert result.stderr.strip().splitlines()[-1] == f"ConfigurationError: {said}"
    assert [json.loads(line)["error"] for line in result.stdout.splitlines() if '"ERROR"' in line] == [said]
