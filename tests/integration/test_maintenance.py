"""Maintenance on a real Postgres: what is deleted, what stays, and who keeps Postgres from cleaning up."""

import io
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg import Connection, errors
from tests.conftest import MIGRATIONS, PASSWORD, SUBSCRIPTIONS, TestDatabase
from tests.integration import seeds
from tests.integration.redriving import redrive

from control_plane.ingestion.store import RawPayload, store_events
from control_plane.model.lifecycle import Accepted, Failed, MessageFault
from control_plane.model.subscription import Subscription
from control_plane.ops.dead_letters import DeadLetterFilter
from control_plane.ops.horizon import pinned_horizon
from control_plane.ops.maintenance import RESERVE_SECONDS, Maintenance, MaintenanceReport
from control_plane.ops.migrations import migrate, read_migrations
from control_plane.ops.status import read_status
from control_plane.ops.subscriptions import sync_subscriptions
from control_plane.ops.timeline import read_timeline
from control_plane.platform.database import connect
from control_plane.platform.telemetry import Telemetry
from local_cloud.postgres import PostgresServer

YEAR = 365


def plenty() -> float:
    return 300.0


def maintain(
    connection: Connection[Any],
    *,
    event_days: int | None = YEAR,
    batch_size: int = 10,
    remaining_seconds: Callable[[], float] = plenty,
    pinned_after_seconds: float = 600,
) -> MaintenanceReport:
    return Maintenance(
        retention_days={} if event_days is None else {"events": event_days, "raw_payloads": event_days},
        telemetry=Telemetry("test"),
        batch_size=batch_size,
        pinned_after_seconds=pinned_after_seconds,
    ).run(connection, remaining_seconds=remaining_seconds)


def time_for(batches: int) -> Callable[[], float]:
    """Returns a remaining time that suffices for so many batches."""
    numbers = count()
    return lambda: RESERVE_SECONDS if next(numbers) < batches else RESERVE_SECONDS - 0.001


def timelines(connection: Connection[Any], event_ids: Sequence[UUID]) -> list[dict[str, Any]]:
    found = [read_timeline(connection, event_id) for event_id in event_ids]
    return [timeline.to_dict() for timeline in found if timeline is not None]


def store_old(app: Connection[Any], owner: Connection[Any], number: int) -> list[UUID]:
    """Stores events of 400 days ago with a raw payload, each delivered at the second attempt and processed."""
    event_ids = store_delivered(app, number)
    age(owner, 400)
    return event_ids


def store_delivered(app: Connection[Any], number: int) -> list[UUID]:
    raw = RawPayload(
        id=uuid4(),
        source="fake",
        entity_id="AAPL",
        observed_at=seeds.FIRST_BAR,
        window_since=None,
        fetched_at=seeds.FIRST_BAR,
        trace_id=uuid4(),
        payload={},
    )
    with app.transaction():
        looks = [replace(look, raw_payload_id=raw.id) for look in seeds.ticks(number)]
        event_ids = [event.event_id for event in store_events(app, [raw], looks).events]
    for outcome in (Failed("no luck"), Accepted("m")):
        seeds.settle(app, seeds.claim(app, rows=number), outcome)
        seeds.pass_time(app)
    app.execute(
        "INSERT INTO processed_events (consumer, event_id) SELECT 'signal_lab', unnest(%s::uuid[])", [event_ids]
    )
    return event_ids


def age(owner: Connection[Any], days: int) -> None:
    """Makes everything that was stored until now look so many days older."""
    with owner.transaction():
        for table, column in (("events", "ingested_at"), ("raw_payloads", "fetched_at")):
            owner.execute(f"ALTER TABLE {table} DISABLE TRIGGER USER".encode())
            owner.execute(f"UPDATE {table} SET {column} = now() - make_interval(days => {days})".encode())
            owner.execute(f"ALTER TABLE {table} ENABLE TRIGGER USER".encode())


def rows(connection: Connection[Any]) -> dict[str, int]:
    tables = (
        *("raw_payloads", "events", "outbox", "pending_deliveries", "deliveries", "dead_letters"),
        *("delivery_failures", "processed_events"),
    )
    return {table: row[0] for table in tables for row in connection.execute(f"SELECT count(*) FROM {table}".encode())}


