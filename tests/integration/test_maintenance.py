"""Maintenance on a real Postgres: what moves, what goes, what stays, and who keeps Postgres from cleaning up."""

import io
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg import Connection, errors
from tests.conftest import MIGRATIONS, PASSWORD, TestDatabase
from tests.integration import seeds

from control_plane.ingestion.store import Draft, RawPayload, store_events
from control_plane.ops.horizon import pinned_horizon
from control_plane.ops.life import read_life
from control_plane.ops.maintenance import RESERVE_SECONDS, Maintenance, MaintenanceReport
from control_plane.ops.migrations import migrate, read_migrations
from control_plane.ops.status import read_status
from control_plane.outbox import relay, store
from control_plane.platform.database import connect
from control_plane.platform.telemetry import Telemetry
from local_cloud.postgres import PostgresServer

WEEK = 7
YEAR = 365


def plenty() -> float:
    return 300.0


def maintain(
    connection: Connection[Any],
    *,
    outbox_days: int = WEEK,
    event_days: int | None = None,
    batch_size: int = 10,
    remaining_seconds: Callable[[], float] = plenty,
    pinned_after_seconds: float = 600,
) -> MaintenanceReport:
    return Maintenance(
        outbox_retention_days=outbox_days,
        event_retention_days=event_days,
        telemetry=Telemetry("test"),
        batch_size=batch_size,
        pinned_after_seconds=pinned_after_seconds,
    ).run(connection, remaining_seconds=remaining_seconds)


def time_for(batches: int) -> Callable[[], float]:
    """As much time as so many batches take."""
    numbers = count()
    return lambda: RESERVE_SECONDS if next(numbers) < batches else RESERVE_SECONDS - 0.001


def deliver(owner: Connection[Any], event_ids: Sequence[UUID], *, days_ago: float) -> None:
    """As if they had been stored and delivered then, at the second attempt."""
    with owner.transaction():
        owner.execute(
            "UPDATE outbox SET created_at = now() - make_interval(secs => 86400 * %(days)s),"
            " delivered_at = now() - make_interval(secs => 86400 * %(days)s), message_id = 'm-' || id,"
            " delivery_attempts = 2 WHERE event_id = ANY (%(ids)s)",
            {"days": days_ago, "ids": event_ids},
        )
        owner.execute(
            "INSERT INTO delivery_failures (outbox_id, attempt, claimed_by, error)"
            " SELECT id, 1, 'r', 'no luck' FROM outbox WHERE event_id = ANY (%s)",
            [event_ids],
        )


def ids_in(connection: Connection[Any], table: str) -> list[UUID]:
    return [row[0] for row in connection.execute(f"SELECT event_id FROM {table} ORDER BY id".encode())]


def lives(connection: Connection[Any], event_ids: Sequence[UUID]) -> list[dict[str, Any]]:
    found = [read_life(connection, event_id) for event_id in event_ids]
    return [life.to_dict() for life in found if life is not None]


# Delivered rows


def test_rows_delivered_long_ago_move_to_the_archive_and_all_others_stay(
    app: Connection[Any], owner: Connection[Any]
) -> None:
    old, young, pending, in_flight, retrying, dead = seeds.promise(app, seeds.ticks(6))
    deliver(owner, [old], days_ago=WEEK + 0.1)
    deliver(owner, [young], days_ago=WEEK - 0.1)
    owner.execute("UPDATE outbox SET created_at = now() - interval '1 year' WHERE delivered_at IS NULL")
    for event_id, change in {
        in_flight: "claim_token = gen_random_uuid(), claimed_by = 'r', delivery_attempts = 1,"
        " next_attempt_at = now() + interval '1 hour'",
        retrying: "last_error = 'no luck', delivery_attempts = 1",
        dead: "dead_lettered_at = now() - interval '1 year', last_error = 'no luck'",
    }.items():
        owner.execute(f"UPDATE outbox SET {change} WHERE event_id = %s".encode(), [event_id])
    before = read_status(app)

    report = maintain(owner)

    assert (report.archived, report.finished) == (1, True)
    assert ids_in(app, "outbox_archive") == [old]
    assert ids_in(app, "outbox") == [young, pending, in_flight, retrying, dead]
    assert [(row.state, row.count) for row in read_status(app).promises] == [
        (row.state, row.count) for row in before.promises
    ]
    assert maintain(owner).archived == 0


