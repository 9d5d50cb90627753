"""OpsApiFunction as API Gateway calls it, on a real Postgres: what it says to whom, and what it keeps to itself."""

import json
import signal
import socket
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import boto3
import psutil
import pytest
from moto import mock_aws
from psycopg import Connection, sql
from tests.conftest import PASSWORD
from tests.integration import seeds
from tests.integration.functions.invoked import Function

from control_plane.api import tokens
from control_plane.api.http import NotAProxyRequest
from control_plane.model.lifecycle import Accepted, Failed, MessageFault
from control_plane.ops.dead_letters import DeadLetterFilter, redrive
from control_plane.ops.migrations import migrate, read_migrations
from control_plane.ops.timeline import read_timeline
from control_plane.platform.breakers import BreakerPolicy, Breakers, hold
from control_plane.platform.database import SCHEMA_VERSION, connect
from local_cloud.net import free_port
from local_cloud.postgres import PostgresServer

ROOT = Path(__file__).parents[2]
MIGRATIONS = read_migrations(ROOT / "db" / "migrations")
TOKEN = "the-token-of-these-tests"
VARIABLES = ("DATABASE_URL", "DATABASE_SECRET_ARN", "API_TOKEN", "API_TOKEN_SECRET_ARN", "CLOUD_ENDPOINT_URL")


class Client:
    """Asks the function as API Gateway's REST proxy does, and checks what every answer must be."""

    def __init__(self) -> None:
        self.function = Function("ops_api")
        self.keeps_health = False
        """Whether /health may give an answer again; the connection is kept anyway."""

    def get(self, path: str, *, headers: Mapping[str, str] | None = None, method: str = "GET") -> "Answer":
        multiple = {name: [value] for name, value in (headers or {}).items()}
        return self.send({"httpMethod": method, "path": path, "headers": headers, "multiValueHeaders": multiple})

    def timeline(self, event_id: object, *, token: str = TOKEN) -> "Answer":
        return self.get(f"/events/{event_id}", headers={"Authorization": f"Bearer {token}"})

    def send(self, event: Mapping[str, Any]) -> "Answer":
        self.function.forget_logs()
        if not self.keeps_health and self.function.module.health.cache_info().currsize:
            self.function.module.health().expire()
        answer = self.function(event)
        assert answer.keys() == {"statusCode", "headers", "body", "isBase64Encoded"}
        assert answer["isBase64Encoded"] is False
        assert answer["headers"]["Cache-Control"] == "no-store"
        assert answer["headers"]["X-Content-Type-Options"] == "nosniff"
        for secret in (PASSWORD, TOKEN):
            assert secret not in json.dumps(answer) + self.function.output
        return Answer(answer["statusCode"], answer["headers"], json.loads(answer["body"] or "null"))


class Answer:
    def __init__(self, status: int, headers: Mapping[str, str], body: dict[str, Any]) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    @property
    def text(self) -> str:
        return json.dumps([self.body, dict(self.headers)])

    def detail(self, status: int) -> str:
        """Of what must be a problem document of this status."""
        assert self.headers["Content-Type"] == "application/problem+json"
        assert self.body.keys() == {"type", "title", "status", "detail", "instance"}
        assert (self.status, self.body["status"], self.body["type"]) == (status, status, "about:blank")
        assert uuid.UUID(self.body["instance"].removeprefix("urn:uuid:"))
        detail: str = self.body["detail"]
        return detail


type Load = Callable[..., Client]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Iterator[Load]:
    with ExitStack() as stack:

        def load(**variables: str) -> Client:
            for variable in VARIABLES:
                monkeypatch.delenv(variable, raising=False)
            token = {} if "API_TOKEN_SECRET_ARN" in variables else {"API_TOKEN": TOKEN}
            for variable, value in (token | variables).items():
                monkeypatch.setenv(variable, value)
            client = Client()
            stack.callback(client.function.close)
            return client

        yield load


@pytest.fixture
def api(load: Load, database: Any) -> Client:
    return load(DATABASE_URL=database.url("acp_reader"))


# Health


def test_all_is_well_with_nothing_to_do(api: Client) -> None:
    answer = api.get("/health")
    assert (answer.status, answer.headers["Content-Type"]) == (200, "application/json")
    assert answer.body == {
        "status": "ok",
        "checks": {
            "database": {"status": "ok"},
            "schema": {"status": "ok"},
            "outbox": {"status": "ok", "oldest_pending_age_seconds": 0.0, "max_pending_age_seconds": 300.0},
            "breakers": {"status": "ok", "open": 0},
            "dead_letters": {"status": "ok", "open": 0},
            "consumers": {"status": "ok", "late": 0},
        },
    }
    assert [(line["message"], line["route"], line["status"]) for line in api.function.logs] == [
        ("answered", "/health", 200)
    ]


