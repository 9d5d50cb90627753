"""The operations API in template.yaml: its routes, its limits, and what its gateway answers."""

import json
import re
from collections.abc import Sequence
from typing import Any

import pytest
from tests.template import FUNCTIONS, RESOURCES, ROOT, TEMPLATE, declared, timeout

from control_plane.api.commands import command_routes
from control_plane.api.dispatch import Api
from control_plane.api.reads import read_routes
from control_plane.api.routes import Route
from control_plane.api.scopes import Scope
from control_plane.platform.telemetry import Telemetry

API = RESOURCES["OpsApi"]["Properties"]
NEVER: Any = None
"""What a route that is not called is made with."""


HEADS = {"/health", "/events/{event_id}"}
"""Routes that the gateway passes HEAD to: each is a statement of the function's policy, whose size has a limit."""
MOST_POLICY_BYTES = 20_480
STATEMENT_BYTES = 420
"""What SAM's statement for one route takes, with the longest names of an account, a stack and a region."""


def routes_of(function: str) -> Sequence[Route]:
    if function == "CommandApiFunction":
        return command_routes(lambda: NEVER, {}, lambda: NEVER)
    return read_routes(lambda: NEVER, lambda: NEVER, lambda: NEVER, lambda: NEVER, lambda _: NEVER)


def api_events(function: str) -> list[dict[str, Any]]:
    return [event["Properties"] for event in FUNCTIONS[function]["Events"].values() if event["Type"] == "Api"]


@pytest.mark.parametrize("function", ["OpsApiFunction", "CommandApiFunction"])
def test_the_apis_routes_are_exactly_those_of_the_function(function: str) -> None:
    events = api_events(function)
    declared = [(event["Method"], event["Path"]) for event in events]
    own = {(route.method, route.path) for route in routes_of(function)}
    assert set(declared) == own | {("HEAD", path) for method, path in own if method == "GET" and path in HEADS}
    assert len(declared) == len(set(declared))
    # An emulator answers 403 to {proxy+}; and on AWS, each unknown path that the gateway passes on costs money.
    assert not [path for _, path in declared if "+" in path]
    assert {event["RestApiId"]["Ref"] for event in events} == {"OpsApi"}
    assert len(declared) * STATEMENT_BYTES < MOST_POLICY_BYTES


def both() -> list[Route]:
    return [*routes_of("OpsApiFunction"), *routes_of("CommandApiFunction")]


def test_the_page_lists_every_route() -> None:
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    rows = [f"| `{route.name}` | {route.scope} | {route.summary} |" for route in both()]
    assert [line for line in page.splitlines() if re.match(r"\| `[A-Z]+ /", line)] == rows


def test_no_route_is_answered_by_both_functions() -> None:
    Api(both(), guard=lambda _: NEVER, telemetry=Telemetry("test"))


def test_only_health_the_document_and_the_page_are_public() -> None:
    routes = both()
    assert {route.path for route in routes if route.scope is Scope.PUBLIC} == {
        "/health",
        "/openapi.json",
        "/ui",
        "/ui/{asset}",
    }
    assert not any(route.changes for route in routes_of("OpsApiFunction"))
    assert all(route.changes for route in routes_of("CommandApiFunction"))


def test_the_gateway_lets_few_requests_for_health_through() -> None:
    limits = {(one["ResourcePath"], one["HttpMethod"]): one for one in API["MethodSettings"]}
    assert limits.keys() == {
        ("/*", "*"),
        ("/~1health", "GET"),
        ("/~1health", "HEAD"),
        ("/~1openapi.json", "GET"),
        ("/~1ui", "GET"),
        ("/~1ui~1{asset}", "GET"),
        ("/~1ingestion~1run", "POST"),
        ("/~1relay~1run", "POST"),
        ("/~1tokens", "POST"),
        ("/~1decisions~1{decision_id}~1replay", "POST"),
        ("/~1policies~1test", "POST"),
    }
    # Each request at work holds a connection to Postgres.
    assert 0 < limits["/*", "*"]["ThrottlingRateLimit"] <= limits["/*", "*"]["ThrottlingBurstLimit"] <= 20
    # The requests of strangers that are at work at a time leave concurrency to those with a token.
    health = [one for (path, _), one in limits.items() if path in {"/~1health", "/~1openapi.json"}]
    assert sum(one["ThrottlingBurstLimit"] for one in health) < 10


@pytest.mark.parametrize("name", ["UnauthorizedRequestsAlarm", "UnauthorizedCommandsAlarm"])
def test_refused_tokens_raise_an_alarm(name: str) -> None:
    alarm = RESOURCES[name]["Properties"]
    assert (alarm["Namespace"], alarm["MetricName"], alarm["Statistic"]) == (
        "ControlPlane",
        "UnauthorizedRequests",
        "Sum",
    )
    assert {one["Name"] for one in alarm["Dimensions"]} == {"service", "function_name"}


def test_the_gateway_answers_problem_documents_and_404_without_a_route() -> None:
    responses = API["GatewayResponses"]
    assert responses.keys() == {"MISSING_AUTHENTICATION_TOKEN", "THROTTLED", "DEFAULT_4XX", "DEFAULT_5XX"}
    assert responses["MISSING_AUTHENTICATION_TOKEN"]["StatusCode"] == 404
    for name, response in responses.items():
        headers = response["ResponseParameters"]["Headers"]
        assert headers["Content-Type"] == "'application/problem+json'"
        assert headers["Cache-Control"] == "'no-store'"
        [template] = response["ResponseTemplates"].values()
        document = json.loads(template.replace("$context.error.messageString", '"a quoted text"'))
        assert document["type"] == "about:blank"
        if name in {"MISSING_AUTHENTICATION_TOKEN", "THROTTLED"}:
            assert document["status"] == response["StatusCode"]


def test_the_apis_url_is_a_base_for_routes() -> None:
    assert API["StageName"] == "v1"
    assert TEMPLATE["Outputs"]["ApiUrl"]["Value"] == {
        "Fn::Sub": "https://${OpsApi}.execute-api.${AWS::Region}.${AWS::URLSuffix}/${OpsApi.Stage}"
    }


@pytest.mark.parametrize("function", ["OpsApiFunction", "CommandApiFunction"])
def test_the_api_answers_before_its_gateway_gives_up(function: str) -> None:
    assert timeout(function) < 29


def test_health_and_the_alarm_agree_on_the_oldest_age() -> None:
    alarm = RESOURCES["OldestPendingAlarm"]["Properties"]
    assert int(declared("OpsApiFunction")["HEALTH_MAX_PENDING_AGE_SECONDS"]) == alarm["Threshold"]
