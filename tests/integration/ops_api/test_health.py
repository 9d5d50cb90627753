"""GET /health: what it says of database, outbox, breakers, dead letters and consumers, and to whom."""

import signal
import socket
import time
import uuid
from typing import Any

import psutil
import pytest
from moto import mock_aws
from psycopg import Connection
from tests.conftest import MIGRATIONS, PASSWORD
from tests.integration import seeds
from tests.integration.ops_api.client import TOKEN, Client, Load
from tests.integration.redriving import redrive
from tests.waiting import wait_until

from control_plane.model.lifecycle import Accepted, Failed, MessageFault
from control_plane.ops.dead_letters import DeadLetterFilter
from control_plane.ops.migrations import migrate, read_migrations
from control_plane.platform.breakers import BreakerPolicy, Breakers, hold
from control_plane.platform.database import SCHEMA_VERSION, connect
from local_cloud.net import free_port
from local_cloud.postgres import PostgresServer


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
            "operations": {"status": "ok", "stalled": 0},
        },
    }
    assert [(line["message"], line["route"], line["status"]) for line in api.function.logs] == [
        ("answered", "/health", 200)
    ]


def test_a_promise_open_for_too_long_is_not_well(api: Client, app: Connection[Any], owner: Connection[Any]) -> None:
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


def test_settled_messages_are_not_waiting(api: Client, app: Connection[Any], owner: Connection[Any]) -> None:
    seeds.store(app, seeds.ticks(2))
    seeds.promised(owner, 4000)
    seeds.settle(app, seeds.claim(app, rows=1), Accepted("m"))
    assert api.get("/health").status == 503
    seeds.settle(app, seeds.claim(app), MessageFault("too large"))
    assert api.get("/health").status == 200


def test_a_message_awaiting_a_retry_is_waiting(api: Client, app: Connection[Any], owner: Connection[Any]) -> None:
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
    redrive(owner, DeadLetterFilter(reason="large"))
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


def test_an_open_breaker_excuses_no_promise_that_is_too_old(
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
    redrive(owner, DeadLetterFilter(reason="secret"))
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


def test_an_absent_database_is_reported_without_its_address(load: Load) -> None:
    client = load(DATABASE_URL=f"postgresql://acp_reader:{PASSWORD}@127.0.0.1:{free_port()}/database")
    for _ in range(2):
        says_the_database_fails(client, "Connection refused")


def test_a_wrong_password_is_a_database_that_fails(load: Load, database: Any) -> None:
    client = load(DATABASE_URL=database.url("acp_reader").replace(PASSWORD, "wrong"))
    says_the_database_fails(client, "password authentication failed")


def test_a_database_that_comes_back_is_found(load: Load, own_postgres: PostgresServer) -> None:
    client = load(DATABASE_URL=own_postgres.url("acp_reader"))
    assert client.get("/health").status == 200
    own_postgres.stop("immediate")
    says_the_database_fails(client, "Connection refused")
    own_postgres.start()
    assert client.get("/health").status == 200


def test_a_database_that_hangs_keeps_nobody_waiting(load: Load, own_postgres: PostgresServer) -> None:
    client = load(DATABASE_URL=own_postgres.url("acp_reader"))
    client.wait_as_deployed()
    wait_until(lambda: client.get("/health").status == 200)
    postmaster = psutil.Process(int((own_postgres.data_dir / "postmaster.pid").read_text().split()[0]))
    processes = [postmaster, *postmaster.children()]
    for process in processes:
        process.send_signal(signal.SIGSTOP)
    try:
        # The first attempt uses the old connection, the second a new one.
        for _ in range(2):
            started = time.monotonic()
            says_the_database_fails(client, "did not answer /health within 1 seconds")
            assert 0.9 < time.monotonic() - started < 10
    finally:
        for process in processes:
            process.send_signal(signal.SIGCONT)
    wait_until(lambda: client.get("/health").status == 200)


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
        client.wait_as_deployed()
        client.keeps_health = True
        started = time.monotonic()
        statuses = [client.get("/health").status for _ in range(20)]
        assert statuses == [503] * 20
        assert time.monotonic() - started < 10


def test_work_that_hangs_is_cut_off(
    load: Load, monkeypatch: pytest.MonkeyPatch, database: Any, app: Connection[Any], owner: Connection[Any]
) -> None:
    [event_id] = seeds.store(app, seeds.ticks(1))
    client = load(DATABASE_URL=database.url("acp_reader"))
    client.wait_as_deployed(PATIENCE_SECONDS=2)
    with owner.transaction():
        owner.execute("LOCK TABLE processed_events")
        started = time.monotonic()
        answer = client.timeline(event_id)
        assert time.monotonic() - started < 30
    assert answer.detail(503) == "Postgres cannot be used right now; the log says why."
    [error] = client.function.errors
    assert "did not answer within 2 seconds" in error["error"]
    client.wait_long()
    assert client.timeline(event_id).status == 200


@pytest.mark.parametrize("version", range(SCHEMA_VERSION))
def test_an_old_schema_is_public_its_remedy_is_not(load: Load, empty_database: Any, version: int) -> None:
    migrations = read_migrations(MIGRATIONS)
    with connect(empty_database.owner_url, application_name="test") as owner:
        if version:
            migrate(owner, migrations[:version])
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

        migrate(owner, migrations)
        assert client.get("/health").status == 200


def test_the_older_layout_is_reported_with_the_token_only(load: Load, database: Any, owner: Connection[Any]) -> None:
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


def test_missing_settings_are_named_in_the_log_alone(load: Load) -> None:
    client = load(API_TOKEN="", HEALTH_MAX_PENDING_AGE_SECONDS="soon")
    for path in ("/health", f"/events/{uuid.uuid4()}"):
        answer = client.get(path, headers={"Authorization": f"Bearer {TOKEN}"})
        assert answer.detail(500) == "Something went wrong; the log says what."
        [error] = client.function.errors
        for name in ("DATABASE_URL", "API_TOKEN_SECRET_ARN", "HEALTH_MAX_PENDING_AGE_SECONDS"):
            assert name in error["error"]
            assert name not in answer.text
