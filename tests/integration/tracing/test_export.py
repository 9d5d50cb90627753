"""The export of traces: complete, across restarts, whatever the receiver does."""

from collections.abc import Iterator, Sequence
from typing import Any
from uuid import UUID

import psycopg
import pytest
from psycopg import Connection
from tests.conftest import TestDatabase
from tests.integration import seeds
from tests.otlp import Answer, FakeReceiver, receiving, rejecting

from control_plane.consumers.once import once
from control_plane.model.lifecycle import Accepted, Failed
from control_plane.model.trace import is_sampled
from control_plane.platform.database import connect
from control_plane.platform.telemetry import Telemetry
from control_plane.tracing import receiver as sending
from control_plane.tracing.export import TraceExport, TraceReport
from control_plane.tracing.receiver import Receiver
from control_plane.tracing.record import QUERIES


@pytest.fixture
def receiver() -> Iterator[FakeReceiver]:
    with receiving() as made:
        yield made


@pytest.fixture
def reader(database: TestDatabase) -> Iterator[Connection[Any]]:
    with connect(database.url("acp_reader"), application_name="acp-trace") as connection:
        yield connection


def export(
    connection: Connection[Any],
    receiver: FakeReceiver,
    *,
    ratio: float = 1,
    seconds: float = 60,
    batch_size: int = 10,
    anew: bool = False,
) -> TraceReport:
    return TraceExport(
        connection,
        Receiver(receiver.url, lambda: {"X-Key": "k"}, sleep=lambda _: None),
        Telemetry("test"),
        sample_ratio=ratio,
        batch_size=batch_size,
    ).run(remaining_seconds=lambda: seconds, anew=anew)


def process(app: Connection[Any], event_ids: Sequence[UUID]) -> None:
    for event_id in event_ids:
        with once(app, consumer="signal_lab", event_id=event_id):
            pass


def complete(app: Connection[Any], count: int = 1, *, first: int = 0) -> list[UUID]:
    """Stores events, delivers and processes them."""
    event_ids = seeds.store(app, [seeds.tick(first + number) for number in range(count)])
    for number in range(count):
        seeds.settle(app, seeds.claim(app, rows=1), Accepted(f"m-{first + number}"))
    process(app, event_ids)
    return event_ids


def look_again(owner: Connection[Any]) -> None:
    """Makes everything that waits due."""
    owner.execute("UPDATE waiting_traces SET look_at = now()")


def names_by_event(receiver: FakeReceiver) -> dict[UUID, list[str]]:
    """Returns the names of the accepted spans of each event."""
    found: dict[UUID, list[str]] = {}
    for span in receiver.accepted:
        told = {one.key: one.value.string_value for one in span.attributes}
        found.setdefault(UUID(told["acp.event_id"]), []).append(span.name)
    return found


WHOLE = ["create market.ticks", "send signal_lab", "process signal_lab"]


def test_what_is_stored_after_the_first_run_is_exported_whole(
    app: Connection[Any], reader: Connection[Any], receiver: FakeReceiver
) -> None:
    complete(app, 3)
    first = export(reader, receiver)
    assert (first.events, first.failure, receiver.requests) == (0, None, [])
    event_ids = complete(app, 25, first=3)
    second = export(reader, receiver)
    assert (second.events, second.spans, second.waiting, second.behind_seconds) == (25, 75, 0, 0)
    assert names_by_event(receiver) == dict.fromkeys(event_ids, WHOLE)
    assert {headers["x-key"] for headers, _ in receiver.requests} == {"k"}
    assert export(reader, receiver).events == 0


def test_what_commits_late_is_not_passed_over(
    app: Connection[Any], database: TestDatabase, reader: Connection[Any], receiver: FakeReceiver
) -> None:
    export(reader, receiver)
    with psycopg.connect(database.app_url) as late:
        late.execute("SELECT 1")  # The transaction is open from here on.
        seeds.store(late, seeds.ticks(1, entity_id="IBM"))
        complete(app, 2, first=1)
        assert export(reader, receiver).events == 0
        late.commit()
    seeds.settle(app, seeds.claim(app), Accepted("late"))
    ids = [row[0] for row in app.execute("SELECT event_id FROM events").fetchall()]
    process(app, ids)
    assert export(reader, receiver).events == 3
    assert names_by_event(receiver) == dict.fromkeys(ids, WHOLE)


