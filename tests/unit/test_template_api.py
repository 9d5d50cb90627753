"""The operations API in template.yaml: its routes, its limits, and what its gateway answers."""

import ast
import json

from tests.template import FUNCTIONS, RESOURCES, ROOT, TEMPLATE, declared, timeout

API = RESOURCES["OpsApi"]["Properties"]


def test_the_apis_routes_are_exactly_those_of_the_function() -> None:
    events = [event for event in FUNCTIONS["OpsApiFunction"]["Events"].values() if event["Type"] == "Api"]
    declared = {(event["Properties"]["Method"], event["Properties"]["Path"]) for event in events}
    module = ast.parse((ROOT / "functions" / "ops_api" / "app.py").read_text(encoding="utf-8"))
    calls = [node for node in ast.walk(module) if isinstance(node, ast.Call)]
    routes = [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "Route"]
    own = {tuple(ast.literal_eval(argument) for argument in route.args[:2]) for route in routes}
    assert declared == own | {("HEAD", path) for method, path in own if method == "GET"}
    # An emulator answers 403 to {proxy+}; and on AWS, each unknown path that the gateway passes on costs money.
    assert not [path for _, path in declared if "+" in path]
    for event in events:
        assert event["Properties"]["RestApiId"] == {"Ref": "OpsApi"}


def test_all_of_the_apis_routes_but_health_are_guarded() -> None:
    text = (ROOT / "functions" / "ops_api" / "app.py").read_text(encoding="utf-8")
    calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
    routes = [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "Route"]
    opened = [call for call in routes if "is_open" in {keyword.arg for keyword in call.keywords}]
    assert [ast.literal_eval(call.args[1]) for call in opened] == ["/health"]


def test_the_gateway_lets_few_requests_for_health_through() -> None:
    limits = {(one["ResourcePath"], one["HttpMethod"]): one for one in API["MethodSettings"]}
    assert limits.keys() == {("/*", "*"), ("/~1health", "GET"), ("/~1health", "HEAD")}
    # Each request at work holds a connection to Postgres.
    assert 0 < limits["/*", "*"]["ThrottlingRateLimit"] <= limits["/*", "*"]["ThrottlingBurstLimit"] <= 20
    # The requests of strangers that are at work at a time leave concurrency to those with a token.
    health = [one for (path, _), one in limits.items() if path == "/~1health"]
    assert sum(one["ThrottlingBurstLimit"] for one in health) < 10


def test_refused_tokens_raise_an_alarm() -> None:
    alarm = RESOURCES["UnauthorizedRequestsAlarm"]["Properties"]
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


def test_the_api_answers_before_its_gateway_gives_up() -> None:
    assert timeout("OpsApiFunction") < 29


def test_health_and_the_alarm_agree_on_the_oldest_age() -> None:
    alarm = RESOURCES["OldestPendingAlarm"]["Properties"]
    assert int(declared("OpsApiFunction")["HEALTH_MAX_PENDING_AGE_SECONDS"]) == alarm["Threshold"]
