"""GET /events: which tokens may read a timeline, which paths are routes, and what an error shows."""

import base64
import json
import uuid
from collections.abc import Iterator
from typing import Any

import boto3
import pytest
from google.protobuf.json_format import ParseDict
from moto import mock_aws
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from psycopg import Connection
from tests.checkout import ROOT
from tests.conftest import PASSWORD
from tests.integration import seeds
from tests.integration.ops_api.client import TOKEN, Client, Load

from control_plane.api import tokens
from control_plane.api.http import NotAProxyRequest
from control_plane.model.lifecycle import Accepted
from control_plane.ops.timeline import read_timeline

OLD = "an-old-token-that-was-long-enough-too"

# An event's timeline


def test_the_token_opens_an_events_timeline(api: Client, app: Connection[Any]) -> None:
    [event_id, _] = seeds.store(app, seeds.ticks(2))
    timeline = read_timeline(app, event_id)
    assert timeline is not None
    answer = api.timeline(event_id)
    assert (answer.status, answer.headers["Content-Type"]) == (200, "application/json")
    assert answer.body == json.loads(json.dumps(timeline.to_dict()))
    assert answer.body["event"]["event_id"] == str(event_id)
    assert api.timeline(str(event_id).upper()).body == answer.body


def test_an_event_is_shown_as_the_spans_of_its_trace(api: Client, app: Connection[Any]) -> None:
    [event_id] = seeds.store(app, seeds.ticks(1))
    seeds.settle(app, seeds.claim(app), Accepted("m-1"))
    answer = api.ask("GET", f"/events/{event_id}", query={"format": "otlp"})
    assert answer.status == 200
    request = ParseDict(with_ids_as_base64(answer.body), ExportTraceServiceRequest())
    spans = {span.name: span for one in request.resource_spans for span in one.scope_spans[0].spans}
    assert spans.keys() == {"create market.ticks", "send signal_lab"}
    assert spans["create market.ticks"].span_id == event_id.bytes[8:]
    assert spans["send signal_lab"].parent_span_id == event_id.bytes[8:]
    assert api.ask("GET", f"/events/{uuid.uuid4()}", query={"format": "otlp"}).status == 404
    assert "format" in api.ask("GET", f"/events/{event_id}", query={"format": "xml"}).detail(400)


def with_ids_as_base64(value: Any) -> Any:
    """Returns OTLP's JSON as protobuf's own mapping has it, where bytes are Base64."""
    if isinstance(value, list):
        return [with_ids_as_base64(one) for one in value]
    if not isinstance(value, dict):
        return value
    return {
        name: base64.b64encode(bytes.fromhex(one)).decode()
        if name.endswith(("raceId", "panId"))
        else with_ids_as_base64(one)
        for name, one in value.items()
    }


def test_an_unknown_event_is_not_found(api: Client) -> None:
    event_id = uuid.uuid4()
    assert api.timeline(event_id).detail(404) == f"There is no event {event_id}."


@pytest.mark.parametrize(
    "text",
    [
        "abc",
        "d0459ed7-a792-5533-b958-aaf36e18558",
        "d0459ed7a7925533b958aaf36e185583",
        "{d0459ed7-a792-5533-b958-aaf36e185583}",
        "urn:uuid:d0459ed7-a792-5533-b958-aaf36e185583",
        "d0459ed7-a792-5533-b958-aaf36e185583'--",
        "<script>",
        "x" * 5000,
    ],
)
def test_an_id_that_is_none_is_refused(api: Client, text: str) -> None:
    answer = api.timeline(text)
    assert "it must be a UUID" in answer.detail(400)
    assert text[:100] in answer.detail(400)
    assert len(answer.text) < 500


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": ""},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer "},
        {"Authorization": TOKEN},
        {"Authorization": f"Basic {TOKEN}"},
        {"Authorization": f"Token {TOKEN}"},
        {"Authorization": f"BearerX {TOKEN}"},
        {"X-Api-Key": TOKEN},
    ],
)
def test_without_a_bearer_token_the_database_is_not_asked(load: Load, headers: dict[str, str]) -> None:
    client = load(DATABASE_URL=f"postgresql://acp_reader:{PASSWORD}@127.0.0.1:1/database")
    answer = client.get(f"/events/{uuid.uuid4()}", headers=headers)
    assert "Authorization: Bearer TOKEN" in answer.detail(401)
    assert answer.headers["WWW-Authenticate"] == 'Bearer realm="ai-control-plane"'