NO_ROWS = dict.fromkeys(
    (
        *("raw_payloads", "events", "outbox", "pending_deliveries", "deliveries", "dead_letters"),
        *("delivery_failures", "processed_events"),
    ),
    0,
)


# Events


def test_events_are_kept_for_ever_unless_retention_is_asked_for(app: Connection[Any], owner: Connection[Any]) -> None:
    event_ids = store_old(app, owner, 3)
    before = timelines(app, event_ids)
    report = maintain(owner, event_days=None)
    assert report == MaintenanceReport(0, 0, 0, finished=True, pinned_horizon=None)
    assert timelines(app, event_ids) == before
    assert len(before) == 3


def test_retention_deletes_whole_timelines(app: Connection[Any], owner: Connection[Any]) -> None:
    store_old(app, owner, 25)
    assert rows(app) == NO_ROWS | {
        "raw_payloads": 1, "events": 25, "outbox": 25, "deliveries": 25, "delivery_failures": 25,
        "processed_events": 25,
    }  # fmt: skip
    report = maintain(owner)
    assert report == replace(report, deleted_events=25, deleted_raw_payloads=1, finished=True)
    assert rows(app) == NO_ROWS


def test_retention_keeps_what_is_younger(app: Connection[Any], owner: Connection[Any]) -> None:
    store_old(app, owner, 5)
    (young,) = seeds.store(app, seeds.failures(1))
    seeds.settle(app, seeds.claim(app), Accepted("m"))
    kept = timelines(app, [young])
    assert maintain(owner).deleted_events == 5
    assert timelines(app, [young]) == kept
    assert rows(app) == NO_ROWS | {"events": 1, "outbox": 1, "deliveries": 1}


def test_pending_events_never_expire(app: Connection[Any], owner: Connection[Any]) -> None:
    waiting, in_flight, retrying = seeds.store(app, seeds.ticks(3))
    owner.execute("UPDATE pending_deliveries SET next_attempt_at = now() + interval '1 hour'")
    for event_id in (retrying, in_flight):
        owner.execute(
            "UPDATE pending_deliveries SET next_attempt_at = now() FROM outbox"
            " WHERE outbox.id = outbox_id AND event_id = %s",
            [event_id],
        )
        claim = seeds.claim(app)
        if event_id == retrying:
            seeds.settle(app, claim, Failed("no luck"))
    age(owner, 400)
    kept = timelines(app, [waiting, in_flight, retrying])
    assert maintain(owner).deleted_events == 0
    assert timelines(app, [waiting, in_flight, retrying]) == kept


def test_a_message_pending_for_one_of_two_subscriptions_stays(app: Connection[Any], owner: Connection[Any]) -> None:
    sync_subscriptions(owner, SUBSCRIPTIONS | {"detector": Subscription("market.ticks")})
    event_ids = store_old(app, owner, 2)
    assert maintain(owner).deleted_events == 0
    assert [len(timeline["deliveries"]) for timeline in timelines(app, event_ids)] == [2, 2]
    seeds.settle(app, seeds.claim(app, subscriptions=["detector"]), Accepted("m"))
    assert maintain(owner).deleted_events == 2


def test_open_dead_letters_stay_and_resolved_ones_go(app: Connection[Any], owner: Connection[Any]) -> None:
    redriven, still_open = seeds.store(app, seeds.ticks(2))
    seeds.settle(app, seeds.claim(app), MessageFault("too large"))
    first = app.execute("SELECT min(id) FROM dead_letters").fetchone()
    assert first is not None
    redrive(owner, DeadLetterFilter(ids=[first[0]]))
    age(owner, 400)
    assert maintain(owner).deleted_events == 0  # The redriven messages are pending.
    seeds.settle(app, seeds.claim(app), Accepted("m"))
    assert maintain(owner).deleted_events == 1
    assert timelines(app, [redriven]) == []
    assert [delivery["state"] for delivery in timelines(app, [still_open])[0]["deliveries"]] == ["dead_lettered"]
    assert rows(app) == NO_ROWS | {"events": 1, "outbox": 1, "dead_letters": 1, "delivery_failures": 1}