def test_a_promise_that_has_been_open_for_too_long_is_not_well(
    api: Client, app: Connection[Any], owner: Connection[Any]
) -> None:
    seeds.store(app, seeds.ticks(2))
    seeds.promised(owner, 290)
    assert api.get("/health").status == 200
    seeds.promised(owner, 400)
    answer = api.get("/health")
    assert (answer.status, answer.body["status"]) == (503, "failing")
    assert answer.headers["Retry-After"] == "5"
    assert answer.body["checks"]["outbox"]["status"] == "failing"
    assert 400 <= answer.body["checks"]["outbox"]["oldest_pending_age_seconds"] < 460
    assert answer.body["checks"]["database"]["status"] == "ok"


def test_how_long_is_too_long_is_a_setting(
    load: Load, monkeypatch: pytest.MonkeyPatch, database: Any, app: Connection[Any], owner: Connection[Any]
) -> None:
    seeds.store(app, seeds.failures(1))
    seeds.promised(owner, 60)
    monkeypatch.setenv("HEALTH_MAX_PENDING_AGE_SECONDS", "30")
    answer = load(DATABASE_URL=database.url("acp_reader")).get("/health")
    assert (answer.status, answer.body["checks"]["outbox"]["max_pending_age_seconds"]) == (503, 30)


def test_what_is_settled_is_not_waiting(api: Client, app: Connection[Any], owner: Connection[Any]) -> None:
    seeds.store(app, seeds.ticks(2))
    seeds.promised(owner, 4000)
    seeds.settle(app, seeds.claim(app, rows=1), Accepted("m"))
    assert api.get("/health").status == 503
    seeds.settle(app, seeds.claim(app), MessageFault("too large"))
    assert api.get("/health").status == 200


def test_what_waits_for_its_next_attempt_is_waiting(api: Client, app: Connection[Any], owner: Connection[Any]) -> None:
    seeds.store(app, seeds.ticks(1))
    seeds.promised(owner, 4000)
    seeds.settle(app, seeds.claim(app), Failed("no luck"))
    assert api.get("/health").status == 503


def test_an_old_dead_letter_that_was_redriven_is_well(
    api: Client, app: Connection[Any], owner: Connection[Any]
) -> None:
    seeds.store(app, seeds.ticks(1))
    seeds.promised(owner, 3 * 86_400)
    seeds.settle(app, seeds.claim(app), MessageFault("too large"))
    redrive(owner, DeadLetterFilter(reason="large"), requested_by="kim")
    assert api.get("/health").body["checks"]["outbox"]["oldest_pending_age_seconds"] < 60
    assert api.get("/health").status == 200


def test_the_oldest_of_all_subscriptions_counts(api: Client, app: Connection[Any], owner: Connection[Any]) -> None:
    *_, system_event = seeds.store(app, [*seeds.ticks(3), *seeds.failures(1)])
    seeds.promised(owner, 3600, system_event)
    assert api.get("/health").body["checks"]["outbox"]["oldest_pending_age_seconds"] >= 3600


def test_an_open_breaker_is_degraded_and_not_named(api: Client, app: Connection[Any]) -> None:
    Breakers(lambda: app, BreakerPolicy(failure_threshold=1, cool_down_seconds=60)).failed("secret-queue", "no luck")
    hold(app, "secret-source", by="somebody")
    answer = api.get("/health")
    assert (answer.status, answer.body["status"]) == (200, "degraded")
    assert answer.body["checks"]["breakers"] == {"status": "degraded", "open": 2}
    assert "secret" not in answer.text
    app.execute("UPDATE circuit_breakers SET state = 'half_open', held_by = NULL, retry_at = now()")
    assert api.get("/health").body["checks"]["breakers"]["open"] == 2
    app.execute("UPDATE circuit_breakers SET state = 'closed', opened_at = NULL")
    assert api.get("/health").body["status"] == "ok"


def test_an_open_breaker_that_nobody_guards_with_is_well(api: Client, app: Connection[Any]) -> None:
    hold(app, "an-old-source", by="somebody")
    app.execute("UPDATE circuit_breakers SET guarded_at = now() - interval '16 minutes'")
    answer = api.get("/health")
    assert (answer.body["status"], answer.body["checks"]["breakers"]["open"]) == ("ok", 0)