def test_an_event_waits_until_it_is_over_and_holds_up_no_other(
    app: Connection[Any], owner: Connection[Any], reader: Connection[Any], receiver: FakeReceiver
) -> None:
    export(reader, receiver)
    (pending,) = seeds.store(app, seeds.ticks(1))
    seeds.settle(app, seeds.claim(app), Failed("throttled"))
    (other,) = complete(app, 1, first=1)
    report = export(reader, receiver)
    assert (report.events, report.waiting) == (1, 1)
    assert names_by_event(receiver).keys() == {other}
    seeds.pass_time(app)
    seeds.settle(app, seeds.claim(app), Accepted("m"))
    process(app, [pending])
    assert export(reader, receiver).events == 0, "it is not due yet"
    look_again(owner)
    report = export(reader, receiver)
    assert (report.events, report.waiting) == (1, 0)
    assert names_by_event(receiver)[pending] == WHOLE


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (Answer(500), "it answered 500"),
        (Answer(503, b"busy"), "it answered 503: busy"),
        (Answer(401), "Check the secret"),
        (Answer(404), "Check TracesEndpoint"),
        (Answer(400, b"nonsense"), "it answered 400: nonsense"),
        (Answer(302), "it answered 302"),
        (Answer(200, b"<html>Please log in</html>"), "not as an OTLP receiver does"),
    ],
)
def test_the_cursor_stays_until_the_receiver_accepts(
    answer: Answer, said: str, app: Connection[Any], reader: Connection[Any], receiver: FakeReceiver
) -> None:
    export(reader, receiver)
    event_ids = complete(app, 3)
    receiver.usual = answer
    report = export(reader, receiver)
    assert report.failure is not None
    assert said in report.failure
    assert (report.events, report.spans) == (0, 0)
    assert report.behind_seconds > 0
    assert len(receiver.requests) <= sending.TRIES * 3
    receiver.usual = Answer()
    receiver.accepted.clear()
    assert export(reader, receiver).events == 3
    assert names_by_event(receiver) == dict.fromkeys(event_ids, WHOLE)


def test_a_receiver_that_fails_for_a_moment_is_asked_again_in_the_same_run(
    app: Connection[Any], reader: Connection[Any], receiver: FakeReceiver
) -> None:
    export(reader, receiver)
    complete(app)
    receiver.answers = [Answer(503), Answer(429)]
    assert export(reader, receiver).events == 1
    assert len(receiver.requests) == 3