def test_a_raw_payload_goes_with_the_last_of_its_events(app: Connection[Any], owner: Connection[Any]) -> None:
    first, _ = store_old(app, owner, 2)
    owner.execute(
        "INSERT INTO pending_deliveries (outbox_id, subscription)"
        " SELECT id, 'detector' FROM outbox WHERE event_id = %s",
        [first],
    )
    report = maintain(owner)
    assert report == replace(report, deleted_events=1, deleted_raw_payloads=0)
    owner.execute("DELETE FROM pending_deliveries")
    report = maintain(owner)
    assert report == replace(report, deleted_events=1, deleted_raw_payloads=1)


def test_each_batch_is_committed_by_itself(app: Connection[Any], owner: Connection[Any]) -> None:
    store_old(app, owner, 35)
    first = maintain(owner, remaining_seconds=time_for(3))  # One of these batches finds no looks.
    assert first == replace(first, deleted_events=20, finished=False)
    assert rows(app)["events"] == 15
    second = maintain(owner)
    assert second == replace(second, deleted_events=15, finished=True)
    assert maintain(owner, remaining_seconds=lambda: 0.0) == MaintenanceReport(0, 0, 0, False, None)


def test_a_batch_that_fails_leaves_whole_timelines(app: Connection[Any], owner: Connection[Any]) -> None:
    event_ids = store_old(app, owner, 5)
    owner.execute("CREATE TABLE refuses (event_id uuid REFERENCES events)")
    owner.execute("INSERT INTO refuses VALUES (%s)", [event_ids[3]])
    before = timelines(app, event_ids)
    with pytest.raises(errors.ForeignKeyViolation):
        maintain(owner)
    assert timelines(app, event_ids) == before


def test_two_runs_at_once_share_the_work(app: Connection[Any], owner: Connection[Any], database: TestDatabase) -> None:
    store_old(app, owner, 300)

    def run(_number: int) -> MaintenanceReport:
        with connect(database.owner_url, application_name="test") as connection:
            return maintain(connection)

    with ThreadPoolExecutor(4) as pool:
        reports = list(pool.map(run, range(4)))
    left_over = maintain(owner)  # The row that one run skipped, because another held it and was past it.
    assert sum(report.deleted_events for report in [*reports, left_over]) == 300
    assert rows(app) == NO_ROWS


def test_an_event_that_a_replay_is_busy_with_is_left(
    app: Connection[Any], owner: Connection[Any], database: TestDatabase
) -> None:
    first, _ = store_old(app, owner, 2)
    owner.execute("SET lock_timeout = '5s'")
    with connect(database.app_url, application_name="replay") as replaying, replaying.transaction():
        replaying.execute(
            "INSERT INTO outbox (event_id, topic, event_type, schema_version, trace_id, payload_json)"
            " VALUES (%s, 'a.b', 'A_THING_HAPPENED', 1, gen_random_uuid(), '{}')",
            [first],
        )
        assert maintain(owner).deleted_events == 1
    assert len(timelines(app, [first])) == 1


def test_a_backfill_under_way_keeps_its_messages(
    app: Connection[Any], owner: Connection[Any], database: TestDatabase
) -> None:
    store_old(app, owner, 3)
    backfilled = SUBSCRIPTIONS | {"detector": Subscription("market.ticks", from_beginning=True)}

    def run() -> MaintenanceReport:
        with connect(database.owner_url, application_name="maintaining") as connection:
            return maintain(connection)

    with ThreadPoolExecutor(1) as pool:
        with owner.transaction():
            sync_subscriptions(owner, backfilled)
            # The run has found the expired events; its next deletion waits for the backfill.
            maintaining = pool.submit(run)
            seeds.wait_until_waiting(database, "maintaining")
        # The deletion finds that they are pending again.
        assert maintaining.result(30).deleted_events == 0
    assert rows(app)["outbox"] == rows(app)["pending_deliveries"] == 3
    assert len(seeds.claim(app, subscriptions=["detector"]).rows) == 3


