"""The drills' queries, and how mending undoes their changes from the record."""

import re
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from psycopg import Connection
from tests.conftest import PASSWORD, TestDatabase
from tests.integration import seeds
from tests.integration.running_cloud import deliver, give_up

from control_plane.ingestion.store import database_time
from control_plane.operations.engine import Engine
from control_plane.operations.redrive import Redrive
from control_plane.platform import breakers
from control_plane.platform.breakers import BreakerPolicy, Breakers
from control_plane.platform.telemetry import Telemetry
from domains.finance import detector, signal_lab
from drills import mending, messages, record
from drills.messages import QUERIES, Batch
from drills.record import Change, DrillRecord
from local_cloud import database as local_database
from local_cloud.aws import LocalCloud
from local_cloud.cloud import Cloud
from local_cloud.errors import AcpError
from local_cloud.postgres import PostgresServer
from local_cloud.roles import SECRETS
from local_cloud.run_state import Deployment, RunState
from local_cloud.workspace import CHECKOUT, Workspace

QUEUE = "acp-market-ticks-1a2b"
SUBSCRIPTION = messages.SUBSCRIPTION
MENDED = "The drill queue-outage had been cut off; what it left is put right."
DRILLS = {"source": messages.SOURCE, "entity_id": messages.ENTITY}


# --- queries ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", QUERIES)
def test_postgres_can_prepare_each_query(owner: Connection[Any], name: str) -> None:
    seeds.prepare(owner, QUERIES[name])


@pytest.mark.parametrize("name", QUERIES)
def test_each_query_has_a_purpose_and_is_used(name: str) -> None:
    assert re.match(r"[A-Z].{20,}[.:]", QUERIES[name].description), QUERIES[name].description
    assert any(f'"{name}"' in path.read_text() for path in Path(messages.__file__).parent.glob("*.py"))


@pytest.fixture
def batch(app: Connection[Any]) -> Batch:
    made = Batch.make(drill="poison", trace_id=uuid4(), count=3, now=database_time(app))
    made.store(app)
    return made


def read(app: Connection[Any], batch: Batch) -> list[messages.OutboxMessage]:
    return messages.read(app, [batch.raw.trace_id])


def test_messages_of_stored_events_are_read_in_order(app: Connection[Any], batch: Batch) -> None:
    stored = read(app, batch)
    assert [one.event_id for one in stored] == batch.ids
    assert {(one.topic, one.state, one.attempts, one.is_consumed) for one in stored} == {
        ("market.ticks", "pending", 0, False)
    }
    assert messages.read(app, [uuid4()]) == []


def work_of(owner: Connection[Any]) -> Callable[[], None]:
    """Returns what does all that is due of operations, as OperationsFunction does."""
    engine = Engine(owner, [Redrive()], Telemetry("operations"))

    def work() -> None:
        while engine.work():
            pass

    return work


def test_only_the_drills_own_dead_letters_are_redriven(
    app: Connection[Any], owner: Connection[Any], batch: Batch
) -> None:
    others = seeds.store(app, seeds.ticks(1) + seeds.ticks(1, entity_id=messages.ENTITY))
    give_up(owner, [*batch.ids, *others], "poison")
    assert mending.redrive_drills(owner, work_of(owner)) == 3
    assert mending.redrive_drills(owner, work_of(owner)) == 0
    assert {(one.state, one.attempts, len(one.failed_at)) for one in read(app, batch)} == {("pending", 0, 1)}
    assert app.execute("SELECT count(*) FROM dead_letters WHERE resolution IS NULL").fetchone() == (2,)


def test_a_redrive_that_somebody_cancels_is_not_waited_for(
    app: Connection[Any], owner: Connection[Any], batch: Batch
) -> None:
    give_up(owner, batch.ids, "poison")
    work = work_of(owner)

    def cancelled() -> None:
        work()
        owner.execute("UPDATE operations SET state = 'cancelled', finished_at = now() WHERE state = 'planned'")

    with pytest.raises(AcpError, match="is cancelled"):
        mending.redrive_drills(owner, cancelled)


def test_a_subscription_that_somebody_has_added_is_not_the_drills(
    app: Connection[Any], owner: Connection[Any], batch: Batch
) -> None:
    ids = [one.id for one in read(app, batch)]
    owner.execute("INSERT INTO subscriptions (name, topic) VALUES ('another', 'market.ticks')")
    owner.execute(
        "INSERT INTO pending_deliveries (outbox_id, subscription) SELECT unnest(%s::bigint[]), 'another'", [ids]
    )
    assert [(one.id, one.subscription) for one in read(app, batch)] == [(number, "signal_lab") for number in ids]


def test_waits_are_cut_short_where_nobody_has_the_row(app: Connection[Any], batch: Batch) -> None:
    ids = [one.id for one in read(app, batch)]
    app.execute("UPDATE pending_deliveries SET next_attempt_at = now() + interval '1 hour'")
    app.execute(
        "UPDATE pending_deliveries SET claim_token = gen_random_uuid(), claimed_by = 'x', delivery_attempts = 1"
        " WHERE outbox_id = %s",
        ids[:1],
    )
    app.execute(QUERIES["make_due"].sql, {"ids": ids, "subscription": messages.SUBSCRIPTION})
    assert [one.due_in_seconds > 1 for one in read(app, batch)] == [True, False, False]