@pytest.mark.parametrize(
    "token", ["wrong", TOKEN + "x", TOKEN[:-1], TOKEN.upper(), f"{TOKEN} {TOKEN}", "tökén", "\udcff"]
)
def test_another_token_lets_nobody_in(load: Load, token: str) -> None:
    client = load(DATABASE_URL=f"postgresql://acp_reader:{PASSWORD}@127.0.0.1:1/database")
    answer = client.timeline(uuid.uuid4(), token=token)
    assert answer.detail(401) == "This is not the token."
    assert answer.headers["WWW-Authenticate"] == 'Bearer realm="ai-control-plane", error="invalid_token"'


@pytest.mark.parametrize("values", [["Bearer wrong", f"Bearer {TOKEN}"], [f"Bearer {TOKEN}", "Bearer wrong"]])
def test_two_tokens_are_none(api: Client, values: list[str]) -> None:
    headers = {"Authorization": values}
    event = {"httpMethod": "GET", "path": f"/events/{uuid.uuid4()}", "multiValueHeaders": headers}
    assert api.send(event).status == 401


@pytest.mark.parametrize("name", ["authorization", "Authorization", "AUTHORIZATION"])
@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER "])
def test_names_of_headers_and_schemes_have_no_case(api: Client, name: str, scheme: str) -> None:
    path = f"/events/{uuid.uuid4()}"
    assert api.get(path, headers={name: f"{scheme} {TOKEN}"}).status == 404
    assert api.send({"httpMethod": "GET", "path": path, "headers": {name: f"{scheme} {TOKEN}"}}).status == 404


# Routes and errors


@pytest.mark.parametrize("path", ["/", "", "/healthz", "/health/", "/event", "/events/", "/events/a/b", "//health"])
def test_an_unknown_route_is_not_found(api: Client, path: str) -> None:
    assert api.get(path, headers={"Authorization": f"Bearer {TOKEN}"}).detail(404) == "There is no such route."


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "get "])
@pytest.mark.parametrize("path", ["/health", "/events/d0459ed7-a792-5533-b958-aaf36e185583"])
def test_a_route_answers_to_get_alone(api: Client, method: str, path: str) -> None:
    answer = api.get(path, method=method)
    assert answer.detail(405) == "This route answers to GET, HEAD, OPTIONS alone."
    assert answer.headers["Allow"] == "GET, HEAD, OPTIONS"


def test_an_unforeseen_error_is_only_logged(api: Client, app: Connection[Any], owner: Connection[Any]) -> None:
    [event_id] = seeds.store(app, seeds.ticks(1))
    owner.execute("ALTER TABLE processed_events RENAME TO something_else")
    owner.execute("ALTER TABLE circuit_breakers RENAME TO something_else_too")
    for path in (f"/events/{event_id}", "/health"):
        answer = api.get(path, headers={"Authorization": f"Bearer {TOKEN}"})
        assert answer.detail(500) == "Something went wrong; the log says what."
        assert "relation" not in answer.text
        [error] = api.function.errors
        assert error["message"] == "UndefinedTable"
        assert "exception" in error
        assert answer.body["instance"] == f"urn:uuid:{error['function_request_id']}"


def test_an_answer_too_large_for_lambda_is_an_error(api: Client, owner: Connection[Any]) -> None:
    row = owner.execute(
        "INSERT INTO events (event_id, event_type, source, occurred_at, ingested_at, schema_version, trace_id,"
        " payload_json) VALUES (gen_random_uuid(), 'LARGE', 'fake', now(), now(), 1, gen_random_uuid(),"
        " jsonb_build_object('text', repeat('x', 6400000))) RETURNING event_id"
    ).fetchone()
    assert row is not None
    assert "larger than Lambda can return" in api.timeline(row[0]).detail(500)


@pytest.mark.parametrize("event", [{}, {"Records": []}, {"version": "2.0", "rawPath": "/health"}])
def test_a_malformed_request_is_an_error_naming_a_sample(api: Client, event: dict[str, Any]) -> None:
    api.function.fails(NotAProxyRequest, "events/ops_api_health.json", event=event)


