from __future__ import annotations

import json
import os
import socket
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING
from unittest.mock import create_autospec
from uuid import UUID

import pytest
from rich.console import Console

from control_plane.platform.breakers import Breaker
from drills import record
from drills.messages import ENTITY, SOURCE, Batch, OutboxMessage, Story
from drills.narrator import Narrator, Result
from drills.record import Change, DrillRecord
from drills.scenarios import DRILLS
from drills.stage import Look, Stage, process_behind
from local_cloud.errors import AcpError
from local_cloud.workspace import CHECKOUT, Workspace
from queue_endpoint import Accepted, QueueEndpoint

if TYPE_CHECKING:
    from pathlib import Path


NOW = datetime(2026, 1, 5, 14, 32, tzinfo=UTC)
CLOSED = Breaker("q")


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(CHECKOUT, tmp_path, tmp_path / "state")


def message(number: int = 1, state: str = "pending", **changes: object) -> OutboxMessage:
    made = OutboxMessage(
        id=number,
        event_id=UUID(int=number),
        event_type="MARKET_TICK_INGESTED",
        entity_id=ENTITY,
        topic="market.ticks",
        subscription="signal_lab",
        state=state,
        attempts=0,
        due_in_seconds=0.0,
        claimed_by=None,
        last_error=None,
        message_id=None,
        created_at=NOW,
        delivered_at=NOW if state == "delivered" else None,
        dead_lettered_at=NOW if state == "dead_lettered" else None,
        failed_at=(),
        is_consumed=False,
    )
    return replace(made, **changes)  # type: ignore[arg-type]


# --- the result -------------------------------------------------------------------------------------------------------


def test_a_result_is_json_with_what_happened_when() -> None:
    result = Result("poison", "it delays no neighbour")
    narrator = Narrator(Console(quiet=True))
    with narrator.telling(result):
        narrator.say("one message is poison")
        narrator.claim("nothing is lost", held=True, seen="20 of 20")
    result.problem = ""
    content = json.loads(json.dumps(result.to_dict()))
    assert content["held"] is True
    assert content["claims"] == [{"claim": "nothing is lost", "held": True, "seen": "20 of 20"}]
    ((seconds, text),) = content["timeline"]
    assert text == "one message is poison"
    assert seconds >= 0


# --- the record -------------------------------------------------------------------------------------------------------


def test_a_change_is_taken_back_variable_by_variable() -> None:
    before = {"LEASE_SECONDS": "30", "SYMBOLS": "AAPL"}
    change = Change.of(before, {"LEASE_SECONDS": "11", "AWS_ENDPOINT_URL_SQS": "http://127.0.0.1:1"})
    during = change.applied(before)
    assert during == {"LEASE_SECONDS": "11", "SYMBOLS": "AAPL", "AWS_ENDPOINT_URL_SQS": "http://127.0.0.1:1"}
    assert change.reverted(during) == before
    assert change.reverted(before) == before, "once more changes nothing"


def test_a_newer_deployment_is_not_reverted() -> None:
    change = Change.of({"LEASE_SECONDS": "30"}, {"LEASE_SECONDS": "11"})
    assert change.reverted({"LEASE_SECONDS": "20", "SYMBOLS": "IBM"}) == {"LEASE_SECONDS": "20", "SYMBOLS": "IBM"}
    assert change.reverted({"SYMBOLS": "IBM"}) == {"SYMBOLS": "IBM"}


def test_the_record_is_found_again_until_it_is_cleared(workspace: Workspace) -> None:
    assert record.load(workspace) is None
    begun = DrillRecord.begin("poison")
    begun.functions["Relay"] = Change({"A": None, "B": "1"}, {"A": "2", "B": "3"})
    begun.market_faults.append("*")
    begun.save(workspace)
    assert record.load(workspace) == begun
    begun.clear(workspace)
    assert record.load(workspace) is None
    begun.clear(workspace)


def test_record_tells_a_running_drill_from_an_interrupted_one() -> None:
    mine = DrillRecord.begin("poison")
    assert mine.problem == "the drill poison is under way"
    # The pid now belongs to another process.
    another = replace(mine, created=mine.created - 3600)
    assert not another.is_running
    assert another.problem.endswith("was cut off before it had put everything right: scripts/acp drill --mend")


def test_a_record_of_another_version_is_named_with_its_remedy(workspace: Workspace) -> None:
    (workspace.state).mkdir(parents=True)
    (workspace.state / "drill.json").write_text('{"drill": "poison"}')
    with pytest.raises(AcpError, match=r"drill\.json was written by another version of acp"):
        record.load(workspace)


# --- the story --------------------------------------------------------------------------------------------------------


def test_like_messages_share_a_line_and_no_change_prints_nothing() -> None:
    story = Story()
    assert story.tell([message(1), message(2), message(3)], CLOSED) == ["3 pending"]
    assert story.tell([message(1), message(2), message(3)], CLOSED) == []
    claimed = [message(number, "in_flight", attempts=1, due_in_seconds=10.9) for number in (1, 2)]
    assert story.tell([*claimed, message(3)], CLOSED) == ["2 claimed, attempt 1; the lease ends in 10.9 s"]
    delivered = [message(number, "delivered", attempts=1, is_consumed=number == 1) for number in (1, 2)]
    assert story.tell([*delivered, message(3)], CLOSED) == ["2 delivered at attempt 1", "1 consumed"]


