"""What the tests of operations share: people who command, an engine that works, and rows to work on."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from psycopg import Connection
from tests.integration import seeds

from control_plane.model.domain import OnReplay
from control_plane.model.lifecycle import Accepted, MessageFault
from control_plane.operations import service
from control_plane.operations.engine import OperationsReport, run_operations
from control_plane.operations.kind import Kind, Operation
from control_plane.operations.redrive import Redrive
from control_plane.operations.replay import Replay
from control_plane.operations.rows import read_operation
from control_plane.platform.telemetry import Telemetry

KINDS: Sequence[Kind] = (Redrive(), Replay({"signal_lab": OnReplay.SAFE, "system_events": OnReplay.SKIP}))


@dataclass
class World:
    """Commands are given as acp_command for root's token, steps are made as acp_maintain."""

    command: Connection[Any]
    maintain: Connection[Any]
    telemetry: Telemetry
    kinds: Sequence[Kind] = KINDS

    def request(self, kind: str, *, rate: float | None = None, **wanted: Any) -> UUID:
        change = service.request_operation(
            self.command, self.kinds, kind=kind, wanted=wanted, requested_by="root", rate=rate
        )
        return change.after.operation_id

    def plan(self, kind: str, *, rate: float | None = None, **wanted: Any) -> Operation:
        """Requests an operation and has it planned."""
        operation_id = self.request(kind, rate=rate, **wanted)
        self.run()
        return self.read(operation_id)

    def start(self, operation: Operation, **changes: Any) -> Operation:
        given = {"plan_hash": operation.plan_hash, "started_by": "root", "reason": "it is mended"} | changes
        return service.start_operation(self.command, operation.operation_id, **given).after

    def cancel(self, operation_id: UUID) -> Operation:
        return service.cancel_operation(self.command, self.kinds, operation_id, by="root").after

    def run(self, *, lease_seconds: float = 30, sleep: Callable[[float], None] | None = None) -> OperationsReport:
        """Runs the engine until nothing is due; a paced operation is left where it waits."""

        class Waits(Exception):
            pass

        def stop(_seconds: float) -> None:
            raise Waits

        try:
            return run_operations(
                self.maintain,
                self.kinds,
                self.telemetry,
                lambda: 60.0,
                sleep=sleep or stop,
                lease_seconds=lease_seconds,
            )
        except Waits:
            return OperationsReport()

    def read(self, operation_id: UUID) -> Operation:
        found = read_operation(self.command, operation_id)
        assert found is not None
        return found


def make_letters(owner: Connection[Any], count: int, *, subscription: str = "signal_lab", reason: str = "big") -> None:
    """Stores messages that this subscription's relay has given up on."""
    _store_in_bulk(owner, count, subscription)
    owner.execute(
        "WITH gone AS (DELETE FROM pending_deliveries WHERE subscription = %s RETURNING *)"
        " INSERT INTO dead_letters (outbox_id, subscription, promised_at, delivery_attempts, reason)"
        " SELECT outbox_id, subscription, promised_at - interval '3 days', 3, %s FROM gone",
        [subscription, reason],
    )


def make_delivered(owner: Connection[Any], count: int, *, subscription: str = "signal_lab") -> None:
    """Stores messages that this subscription's queue has accepted, and its consumer processed."""
    _store_in_bulk(owner, count, subscription)
    owner.execute(
        "WITH gone AS (DELETE FROM pending_deliveries WHERE subscription = %s RETURNING *), kept AS ("
        " INSERT INTO deliveries (outbox_id, subscription, delivery_attempts, message_id)"
        " SELECT outbox_id, subscription, 1, 'm' FROM gone RETURNING outbox_id)"
        " INSERT INTO processed_events (consumer, event_id)"
        " SELECT %s, event_id FROM outbox JOIN kept ON id = outbox_id",
        [subscription, subscription],
    )


def _store_in_bulk(owner: Connection[Any], count: int, subscription: str) -> None:
    ((topic,),) = owner.execute("SELECT topic FROM subscriptions WHERE name = %s", [subscription]).fetchall()
    owner.execute(
        "WITH event AS ("
        " INSERT INTO events (event_id, event_type, source, entity_id, occurred_at, ingested_at, schema_version,"
        " trace_id, payload_json, series)"
        " SELECT gen_random_uuid(), CASE n %% 2 WHEN 0 THEN 'EVEN_HAPPENED' ELSE 'ODD_HAPPENED' END, 'bulk', 'AAPL',"
        " timestamptz '2026-01-05 14:32Z' + n * interval '1 minute', now(), 1, gen_random_uuid(), '{}',"
        " gen_random_uuid()::text FROM generate_series(0, %(count)s - 1) AS n RETURNING *),"
        " message AS (INSERT INTO outbox (event_id, topic, event_type, schema_version, trace_id, payload_json)"
        " SELECT event_id, %(topic)s, event_type, 1, trace_id, '{}' FROM event RETURNING id)"
        " INSERT INTO pending_deliveries (outbox_id, subscription) SELECT id, %(subscription)s FROM message",
        {"count": count, "topic": topic, "subscription": subscription},
    )


def deliver_all(connection: Connection[Any]) -> int:
    """Claims and settles everything that is due as accepted; returns how many deliveries that were."""
    total = 0
    while settled := seeds.settle(connection, seeds.claim(connection, rows=1000), Accepted("m")):
        total += len(settled)
    return total


def dead_letter_all(connection: Connection[Any]) -> None:
    """Gives up on everything that is due."""
    while seeds.settle(connection, seeds.claim(connection, rows=1000), MessageFault("big")):
        pass


def pending_of(connection: Connection[Any], operation_id: UUID) -> int:
    """Returns how many deliveries of an operation are pending."""
    ((count,),) = connection.execute(
        "SELECT count(*) FROM delivery_states"
        " WHERE operation_id = %s AND state IN ('pending', 'in_flight', 'retrying')",
        [operation_id],
    ).fetchall()
    return int(count)