def test_a_life_reads_the_same_after_its_promises_were_archived(app: Connection[Any], owner: Connection[Any]) -> None:
    event_ids = seeds.promise(app, seeds.ticks(2))
    app.execute("INSERT INTO processed_events (consumer, event_id) VALUES ('signal_lab', %s)", [event_ids[0]])
    replay_id = uuid4()
    app.execute("INSERT INTO replays VALUES (%s, DEFAULT, 'somebody', '{}', 1)", [replay_id])
    app.execute(
        "INSERT INTO outbox (event_id, topic, replay_id, payload_json)"
        " SELECT event_id, topic, %s, payload_json FROM outbox",
        [replay_id],
    )
    deliver(owner, event_ids, days_ago=8)
    before = lives(app, event_ids)
    assert [len(promise["failures"]) for promise in before[0]["promises"]] == [1, 1]

    assert maintain(owner).archived == 4

    assert lives(app, event_ids) == before
    assert ids_in(app, "outbox") == []


def test_a_stored_event_that_comes_again_gets_no_second_promise_once_its_first_is_archived(
    app: Connection[Any], owner: Connection[Any]
) -> None:
    events = seeds.ticks(1)
    deliver(owner, seeds.promise(app, events), days_ago=8)
    maintain(owner)
    seeds.promise(app, events)
    assert ids_in(app, "outbox") == []


def test_a_large_message_arrives_whole_in_the_archive(app: Connection[Any], owner: Connection[Any]) -> None:
    body = {"text": "".join(str(uuid4()) for _ in range(20_000))}
    event_id = seeds.promise_body(app, body)
    deliver(owner, [event_id], days_ago=8)
    maintain(owner)
    owner.execute("VACUUM outbox")
    assert app.execute("SELECT payload_json FROM outbox_archive").fetchall() == [(body,)]


def test_each_batch_is_committed_by_itself_and_the_next_run_goes_on_where_time_ran_out(
    app: Connection[Any], owner: Connection[Any]
) -> None:
    event_ids = seeds.promise(app, seeds.ticks(35))
    deliver(owner, event_ids, days_ago=8)

    first = maintain(owner, remaining_seconds=time_for(2))
    assert (first.archived, first.finished) == (20, False)
    assert ids_in(app, "outbox_archive") == event_ids[:20]
    second = maintain(owner)
    assert (second.archived, second.finished) == (15, True)
    assert ids_in(app, "outbox_archive") == event_ids
    assert maintain(owner, remaining_seconds=lambda: 0.0) == MaintenanceReport(0, 0, 0, False, None)


def test_a_batch_that_fails_leaves_each_row_in_one_place(app: Connection[Any], owner: Connection[Any]) -> None:
    event_ids = seeds.promise(app, seeds.ticks(25))
    deliver(owner, event_ids, days_ago=8)
    (last_id,) = owner.execute("SELECT max(id) FROM outbox").fetchone() or (0,)
    owner.execute(f"ALTER TABLE outbox_archive ADD CONSTRAINT full_up CHECK (id < {last_id - 8})".encode())
    with pytest.raises(errors.CheckViolation):
        maintain(owner)
    assert ids_in(app, "outbox_archive") == event_ids[:10]
    assert ids_in(app, "outbox") == event_ids[10:]
    owner.execute("ALTER TABLE outbox_archive DROP CONSTRAINT full_up")
    assert maintain(owner).archived == 15


def test_a_run_ends_where_the_rows_are_young_however_many_there_are(
    app: Connection[Any], owner: Connection[Any]
) -> None:
    event_ids = seeds.promise(app, seeds.ticks(100))
    deliver(owner, event_ids[:5], days_ago=8)
    deliver(owner, event_ids[5:], days_ago=1)
    report = maintain(owner, remaining_seconds=time_for(2))
    assert (report.archived, report.finished) == (5, True)


def test_what_lies_before_old_rows_does_not_hide_them(app: Connection[Any], owner: Connection[Any]) -> None:
    event_ids = seeds.promise(app, seeds.ticks(40))
    owner.execute("UPDATE outbox SET created_at = now() - interval '30 days'")
    deliver(owner, event_ids[30:], days_ago=8)
    assert maintain(owner).archived == 10
    assert ids_in(app, "outbox") == event_ids[:30]


def test_rows_that_somebody_has_locked_are_left_for_the_next_run(
    app: Connection[Any], owner: Connection[Any], database: TestDatabase
) -> None:
    event_ids = seeds.promise(app, seeds.ticks(3))
    deliver(owner, event_ids, days_ago=8)
    owner.execute("SET lock_timeout = '5s'")
    with connect(database.owner_url, application_name="other") as other:
        with other.transaction():
            other.execute("SELECT FROM outbox WHERE event_id = %s FOR UPDATE", [event_ids[1]])
            assert maintain(owner).archived == 2
        assert maintain(owner).archived == 1