def test_a_relay_at_work_and_retention_do_not_meet(
    app: Connection[Any], owner: Connection[Any], database: TestDatabase
) -> None:
    seeds.store(app, seeds.ticks(300))
    age(owner, 400)

    def relay_all() -> None:
        with connect(database.app_url, application_name="relay") as connection:
            while (claim := seeds.claim(connection, rows=20)).rows:
                assert len(seeds.settle(connection, claim, Accepted("m"))) == len(claim.rows)

    deleted = 0
    with ThreadPoolExecutor(1) as pool:
        relaying = pool.submit(relay_all)
        while not relaying.done():
            deleted += maintain(owner, batch_size=50).deleted_events
        relaying.result()
    deleted += maintain(owner).deleted_events
    assert deleted == 300
    assert rows(app) == NO_ROWS


def test_immutable_rows_stay_immutable_after_a_run(app: Connection[Any], owner: Connection[Any]) -> None:
    store_old(app, owner, 2)
    maintain(owner, event_days=500)
    for table in ("events", "raw_payloads", "outbox", "deliveries"):
        for change in ("DELETE FROM {}", "TRUNCATE {} CASCADE"):
            with pytest.raises(errors.RestrictViolation, match="refused: its rows are immutable"):
                owner.execute(change.format(table).encode())


def test_maintenance_needs_no_more_than_its_own_role(
    database: TestDatabase, app: Connection[Any], owner: Connection[Any]
) -> None:
    store_old(app, owner, 2)
    with connect(database.url("acp_maintain"), application_name="test") as connection:
        assert maintain(connection, event_days=365).deleted_events == 2


def test_nobody_can_delete_young_events(database: TestDatabase, app: Connection[Any], owner: Connection[Any]) -> None:
    store_old(app, owner, 2)
    for url in (database.url("acp_maintain"), database.owner_url):
        with (
            connect(url, application_name="test") as connection,
            pytest.raises(errors.InvalidParameterValue, match="younger than 30 days is kept"),
        ):
            maintain(connection, event_days=29)
    assert seeds.counts(app)[1] == 2


# Repeated looks


def test_looks_that_cannot_be_repeated_again_are_forgotten(app: Connection[Any], owner: Connection[Any]) -> None:
    app.execute(
        "INSERT INTO repeated_looks (entity_id, source, event_type, series, occurred_at, observed_at)"
        " SELECT CASE WHEN days % 2 = 0 THEN 'AAPL' END, 'fake', 'MARKET_TICK_INGESTED', '1m',"
        " now() - make_interval(days => days), now() - make_interval(days => days, secs => 60)"
        " FROM generate_series(1, 60) AS days"
    )
    report = maintain(owner, event_days=None)
    assert report == replace(report, deleted_repeated_looks=30, finished=True)
    young = "observed_at > now() - interval '31 days'"
    assert app.execute(f"SELECT count(*), bool_and({young}) FROM repeated_looks".encode()).fetchall() == [(30, True)]
    assert maintain(owner, event_days=None).deleted_repeated_looks == 0


def test_a_look_that_is_being_repeated_is_left(app: Connection[Any], owner: Connection[Any]) -> None:
    app.execute(
        "INSERT INTO repeated_looks SELECT 'AAPL', 'fake', 'MARKET_TICK_INGESTED', '1m', day, day"
        " FROM generate_series(now() - interval '50 days', now() - interval '48 days', interval '1 day') AS day"
    )
    with app.transaction():
        app.execute(
            "UPDATE repeated_looks SET observed_at = now() WHERE occurred_at < now() - interval '49 days 12 hours'"
        )
        assert maintain(owner, event_days=None).deleted_repeated_looks == 2
    assert maintain(owner, event_days=None).deleted_repeated_looks == 0


# The transaction horizon


@pytest.fixture
def pinning(database: TestDatabase) -> Iterator[Connection[Any]]:
    """Opens a superuser's session that holds a snapshot."""
    with (
        psycopg.connect(database.admin_url, application_name="a long report", autocommit=True) as connection,
        connection.transaction(),
    ):
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        connection.execute("SELECT count(*) FROM events")
        yield connection