def test_an_open_breaker_does_not_excuse_a_promise_that_is_too_old(
    api: Client, app: Connection[Any], owner: Connection[Any]
) -> None:
    seeds.store(app, seeds.ticks(1))
    seeds.promised(owner, 4000)
    hold(app, "queue", by="somebody")
    answer = api.get("/health")
    assert (answer.status, answer.body["status"]) == (503, "failing")


def test_an_open_dead_letter_is_degraded_until_it_is_redriven(
    api: Client, app: Connection[Any], owner: Connection[Any]
) -> None:
    seeds.store(app, seeds.ticks(2))
    seeds.settle(app, seeds.claim(app), MessageFault("a secret reason"))
    answer = api.get("/health")
    assert (answer.status, answer.body["status"]) == (200, "degraded")
    assert answer.body["checks"]["dead_letters"] == {"status": "degraded", "open": 2}
    assert "secret" not in answer.text
    redrive(owner, DeadLetterFilter(reason="secret"), requested_by="kim")
    assert api.get("/health").body["checks"]["dead_letters"] == {"status": "ok", "open": 0}


def test_a_consumer_that_lags_is_degraded_and_not_named(
    api: Client, app: Connection[Any], owner: Connection[Any]
) -> None:
    first, _ = seeds.store(app, seeds.ticks(2))
    app.execute("INSERT INTO processed_events (consumer, event_id) VALUES ('signal_lab', %s)", (first,))
    assert api.get("/health").body["checks"]["consumers"] == {"status": "ok", "late": 0}
    owner.execute(
        "INSERT INTO deliveries (outbox_id, subscription, delivered_at, delivery_attempts, message_id) "
        "SELECT id, 'signal_lab', now() - interval '10 minutes', 1, 'm' FROM outbox"
    )
    answer = api.get("/health")
    assert answer.body["checks"]["consumers"] == {"status": "degraded", "late": 1}
    assert "signal_lab" not in answer.text


def says_the_database_fails(client: Client, log: str) -> None:
    answer = client.get("/health")
    assert (answer.status, answer.headers["Retry-After"]) == (503, "5")
    assert answer.body == {"status": "failing", "checks": {"database": {"status": "failing"}}}
    [error] = client.function.errors
    assert log in error["error"]


def test_a_database_that_is_away_is_said_at_once_and_its_address_to_the_log_alone(load: Load) -> None:
    client = load(DATABASE_URL=f"postgresql://acp_reader:{PASSWORD}@127.0.0.1:{free_port()}/database")
    started = time.monotonic()
    for _ in range(2):
        says_the_database_fails(client, "Connection refused")
    assert time.monotonic() - started < 2


def test_a_wrong_password_is_a_database_that_fails(load: Load, database: Any) -> None:
    client = load(DATABASE_URL=database.url("acp_reader").replace(PASSWORD, "wrong"))
    says_the_database_fails(client, "password authentication failed")


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[PostgresServer]:
    """A server with the schema that a test may stop; it comes back on the same port."""
    server = PostgresServer(tmp_path / "data", password=PASSWORD, port=free_port(), fsync=False)
    with server:
        with connect(server.url(), application_name="test") as connection:
            connection.execute(sql.SQL("CREATE ROLE acp_reader LOGIN PASSWORD {}").format(sql.Literal(PASSWORD)))
            migrate(connection, MIGRATIONS)
        yield server


def test_a_database_that_comes_back_is_found(load: Load, own_server: PostgresServer) -> None:
    client = load(DATABASE_URL=own_server.url("acp_reader"))
    assert client.get("/health").status == 200
    own_server.stop("immediate")
    says_the_database_fails(client, "Connection refused")
    own_server.start()
    assert client.get("/health").status == 200


def test_a_database_that_hangs_keeps_nobody_waiting(load: Load, own_server: PostgresServer) -> None:
    client = load(DATABASE_URL=own_server.url("acp_reader"))
    assert client.get("/health").status == 200
    postmaster = psutil.Process(int((own_server.data_dir / "postmaster.pid").read_text().split()[0]))
    processes = [postmaster, *postmaster.children()]
    for process in processes:
        process.send_signal(signal.SIGSTOP)
    try:
        # First the connection that there was, then a new one.
        for _ in range(2):
            started = time.monotonic()
            says_the_database_fails(client, "did not answer /health within 1 seconds")
            assert 0.9 < time.monotonic() - started < 1.9
    finally:
        for process in processes:
            process.send_signal(signal.SIGCONT)
    assert client.get("/health").status == 200