def test_unfinished_messages_are_counted(app: Connection[Any], owner: Connection[Any], batch: Batch) -> None:
    def unfinished() -> tuple[Any, ...] | None:
        return app.execute(QUERIES["unfinished"].sql, {**DRILLS, "subscription": messages.SUBSCRIPTION}).fetchone()

    seeds.store(app, seeds.ticks(1))
    assert unfinished() == (3, 3, 4)
    deliver(owner)
    assert unfinished() == (0, 3, 0)
    signal_lab.consume(app, batch.events[0])
    assert unfinished() == (0, 2, 0)


def test_effects_are_counted_and_forgotten_by_the_owner_alone(
    app: Connection[Any], owner: Connection[Any], batch: Batch
) -> None:
    for event in batch.events:
        signal_lab.consume(app, event)
        detector.consume(app, event)
    assert app.execute(QUERIES["effects"].sql, {"event_ids": batch.ids}).fetchone() == (3,)
    assert app.execute("SELECT count(*) FROM detector_bars").fetchone() == (3,)
    for query in ("forget_bars", "forget_prices", "forget_detector_bars"):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            app.execute(QUERIES[query].sql, {"source": messages.SOURCE})
        app.rollback()
        owner.execute(QUERIES[query].sql, {"source": messages.SOURCE})
    assert app.execute("SELECT FROM signal_lab_latest_prices").fetchall() == []
    assert app.execute("SELECT FROM detector_bars").fetchall() == []


def test_relay_begun_before_an_instant_is_seen(app: Connection[Any], database: TestDatabase) -> None:
    def at_work(since: Any, quiet_seconds: float = 5) -> int:
        row = app.execute(
            QUERIES["relays_begun_before"].sql, {"since": since, "quiet_seconds": quiet_seconds}
        ).fetchone()
        assert row is not None
        count: int = row[0]
        return count

    before = database_time(app)
    with psycopg.connect(database.app_url, application_name="acp-relay", autocommit=True) as relay:
        relay.execute("SELECT 1")
        after = database_time(app) + timedelta(seconds=1)
        assert at_work(before) == 0
        assert at_work(after) == 1
        assert at_work(after, quiet_seconds=0) == 0


# --- mending ----------------------------------------------------------------------------------------------------------


class FakeFunctions:
    """Two deployed functions' variables."""

    class exceptions:  # noqa: N801 - as boto3 names it
        class ResourceNotFoundException(Exception):
            pass

    def __init__(self) -> None:
        self.variables: dict[str, dict[str, str]] = {}

    def get_function_configuration(self, *, FunctionName: str) -> dict[str, Any]:  # noqa: N803
        if FunctionName not in self.variables:
            raise self.exceptions.ResourceNotFoundException
        return {"Environment": {"Variables": self.variables[FunctionName]}}

    def update_function_configuration(self, *, FunctionName: str, Environment: dict[str, Any]) -> None:  # noqa: N803
        self.variables[FunctionName] = Environment["Variables"]

    def get_waiter(self, _name: str) -> "FakeFunctions":
        return self

    def wait(self, **_arguments: object) -> None:
        """Returns at once."""


class FakeAws(LocalCloud):
    deployed: FakeFunctions
    invoked: list[str]
    relay: Any
    operations: Any

    @property
    def functions(self) -> Any:
        return self.deployed

    def invoke(self, function: str, event: Any) -> Any:
        self.invoked.append(function)
        match function:
            case "Relay":
                return self.relay()
            case "Operations":
                return self.operations()
            case _:
                return {}


class FakeCloud(Cloud):
    """A cloud that seems to run, with the test's own database and stand-ins for its functions."""

    def __init__(self, workspace: Workspace, server: PostgresServer) -> None:
        super().__init__(workspace)
        self._server = server
        self.fake = FakeAws("http://localhost:4566")
        for name, value in (("deployed", FakeFunctions()), ("invoked", []), ("relay", dict), ("operations", dict)):
            object.__setattr__(self.fake, name, value)

    def running(self) -> RunState:
        outputs = {f"{name}FunctionName": name for name in ("Relay", "Ingestion", "Operations")}
        environ = {"SUBSCRIPTION_QUEUE_URLS": f'{{"signal_lab": "http://sqs/000000000000/{QUEUE}"}}'}
        return RunState(
            role_passwords=dict.fromkeys(SECRETS.values(), PASSWORD),
            endpoint="http://localhost:4566",
            market_source="replay",
            deployment=Deployment("1@2", template="", code="", outputs=outputs, environ=environ),
        )

    def postgres(self, run: RunState) -> PostgresServer:
        return self._server

    def aws(self, run: RunState) -> FakeAws:
        return self.fake