def test_two_runs_at_once_share_the_work(app: Connection[Any], owner: Connection[Any], database: TestDatabase) -> None:
    event_ids = seeds.promise(app, seeds.ticks(400))
    deliver(owner, event_ids, days_ago=400)

    def run(_number: int) -> MaintenanceReport:
        with connect(database.owner_url, application_name="test") as connection:
            return maintain(connection, event_days=None)

    with ThreadPoolExecutor(4) as pool:
        reports = list(pool.map(run, range(4)))
    left_over = maintain(owner).archived  # what one skipped because another held it and was past it
    assert sum(report.archived for report in reports) + left_over == 400
    assert ids_in(app, "outbox_archive") == event_ids
    assert ids_in(app, "outbox") == []


def test_a_relay_at_work_and_maintenance_do_not_meet(
    app: Connection[Any], owner: Connection[Any], database: TestDatabase
) -> None:
    event_ids = seeds.promise(app, seeds.ticks(600))

    def relay_all() -> None:
        with connect(database.app_url, application_name="relay") as connection:
            connection.execute("SET lock_timeout = '5s'")
            while claim := store.claim(
                connection, token=uuid4(), claimed_by="r", lanes=seeds.lanes(20), max_bytes=relay.CLAIM_BYTES,
                lease_seconds=30, max_attempts=5,
            ):  # fmt: skip
                settled = connection.execute(
                    "UPDATE outbox SET claim_token = NULL, claimed_by = NULL, delivered_at = now(), message_id = 'm'"
                    " WHERE claim_token = %s",
                    [claim.token],
                )
                assert settled.rowcount == len(claim)

    archived = 0
    with ThreadPoolExecutor(1) as pool:
        relaying = pool.submit(relay_all)
        while not relaying.done():
            archived += maintain(owner, outbox_days=0, batch_size=50).archived
        relaying.result()
    archived += maintain(owner, outbox_days=0).archived
    assert archived == 600
    assert ids_in(app, "outbox_archive") == event_ids
    assert app.execute("SELECT DISTINCT delivery_attempts FROM outbox_archive").fetchall() == [(1,)]


def test_the_archive_has_the_outboxs_columns_in_their_order(app: Connection[Any]) -> None:
    (outbox, archive) = (
        app.execute(
            "SELECT attname, atttypid FROM pg_attribute"
            " WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum",
            [table],
        ).fetchall()
        for table in ("outbox", "outbox_archive")
    )
    assert archive == outbox


# Events


def old_lives(app: Connection[Any], owner: Connection[Any], numbers: int) -> list[UUID]:
    """Events with raw payload, promise, failure and processing, all of more than a year ago."""
    raw = RawPayload(uuid4(), "fake", seeds.FIRST_BAR, uuid4(), {})
    events = seeds.ticks(numbers)
    with app.transaction():
        store_events(app, [raw], [Draft(event, raw.id) for event in events])
    event_ids = [event.event_id for event in events]
    for event_id in event_ids:
        app.execute("INSERT INTO processed_events (consumer, event_id) VALUES ('signal_lab', %s)", [event_id])
    deliver(owner, event_ids, days_ago=400)
    backdate(owner, 400)
    return event_ids


def backdate(owner: Connection[Any], days: int) -> None:
    """As if everything stored until now had been stored so many days ago."""
    with owner.transaction():
        owner.execute("ALTER TABLE events DISABLE TRIGGER USER")
        owner.execute("ALTER TABLE raw_payloads DISABLE TRIGGER USER")
        owner.execute("UPDATE events SET ingested_at = now() - make_interval(days => %s)", [days])
        owner.execute("UPDATE raw_payloads SET fetched_at = now() - make_interval(days => %s)", [days])
        owner.execute("ALTER TABLE events ENABLE TRIGGER USER")
        owner.execute("ALTER TABLE raw_payloads ENABLE TRIGGER USER")


def count_all(connection: Connection[Any]) -> dict[str, int]:
    tables = ("raw_payloads", "events", "outbox", "outbox_archive", "delivery_failures", "processed_events")
    return {table: row[0] for table in tables for row in connection.execute(f"SELECT count(*) FROM {table}".encode())}