def test_an_answer_about_health_is_given_again_for_seconds(
    load: Load, monkeypatch: pytest.MonkeyPatch, database: Any, app: Connection[Any], owner: Connection[Any]
) -> None:
    client = load(DATABASE_URL=database.app_url)
    client.keeps_health = True
    assert client.get("/health").status == 200
    seeds.store(app, seeds.ticks(2))
    seeds.promised(owner, 400)
    assert client.get("/health").status == 200
    monkeypatch.setattr(client.function.module.health(), "_keep_seconds", 0)
    assert client.get("/health").status == 503


def test_a_hanging_database_is_waited_for_once_in_seconds(load: Load) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        client = load(DATABASE_URL=f"postgresql://acp_reader:{PASSWORD}@127.0.0.1:{silent.getsockname()[1]}/database")
        client.keeps_health = True
        started = time.monotonic()
        statuses = [client.get("/health").status for _ in range(20)]
        assert statuses == [503] * 20
        assert time.monotonic() - started < 2


def test_work_that_hangs_is_cut_off(
    load: Load, monkeypatch: pytest.MonkeyPatch, database: Any, app: Connection[Any], owner: Connection[Any]
) -> None:
    [event_id] = seeds.store(app, seeds.ticks(1))
    client = load(DATABASE_URL=database.url("acp_reader"))
    monkeypatch.setattr(client.function.module, "PATIENCE_SECONDS", 2)
    with owner.transaction():
        owner.execute("LOCK TABLE processed_events")
        started = time.monotonic()
        answer = client.timeline(event_id)
        assert time.monotonic() - started < 5
    assert answer.detail(503) == "Postgres cannot be used right now; the log says why."
    [error] = client.function.errors
    assert "did not answer within 2 seconds" in error["error"]
    assert client.timeline(event_id).status == 200


@pytest.mark.parametrize("version", range(SCHEMA_VERSION))
def test_a_schema_that_is_behind_is_said_to_all_and_what_to_run_to_those_with_the_token(
    load: Load, empty_database: Any, version: int
) -> None:
    with connect(empty_database.owner_url, application_name="test") as owner:
        if version:
            migrate(owner, MIGRATIONS[:version])
        client = load(DATABASE_URL=empty_database.url("acp_reader"))
        answer = client.get("/health")
        assert answer.status == 503
        assert answer.body == {
            "status": "failing",
            "checks": {"database": {"status": "ok"}, "schema": {"status": "failing"}},
        }
        [error] = client.function.errors
        assert "scripts/acp db migrate" in error["error"]

        answer = client.timeline(uuid.uuid4())
        assert f"at version {version}" in answer.detail(503)
        assert "MigrationFunction" in answer.detail(503)
        assert answer.headers["Retry-After"] == "5"
        assert "version" not in client.timeline(uuid.uuid4(), token="wrong").text

        migrate(owner, MIGRATIONS)
        assert client.get("/health").status == 200


def test_the_older_layout_is_said_to_those_with_the_token(load: Load, database: Any, owner: Connection[Any]) -> None:
    owner.execute("UPDATE schema_migrations SET name = 'events_and_outbox'")
    client = load(DATABASE_URL=database.url("acp_reader"))
    answer = client.get("/health")
    assert (answer.status, answer.body["checks"]["schema"]) == (503, {"status": "failing"})
    assert "older layout" not in answer.text
    assert "older layout" in client.timeline(uuid.uuid4()).detail(503)


def test_health_asks_for_no_token_even_where_there_is_none(load: Load, database: Any) -> None:
    arn = "arn:aws:secretsmanager:us-east-1:123456789012:secret:nowhere-AbCdEf"
    with mock_aws():
        assert load(DATABASE_URL=database.url("acp_reader"), API_TOKEN_SECRET_ARN=arn).get("/health").status == 200


def test_missing_settings_are_named_in_the_log_and_not_to_the_caller(load: Load) -> None:
    client = load(API_TOKEN="", HEALTH_MAX_PENDING_AGE_SECONDS="soon")
    for path in ("/health", f"/events/{uuid.uuid4()}"):
        answer = client.get(path, headers={"Authorization": f"Bearer {TOKEN}"})
        assert answer.detail(500) == "Something went wrong; the log says what."
        [error] = client.function.errors
        for name in ("DATABASE_URL", "API_TOKEN_SECRET_ARN", "HEALTH_MAX_PENDING_AGE_SECONDS"):
            assert name in error["error"]
            assert name not in answer.text