def test_a_quiet_database_pins_nothing(owner: Connection[Any], app: Connection[Any]) -> None:
    assert pinned_horizon(owner, seconds=0, transactions=0) is None


def test_session_that_pins_the_horizon_is_named_with_its_age(
    owner: Connection[Any], pinning: Connection[Any], database: TestDatabase
) -> None:
    pid = str(pinning.info.backend_pid)
    with psycopg.connect(database.admin_url, autocommit=True) as admin:
        holder = pinned_horizon(admin, seconds=0)
        assert holder is not None
        assert holder == replace(holder, kind="session", name=pid, username="postgres")
        assert holder.application == "a long report"
        assert holder.age_seconds is not None
        assert 0 < holder.age_seconds < 600
        assert f"by session {pid} (postgres, a long report)" in str(holder)
        assert pinned_horizon(admin) is None  # The snapshot is young.


def test_session_of_hidden_age_is_named_with_transactions(owner: Connection[Any], pinning: Connection[Any]) -> None:
    assert pinned_horizon(owner, seconds=0) is None
    for _ in range(3):
        owner.execute("SELECT pg_current_xact_id()")
    holder = pinned_horizon(owner, transactions=3)
    assert holder is not None
    assert holder == replace(holder, name=str(pinning.info.backend_pid), age_seconds=None)
    assert holder.transactions >= 3
    assert f"for {holder.transactions} transactions by session" in str(holder)


def test_a_session_of_another_database_pins_nothing_here(owner: Connection[Any], postgres: PostgresServer) -> None:
    with psycopg.connect(postgres.url()) as elsewhere:
        elsewhere.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        elsewhere.execute("SELECT pg_current_xact_id()")
        assert pinned_horizon(owner, seconds=0, transactions=0) is None


def test_maintenance_goes_on_under_a_pinned_horizon_and_names_it(
    app: Connection[Any], owner: Connection[Any], database: TestDatabase
) -> None:
    store_old(app, owner, 30)
    telemetry, log = Telemetry("test"), io.StringIO()
    telemetry.logger.registered_handler.setStream(log)  # type: ignore[attr-defined]  # it is a StreamHandler
    with connect(database.owner_url, application_name="forgotten") as pinning, pinning.transaction():
        pinning.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        pinning.execute("SELECT FROM outbox")
        report = Maintenance(
            retention_days={"events": YEAR, "raw_payloads": YEAR},
            telemetry=telemetry,
            batch_size=10,
            pinned_after_seconds=0,
        ).run(owner, remaining_seconds=plenty)
        status = read_status(owner, pinned_after_seconds=0)
    assert report.deleted_events == 30
    assert report.pinned_horizon is not None
    assert report.pinned_horizon.application == "forgotten"
    [line] = map(json.loads, log.getvalue().splitlines())
    assert line == line | {"level": "WARNING", "message": str(report.pinned_horizon)}
    assert line["holder"]["name"] == report.pinned_horizon.name
    assert json.loads(json.dumps(report.to_dict()))["pinned_horizon"] == line["holder"]
    assert status.pinned_horizon is not None
    assert status.pinned_horizon.name == report.pinned_horizon.name
    assert read_status(owner, pinned_after_seconds=0).pinned_horizon is None


def test_a_forgotten_prepared_transaction_is_named(tmp_path: Path) -> None:
    server = PostgresServer(
        tmp_path / "data", password=PASSWORD, fsync=False, settings={"max_prepared_transactions": "2"}
    )
    with server, connect(server.url(), application_name="test") as connection:
        migrate(connection, read_migrations(MIGRATIONS))
        with connection.transaction():
            connection.execute("INSERT INTO circuit_breakers (name) VALUES ('q')")
            connection.execute("PREPARE TRANSACTION 'forgotten'")
        holder = pinned_horizon(connection, seconds=0)
        assert holder is not None
        assert holder == replace(holder, kind="prepared transaction", name="forgotten", username="postgres")
        connection.execute("ROLLBACK PREPARED 'forgotten'")
        assert pinned_horizon(connection, seconds=0) is None