def test_events_are_kept_for_ever_unless_retention_is_asked_for(app: Connection[Any], owner: Connection[Any]) -> None:
    event_ids = old_lives(app, owner, 3)
    report = maintain(owner)
    assert (report.archived, report.deleted_events, report.deleted_raw_payloads) == (3, 0, 0)
    assert len(lives(app, event_ids)) == 3


@pytest.mark.parametrize("outbox_days", [WEEK, 3650])
def test_retention_deletes_whole_lives_and_nothing_younger(
    app: Connection[Any], owner: Connection[Any], outbox_days: int
) -> None:
    old = old_lives(app, owner, 25)
    (young,) = seeds.promise(app, seeds.failures(1))
    deliver(owner, [young], days_ago=1)
    app.execute("INSERT INTO processed_events (consumer, event_id) VALUES ('signal_lab', %s)", [young])
    kept = lives(app, [young])

    report = maintain(owner, outbox_days=outbox_days, event_days=YEAR)

    assert (report.deleted_events, report.deleted_raw_payloads, report.finished) == (25, 1, True)
    assert lives(app, old) == []
    assert lives(app, [young]) == kept
    assert count_all(app) == {
        "raw_payloads": 0, "events": 1, "outbox": 1, "outbox_archive": 0, "delivery_failures": 1,
        "processed_events": 1,
    }  # fmt: skip


def test_retention_spares_what_is_still_promised_with_its_raw_payload_and_takes_dead_letters(
    app: Connection[Any], owner: Connection[Any]
) -> None:
    _, dead, pending = old_lives(app, owner, 3)
    clear = "delivered_at = NULL, message_id = NULL"
    owner.execute(f"UPDATE outbox SET {clear} WHERE event_id = %s".encode(), [pending])
    owner.execute(
        f"UPDATE outbox SET {clear}, dead_lettered_at = now(), last_error = 'x' WHERE event_id = %s".encode(), [dead]
    )
    report = maintain(owner, event_days=YEAR)
    assert (report.deleted_events, report.deleted_raw_payloads, report.finished) == (2, 0, True)
    [life] = lives(app, [pending])
    assert life["raw_payload"] is not None
    assert len(life["processing"]) == len(life["promises"][0]["failures"]) == 1
    assert count_all(app) == {
        "raw_payloads": 1, "events": 1, "outbox": 1, "outbox_archive": 0, "delivery_failures": 1,
        "processed_events": 1,
    }  # fmt: skip


def test_raw_payloads_that_no_event_was_made_from_go_by_their_own_age(
    app: Connection[Any], owner: Connection[Any]
) -> None:
    for days in (400, 400, 300):
        app.execute(
            "INSERT INTO raw_payloads (id, source, fetched_at, trace_id, payload_json)"
            " VALUES (gen_random_uuid(), 'fake', now() - make_interval(days => %s), gen_random_uuid(), '{}')",
            [days],
        )
    assert maintain(owner, event_days=YEAR, batch_size=1).deleted_raw_payloads == 2
    assert seeds.counts(app) == (1, 0, 0)


def test_retention_too_works_in_batches_and_goes_on(app: Connection[Any], owner: Connection[Any]) -> None:
    event_ids = old_lives(app, owner, 25)
    # Time for one look at the outbox and two batches of events.
    report = maintain(owner, event_days=YEAR, outbox_days=3650, remaining_seconds=time_for(3))
    assert (report.deleted_events, report.finished) == (20, False)
    assert len(lives(app, event_ids)) == 5
    assert maintain(owner, event_days=YEAR, outbox_days=3650).deleted_events == 5


def test_an_event_that_a_replay_is_busy_with_is_left(
    app: Connection[Any], owner: Connection[Any], database: TestDatabase
) -> None:
    first, _ = old_lives(app, owner, 2)
    owner.execute("SET lock_timeout = '5s'")
    with connect(database.app_url, application_name="replay") as replaying, replaying.transaction():
        replaying.execute("INSERT INTO outbox (event_id, topic, payload_json) VALUES (%s, 'a.b', '{}')", [first])
        assert maintain(owner, event_days=YEAR).deleted_events == 1
    assert len(lives(app, [first])[0]["promises"]) == 2