# An event's timeline


def test_whoever_has_the_token_reads_an_events_timeline(api: Client, app: Connection[Any]) -> None:
    [event_id, _] = seeds.store(app, seeds.ticks(2))
    timeline = read_timeline(app, event_id)
    assert timeline is not None
    answer = api.timeline(event_id)
    assert (answer.status, answer.headers["Content-Type"]) == (200, "application/json")
    assert answer.body == json.loads(json.dumps(timeline.to_dict()))
    assert answer.body["event"]["event_id"] == str(event_id)
    assert api.timeline(str(event_id).upper()).body == answer.body


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
def test_without_a_bearer_token_nobody_gets_in_and_the_database_is_not_asked(
    load: Load, headers: dict[str, str]
) -> None:
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


@pytest.mark.parametrize("path", ["/", "", "/healthz", "/health/", "/events", "/events/", "/events/a/b", "//health"])
def test_what_is_no_route_is_not_found(api: Client, path: str) -> None:
    assert api.get(path, headers={"Authorization": f"Bearer {TOKEN}"}).detail(404) == "There is no such route."


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "get "])
@pytest.mark.parametrize("path", ["/health", "/events/d0459ed7-a792-5533-b958-aaf36e185583"])
def test_a_route_answers_to_get_alone(api: Client, method: str, path: str) -> None:
    answer = api.get(path, method=method)
    assert answer.detail(405) == "This route answers to GET, HEAD, OPTIONS alone."
    assert answer.headers["Allow"] == "GET, HEAD, OPTIONS"


def test_what_nobody_foresaw_is_told_to_the_log_once_and_to_nobody_else(
    api: Client, app: Connection[Any], owner: Connection[Any]
) -> None:
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


def test_an_answer_that_lambda_could_not_return_is_an_error_that_says_so(api: Client, owner: Connection[Any]) -> None:
    raw_id = uuid.uuid4()
    owner.execute(
        "INSERT INTO raw_payloads (id, source, fetched_at, trace_id, payload_json)"
        " VALUES (%s, 'fake', now(), gen_random_uuid(), jsonb_build_object('text', repeat('x', 6400000)))",
        [raw_id],
    )
    row = owner.execute(
        "INSERT INTO events (event_id, event_type, source, occurred_at, ingested_at, schema_version, trace_id,"
        " raw_payload_id, payload_json) VALUES (gen_random_uuid(), 'LARGE', 'fake', now(), now(), 1,"
        " gen_random_uuid(), %s, '{}') RETURNING event_id",
        [raw_id],
    ).fetchone()
    assert row is not None
    assert "larger than Lambda can return" in api.timeline(row[0]).detail(500)


@pytest.mark.parametrize("event", [{}, {"Records": []}, {"version": "2.0", "rawPath": "/health"}])
def test_what_is_no_request_is_an_error_that_shows_one(api: Client, event: dict[str, Any]) -> None:
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


def test_behind_a_domain_with_a_base_path_the_route_is_known_by_its_name(api: Client, app: Connection[Any]) -> None:
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
def test_the_token_may_be_a_secret_as_text_or_as_json(load: Load, database: Any, secret: Any, text: str) -> None:
    secret.put(text)
    client = load(DATABASE_URL=database.url("acp_reader"), API_TOKEN_SECRET_ARN=secret.arn)
    assert client.timeline(uuid.uuid4()).status == 404
    assert client.timeline(uuid.uuid4(), token="wrong").status == 401


def test_a_rotated_token_is_picked_up(load: Load, monkeypatch: pytest.MonkeyPatch, database: Any, secret: Any) -> None:
    secret.put("an-old-token")
    client = load(DATABASE_URL=database.url("acp_reader"), API_TOKEN_SECRET_ARN=secret.arn)
    assert client.timeline(uuid.uuid4(), token="an-old-token").status == 404
    secret.put(TOKEN)
    assert client.timeline(uuid.uuid4(), token=TOKEN).status == 401
    monkeypatch.setattr(tokens, "REREAD_SECONDS", 0)
    assert client.timeline(uuid.uuid4(), token=TOKEN).status == 404
    assert client.timeline(uuid.uuid4(), token="an-old-token").status == 401


def test_a_secret_that_cannot_be_read_is_named_to_the_log_alone(load: Load, database: Any, secret: Any) -> None:
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