def test_a_receiver_that_is_away_or_does_not_answer_costs_a_bounded_time(
    app: Connection[Any], reader: Connection[Any], receiver: FakeReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    export(reader, receiver)
    complete(app)
    monkeypatch.setattr(sending, "SEND_SECONDS", 0.2)
    receiver.usual = Answer(seconds=1)
    report = export(reader, receiver)
    assert report.failure is not None
    assert len(receiver.requests) == sending.TRIES
    away = export(reader, FakeReceiver(url="http://127.0.0.1:1/v1/traces"))
    assert away.failure is not None
    assert "127.0.0.1" in away.failure


def test_a_request_that_is_too_large_is_sent_in_parts(
    app: Connection[Any], reader: Connection[Any], receiver: FakeReceiver
) -> None:
    export(reader, receiver)
    event_ids = complete(app, 9)
    receiver.usual = Answer(most_spans=7)
    report = export(reader, receiver)
    assert (report.events, report.spans, report.rejected_spans) == (9, 27, 0)
    assert names_by_event(receiver) == dict.fromkeys(event_ids, WHOLE)


def test_what_alone_is_refused_while_others_are_taken_is_given_up_on_and_counted(
    app: Connection[Any], owner: Connection[Any], reader: Connection[Any], receiver: FakeReceiver
) -> None:
    export(reader, receiver)
    complete(app, 3)
    large = complete(app, 1, first=3)[0]
    owner.execute(
        "INSERT INTO consume_failures (subscription, message_id, event_id, attempt, error)"
        " SELECT 'signal_lab', 'm', %s, n, 'a lock' FROM generate_series(1, 9) AS n",
        [large],
    )
    receiver.usual = Answer(most_spans=9)
    report = export(reader, receiver)
    assert (report.events, report.spans, report.rejected_spans, report.failure) == (4, 9, 12, None)
    assert large not in names_by_event(receiver)


def test_spans_that_the_receiver_says_it_will_not_keep_are_counted_and_not_sent_again(
    app: Connection[Any], reader: Connection[Any], receiver: FakeReceiver
) -> None:
    export(reader, receiver)
    complete(app)
    receiver.answers = [rejecting(2, "too old")]
    report = export(reader, receiver)
    assert (report.spans, report.rejected_spans, report.failure) == (1, 2, None)
    assert export(reader, receiver).spans == 0


def test_what_is_not_sampled_is_exported_if_it_failed(
    app: Connection[Any], reader: Connection[Any], receiver: FakeReceiver
) -> None:
    export(reader, receiver)
    healthy = complete(app, 20)
    (failed,) = seeds.store(app, [seeds.tick(90)])
    seeds.give_up(app)
    assert export(reader, receiver, ratio=0).events == 1
    assert names_by_event(receiver).keys() == {failed}
    more = complete(app, 20, first=20)
    export(reader, receiver, ratio=0.5)
    assert names_by_event(receiver).keys() == {failed, *(one for one in more if is_sampled(str(one), 0.5))}
    assert 0 < sum(is_sampled(str(one), 0.5) for one in [*healthy, *more]) < 40


def test_two_runs_at_once_lose_nothing(
    app: Connection[Any], database: TestDatabase, reader: Connection[Any], receiver: FakeReceiver
) -> None:
    export(reader, receiver)
    event_ids = complete(app, 12)

    class Overtaken(FakeReceiver):
        """Lets another run export everything before it answers."""

        def receive(self, headers: dict[str, str], body: bytes) -> Answer:
            with connect(database.url("acp_reader"), application_name="acp-trace") as other:
                export(other, receiver)
            return super().receive(headers, body)

    with receiving() as slow:
        slow.__class__ = Overtaken
        assert export(reader, slow).events == 0
    assert names_by_event(receiver) == dict.fromkeys(event_ids, WHOLE)
    assert export(reader, receiver).events == 0


def test_an_export_may_begin_anew_and_does_so_after_a_restore_elsewhere(
    app: Connection[Any], owner: Connection[Any], reader: Connection[Any], receiver: FakeReceiver
) -> None:
    export(reader, receiver)
    complete(app)
    assert export(reader, receiver, anew=True).events == 0
    complete(app, 1, first=1)
    assert export(reader, receiver).events == 1
    owner.execute("UPDATE trace_cursor SET stored_by = '9000000000000'")
    assert export(reader, receiver).events == 0
    complete(app, 1, first=2)
    assert export(reader, receiver).events == 1


def test_an_event_that_was_deleted_is_waited_for_no_more(
    app: Connection[Any], owner: Connection[Any], reader: Connection[Any], receiver: FakeReceiver
) -> None:
    export(reader, receiver)
    owner.execute("INSERT INTO waiting_traces (kind, id, look_at) VALUES ('event', gen_random_uuid(), now())")
    owner.execute("INSERT INTO waiting_traces (kind, id, look_at) VALUES ('decision', gen_random_uuid(), now())")
    report = export(reader, receiver)
    assert (report.waiting, report.failure) == (0, None)


def test_without_time_nothing_begins_and_the_next_run_goes_on(
    app: Connection[Any], reader: Connection[Any], receiver: FakeReceiver
) -> None:
    export(reader, receiver)
    complete(app, 12)
    report = export(reader, receiver, seconds=1)
    assert (report.events, report.failure) == (0, None)
    assert report.behind_seconds > 0
    assert export(reader, receiver).events == 12


def test_what_is_to_be_exported_is_found_by_an_index_however_much_is_stored(
    app: Connection[Any], owner: Connection[Any], reader: Connection[Any]
) -> None:
    seeds.store(app, seeds.ticks(2_000))
    owner.execute("ANALYZE events")
    after = {"stored_by": "0", "seq": 0, "stored_before": "9000000000000", "limit": 100}
    scans = [
        step
        for step in seeds.steps(seeds.plan(reader, QUERIES["events_to_export"], after))
        if "Scan" in step["Node Type"]
    ]
    assert [step.get("Index Name") for step in scans] == ["events_in_order"], scans
    assert scans[0]["Actual Rows"] == 100


def test_the_cursor_never_goes_back_or_beyond_what_is_complete(reader: Connection[Any], receiver: FakeReceiver) -> None:
    export(reader, receiver)
    query = (
        "SELECT advance_traces(stored_by, seq, (stored_by::text::bigint + %s)::text::xid8, seq, '{}', '{}', '{}', '{}')"
        " FROM trace_cursor"
    )
    for step in (-1, 1_000_000):
        with pytest.raises(psycopg.errors.InvalidParameterValue, match="cannot move"):
            reader.execute(query, [step])


def test_transactions_are_in_the_order_of_their_numbers_and_not_of_their_digits(
    owner: Connection[Any], reader: Connection[Any], receiver: FakeReceiver
) -> None:
    export(reader, receiver)
    owner.execute("UPDATE trace_cursor SET stored_by = '0'")
    owner.execute(
        "INSERT INTO events (event_id, event_type, source, entity_id, occurred_at, ingested_at, schema_version,"
        " trace_id, stored_by, payload_json) SELECT gen_random_uuid(), 'A_B', 'fake', n::text, now(), now(), 1,"
        " gen_random_uuid(), n::text::xid8, '{}' FROM unnest(ARRAY[9, 10, 99, 100]) AS n"
    )
    assert export(reader, receiver, batch_size=1).events == 4