def test_failed_and_returned_attempts_are_distinguished() -> None:
    story = Story()
    claimed = [message(number, "in_flight", attempts=1) for number in (1, 2, 3)]
    story.tell(claimed, CLOSED)
    told = story.tell(
        [
            message(1, "retrying", attempts=1, failed_at=[NOW], last_error="Mystery: no", due_in_seconds=2.1),
            message(2, "retrying", attempts=1, failed_at=[NOW], last_error="Mystery: no", due_in_seconds=2.4),
            message(3, "retrying", attempts=0, last_error="InternalFailure: no", due_in_seconds=2.0),
        ],
        CLOSED,
    )
    assert told == [
        "2 failed attempt 1: Mystery: no; next try in 2.1 to 2.4 s",
        "1 given back, attempts spent: 0; InternalFailure: no; due in 2.0 s",
    ]


def test_lost_attempt_is_narrated_when_its_row_is_reclaimed() -> None:
    story = Story()
    story.tell([message(1, "in_flight", attempts=1, claimed_by="a")], CLOSED)
    assert story.tell([message(1, "pending", attempts=1, claimed_by="a")], CLOSED) == [
        "1 left by a relay that is gone: the lease has run out"
    ]
    (line,) = story.tell([message(1, "in_flight", attempts=2, failed_at=[NOW], claimed_by="b")], CLOSED)
    assert line.endswith("(attempt 1 is recorded as failed)")


def test_a_dead_letter_and_its_redrive_are_reported() -> None:
    story = Story()
    story.tell([message(1, "in_flight", attempts=1)], CLOSED)
    dead = message(1, "dead_lettered", attempts=1, failed_at=[NOW], last_error="too large")
    assert story.tell([dead], CLOSED) == ["1 dead-lettered: too large"]
    assert story.tell([message(1, failed_at=[NOW])], CLOSED) == ["1 pending again"]


def test_breaker_is_narrated_only_when_its_state_changes() -> None:
    story = Story()

    def tell(state: str, wait: float | None, failures: int = 3) -> list[str]:
        return story.tell([], Breaker("q", state, failures, NOW, wait))

    assert story.tell([], CLOSED) == []
    assert tell("open", 3.0) == ["breaker open after 3 failures, next probe in 3.0 s"]
    assert tell("open", 2.5) == tell("open", 0.1) == []
    assert tell("open", 2.9, 4) == ["breaker open after 4 failures, next probe in 2.9 s"], "a probe failed"
    assert tell("half_open", 2.8) == ["breaker half-open: one probe is on its way"]
    assert story.tell([], CLOSED) == ["breaker closed"]


def test_attempts_are_spent_by_failures_recorded_or_not() -> None:
    assert Look([message(1, "delivered", attempts=1)], CLOSED).attempts_spent == 0
    assert Look([message(1, "retrying", attempts=0, last_error="down")], CLOSED).attempts_spent == 0
    assert Look([message(1, "delivered", attempts=3, failed_at=[NOW, NOW])], CLOSED).attempts_spent == 2
    assert Look([message(1, "delivered", attempts=2)], CLOSED).attempts_spent == 1, "lost, and nowhere recorded"
    assert Look([message(1, "in_flight", attempts=1), message(2, "delivered", attempts=1)], CLOSED).attempts_spent == 1


# --- its events and its victim ----------------------------------------------------------------------------------------


def test_drill_events_fit_the_contract_and_name_the_drill() -> None:
    batch = Batch.make(drill="poison", trace_id=UUID(int=7), count=3, now=NOW)
    assert len(set(batch.ids)) == 3
    assert {look.payload.topic for look in batch.looks} == {"market.ticks"}
    for index, event in enumerate(batch.events):
        assert (event.source, event.entity_id, event.entity_type) == (SOURCE, ENTITY, None)
        assert event.payload["currency"] == "XTS"
        assert event.occurred_at == NOW + timedelta(microseconds=index)
        assert event.trace_id == batch.raw.trace_id
    again = Batch.make(drill="poison", trace_id=UUID(int=8), count=3, now=NOW + timedelta(seconds=1))
    assert not set(batch.ids) & set(again.ids)


def test_what_other_queues_got_is_no_second_delivery() -> None:
    stage = Stage.__new__(Stage)
    stage.queue = "market-ticks"
    endpoint = create_autospec(QueueEndpoint, instance=True)
    once, twice, never = (UUID(int=number) for number in (1, 2, 3))
    endpoint.accepted.return_value = [
        Accepted("market-ticks", str(once), "a"),
        Accepted("detector", str(once), "b"),
        Accepted("market-ticks", str(twice), "c"),
        Accepted("market-ticks", str(twice), "d"),
        Accepted("detector", str(never), "e"),
        Accepted("market-ticks", str(UUID(int=4)), "f"),
        Accepted("market-ticks", None, "g"),
    ]
    assert stage.accepted(endpoint, [once, twice, never]) == {once: ["a"], twice: ["c", "d"], never: []}


def test_process_at_the_other_end_of_connection_is_found() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        server_port, port = server.getsockname()[1], client.getsockname()[1]
        assert process_behind(port, server_port).pid == os.getpid()
        with pytest.raises(AcpError, match=f"holds the relay's connection \\(port {server_port + 1}\\)"):
            process_behind(server_port + 1, server_port)


def test_each_drill_s_line_fits_a_terminal() -> None:
    width = max(len(drill.name) for drill in DRILLS) + 2
    assert all(width + len(drill.guarantee) <= 80 for drill in DRILLS)