@pytest.fixture
def cloud(
    postgres: PostgresServer, database: TestDatabase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> FakeCloud:
    monkeypatch.setattr(local_database, "NAME", database.name)
    monkeypatch.setattr(mending, "_CONSUME_SECONDS", 0.5)
    return FakeCloud(Workspace(CHECKOUT, tmp_path, tmp_path / "state"), postgres)


def left_behind(cloud: FakeCloud) -> DrillRecord:
    """Saves the record of a drill that was interrupted."""
    begun = DrillRecord("queue-outage", pid=1, created=0.0)
    begun.functions["Relay"] = Change({"LEASE_SECONDS": "30", "URL": None}, {"LEASE_SECONDS": "11", "URL": "http://x"})
    begun.save(cloud.workspace)
    return begun


def test_mending_restores_everything_and_deletes_the_record(
    cloud: FakeCloud, app: Connection[Any], owner: Connection[Any], batch: Batch
) -> None:
    left_behind(cloud)
    cloud.fake.deployed.variables["Relay"] = {"LEASE_SECONDS": "11", "URL": "http://x", "OTHER": "1"}
    give_up(owner, batch.ids[:1], "poison")
    policy = BreakerPolicy(failure_threshold=1, cool_down_seconds=3600)
    Breakers(lambda: app, policy).failed(SUBSCRIPTION, "down")
    Breakers(lambda: app, policy).failed("yfinance-replay", "down")
    for event in batch.events:
        signal_lab.consume(app, event)
        detector.consume(app, event)

    def relay() -> dict[str, Any]:
        (breaker,) = breakers.read_breakers(app, [SUBSCRIPTION])
        assert breaker.probe_is_due, "the cool-down is cut short"
        deliver(owner)
        Breakers(lambda: app, policy).succeeded(SUBSCRIPTION)
        return {}

    def operations() -> dict[str, Any]:
        work_of(owner)()
        return {}

    object.__setattr__(cloud.fake, "relay", relay)
    object.__setattr__(cloud.fake, "operations", operations)
    said: list[str] = []
    assert mending.mend_what_was_left(cloud, cloud.running(), said.append) == "queue-outage"
    assert said == ["Relay has its own settings again", "1 dead letters of drills are redriven", MENDED]
    assert cloud.fake.deployed.variables["Relay"] == {"LEASE_SECONDS": "30", "OTHER": "1"}
    assert {one.state for one in read(app, batch)} == {"delivered"}
    assert cloud.fake.invoked == ["Operations", "Operations", "Ingestion", "Relay"]
    (source,) = breakers.read_breakers(app, ["yfinance-replay"])
    assert source.probe_is_due, "the run that was invoked may probe"
    assert app.execute("SELECT FROM signal_lab_bars").fetchall() == []
    assert app.execute("SELECT FROM detector_bars").fetchall() == []
    assert record.load(cloud.workspace) is None
    assert mending.mend_what_was_left(cloud, cloud.running(), said.append) is None


def test_a_function_that_is_gone_takes_nothing_back(cloud: FakeCloud, owner: Connection[Any]) -> None:
    left_behind(cloud)
    said: list[str] = []
    assert mending.mend_what_was_left(cloud, cloud.running(), said.append) == "queue-outage"
    assert (said, cloud.fake.invoked) == ([MENDED], [])


def test_a_breaker_that_a_person_holds_is_theirs(cloud: FakeCloud, app: Connection[Any]) -> None:
    left_behind(cloud)
    breakers.hold(app, SUBSCRIPTION, by="ada")
    breakers.hold(app, "yfinance-replay", by="ada")
    mending.mend_what_was_left(cloud, cloud.running(), lambda _text: None)
    assert {breaker.held_by for breaker in breakers.read_breakers(app)} == {"ada"}
    assert cloud.fake.invoked == []


def test_an_undeliverable_message_keeps_the_record(
    cloud: FakeCloud, app: Connection[Any], batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mending, "_DELIVER_SECONDS", 0.2)
    left = left_behind(cloud)
    with pytest.raises(AcpError, match="3 messages of drills to signal_lab wait") as failed:
        mending.mend_what_was_left(cloud, cloud.running(), lambda _text: None)
    assert "scripts/acp drill --mend" in failed.value.remedy
    assert record.load(cloud.workspace) == left


def test_wait_for_an_idle_consumer_ends(cloud: FakeCloud, owner: Connection[Any], batch: Batch) -> None:
    left_behind(cloud)
    deliver(owner)
    assert mending.mend_what_was_left(cloud, cloud.running(), lambda _text: None) == "queue-outage"


def test_the_market_s_fault_is_ended(cloud: FakeCloud, owner: Connection[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[tuple[Any, ...]] = []
    monkeypatch.setattr(mending, "set_market_fault", lambda *arguments: ended.append(arguments))
    left = DrillRecord("source-down", pid=1, created=0.0, market_faults=["*"])
    left.save(cloud.workspace)
    mending.mend_what_was_left(cloud, cloud.running(), lambda _text: None)
    assert ended == [(None, "*", None)]


def test_a_replay_that_does_not_answer_is_named() -> None:
    with pytest.raises(AcpError, match=r"The market replay at http://127\.0\.0\.1:1 did not take the fault of"):
        mending.set_market_fault("http://127.0.0.1:1", "*", None)
    mending.set_market_fault(None, "*", None)