def test_the_samples_are_requests_as_api_gateway_sends_them(load: Load, database: Any, app: Connection[Any]) -> None:
    [event_id] = seeds.store(app, seeds.ticks(1))
    client = load(DATABASE_URL=database.url("acp_reader"))
    health, timeline = (
        (ROOT / "events" / f"{name}.json").read_text(encoding="utf-8") for name in ("ops_api_health", "ops_api_event")
    )
    assert client.send(json.loads(health)).status == 200
    assert client.send(json.loads(timeline)).detail(401) == "This is not the token."
    timeline = timeline.replace("d0459ed7-a792-5533-b958-aaf36e185583", str(event_id)).replace(
        "Bearer API_TOKEN", f"Bearer {TOKEN}"
    )
    assert client.send(json.loads(timeline)).body["event"]["event_id"] == str(event_id)


def test_a_route_is_known_by_name_behind_a_base_path(api: Client, app: Connection[Any]) -> None:
    [event_id] = seeds.store(app, seeds.ticks(1))
    request = {
        "httpMethod": "GET",
        "resource": "/events/{event_id}",
        "path": f"/ops/events/{event_id}",
        "pathParameters": {"event_id": str(event_id)},
        "headers": {"Authorization": f"Bearer {TOKEN}"},
    }
    assert api.send(request).status == 200


# The token as a secret


@pytest.fixture
def secret() -> Iterator[Any]:
    with mock_aws():
        client = boto3.client("secretsmanager")
        answer = client.create_secret(Name="token", SecretString="to be put")

        class Secret:
            arn = answer["ARN"]

            def put(self, text: str) -> None:
                client.put_secret_value(SecretId=self.arn, SecretString=text)

            def delete(self) -> None:
                client.delete_secret(SecretId=self.arn, ForceDeleteWithoutRecovery=True)

        yield Secret()
        client.close()


@pytest.mark.parametrize("text", [TOKEN, f" {TOKEN}\n", json.dumps({"token": TOKEN})])
def test_the_token_secret_may_be_text_or_json(load: Load, database: Any, secret: Any, text: str) -> None:
    secret.put(text)
    client = load(DATABASE_URL=database.url("acp_reader"), API_TOKEN_SECRET_ARN=secret.arn)
    assert client.timeline(uuid.uuid4()).status == 404
    assert client.timeline(uuid.uuid4(), token="wrong").status == 401


def test_a_rotated_token_is_picked_up(load: Load, monkeypatch: pytest.MonkeyPatch, database: Any, secret: Any) -> None:
    secret.put(OLD)
    client = load(DATABASE_URL=database.url("acp_reader"), API_TOKEN_SECRET_ARN=secret.arn)
    assert client.timeline(uuid.uuid4(), token=OLD).status == 404
    secret.put(TOKEN)
    assert client.timeline(uuid.uuid4(), token=TOKEN).status == 401
    monkeypatch.setattr(tokens, "REREAD_SECONDS", 0)
    assert client.timeline(uuid.uuid4(), token=TOKEN).status == 404
    assert client.timeline(uuid.uuid4(), token=OLD).status == 401


def test_an_unreadable_secret_is_named_to_the_log_alone(load: Load, database: Any, secret: Any) -> None:
    secret.delete()
    client = load(DATABASE_URL=database.url("acp_reader"), API_TOKEN_SECRET_ARN=secret.arn)
    answer = client.timeline(uuid.uuid4())
    assert answer.detail(503) == "A secret cannot be read right now; the log says which."
    assert answer.headers["Retry-After"] == "5"
    [error] = client.function.errors
    assert secret.arn in error["error"]


@pytest.mark.parametrize("text", ["{}", '{"token": ""}', '{"token": 7}', '{"token', '{"password": "x"}', " "])
def test_a_secret_without_a_token_lets_nobody_in(load: Load, database: Any, secret: Any, text: str) -> None:
    secret.put(text)
    client = load(DATABASE_URL=database.url("acp_reader"), API_TOKEN_SECRET_ARN=secret.arn)
    assert client.timeline(uuid.uuid4(), token="x").detail(500) == "Something went wrong; the log says what."
    [error] = client.function.errors
    assert secret.arn in error["error"]
    assert client.timeline(uuid.uuid4(), token="").status == 401
    assert client.timeline(uuid.uuid4(), token=text).status in {401, 500}