def test_what_is_immutable_stays_so_after_a_run(app: Connection[Any], owner: Connection[Any]) -> None:
    old_lives(app, owner, 2)
    maintain(owner, event_days=500)
    for table in ("events", "raw_payloads", "outbox_archive"):
        for change in ("DELETE FROM {}", "TRUNCATE {} CASCADE"):
            with pytest.raises(errors.RestrictViolation, match=f"on {table} refused"):
                owner.execute(change.format(table).encode())
    with pytest.raises(errors.RestrictViolation):
        owner.execute("UPDATE outbox_archive SET message_id = 'forged'")


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM outbox_archive",
        "UPDATE outbox_archive SET message_id = 'forged'",
        "INSERT INTO outbox_archive SELECT * FROM outbox",
        "TRUNCATE outbox_archive",
    ],
)
def test_the_functions_role_may_read_the_archive_alone(app: Connection[Any], statement: str) -> None:
    with pytest.raises(errors.InsufficientPrivilege):
        app.execute(statement.encode())


def test_the_functions_role_cannot_do_maintenance(app: Connection[Any], owner: Connection[Any]) -> None:
    event_ids = old_lives(app, owner, 2)
    with pytest.raises(errors.InsufficientPrivilege):
        maintain(app, event_days=YEAR)
    assert len(lives(app, event_ids)) == 2


# The transaction horizon


@pytest.fixture
def pinning(database: TestDatabase) -> Iterator[Connection[Any]]:
    """A session of the superuser's that holds a snapshot."""
    with (
        psycopg.connect(database.admin_url, application_name="a long report", autocommit=True) as connection,
        connection.transaction(),
    ):
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        connection.execute("SELECT count(*) FROM events")
        yield connection


def test_a_quiet_database_pins_nothing(owner: Connection[Any], app: Connection[Any]) -> None:
    assert pinned_horizon(owner, seconds=0, transactions=0) is None


def test_a_session_that_pins_the_horizon_is_named_with_its_age_to_who_may_see_it(
    owner: Connection[Any], pinning: Connection[Any], database: TestDatabase
) -> None:
    pid = str(pinning.info.backend_pid)
    with psycopg.connect(database.admin_url, autocommit=True) as admin:
        holder = pinned_horizon(admin, seconds=0)
        assert holder is not None
        assert (holder.kind, holder.name, holder.username) == ("session", pid, "postgres")
        assert holder.application == "a long report"
        assert holder.age_seconds is not None
        assert 0 < holder.age_seconds < 600
        assert f"by session {pid} (postgres, a long report)" in str(holder)
        assert pinned_horizon(admin) is None  # it is young


def test_a_session_whose_age_is_hidden_is_named_by_the_transactions_since(
    owner: Connection[Any], pinning: Connection[Any]
) -> None:
    assert pinned_horizon(owner, seconds=0) is None
    for _ in range(3):
        owner.execute("SELECT pg_current_xact_id()")
    holder = pinned_horizon(owner, transactions=3)
    assert holder is not None
    assert (holder.name, holder.age_seconds) == (str(pinning.info.backend_pid), None)
    assert holder.transactions >= 3
    assert f"for {holder.transactions} transactions by session" in str(holder)


def test_a_session_of_another_database_pins_nothing_here(owner: Connection[Any], postgres: PostgresServer) -> None:
    with psycopg.connect(postgres.url()) as elsewhere:
        elsewhere.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        elsewhere.execute("SELECT pg_current_xact_id()")
        assert pinned_horizon(owner, seconds=0, transactions=0) is None


def test_maintenance_goes_on_under_a_pinned_horizon_and_names_it_in_its_report_and_log(
    app: Connection[Any], owner: Connection[Any], database: TestDatabase
) -> None:
    deliver(owner, seeds.promise(app, seeds.ticks(30)), days_ago=8)
    telemetry, log = Telemetry("test"), io.StringIO()
    telemetry.logger.registered_handler.setStream(log)  # type: ignore[attr-defined]  # it is a StreamHandler
    with connect(database.owner_url, application_name="forgotten") as pinning, pinning.transaction():
        pinning.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        pinning.execute("SELECT FROM outbox")
        report = Maintenance(
            outbox_retention_days=WEEK,
            event_retention_days=None,
            telemetry=telemetry,
            batch_size=10,
            pinned_after_seconds=0,
        ).run(owner, remaining_seconds=plenty)
        status = read_status(owner, pinned_after_seconds=0)
    assert report.archived == 30
    assert report.pinned_horizon is not None
    assert report.pinned_horizon.application == "forgotten"
    [line] = map(json.loads, log.getvalue().splitlines())
    assert (line["level"], line["message"]) == ("WARNING", str(report.pinned_horizon))
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
        assert (holder.kind, holder.name, holder.username) == ("prepared transaction", "forgotten", "postgres")
        connection.execute("ROLLBACK PREPARED 'forgotten'")
        assert pinned_horizon(connection, seconds=0) is None
