"""The relay when queues fail: an outage costs no message an attempt."""

from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID

import pytest
from psycopg import Connection
from tests.integration import seeds
from tests.integration.fakes import SqsAnswer, all_successful, sqs_endpoint, sqs_error
from tests.integration.relay_bench import MAX_ATTEMPTS, Bench, done

from control_plane.model.lifecycle import QueueFault
from control_plane.outbox.invocation import RelayResult
from control_plane.outbox.sqs import SqsPublisher
from control_plane.platform.aws import sqs_client


def test_outage_costs_no_attempts_and_spares_other_topic(app: Connection[Any]) -> None:
    down = seeds.store(app, seeds.ticks(35))
    up = seeds.store(app, seeds.failures(5))
    outage = True
    bench = Bench(
        lambda: app,
        script=lambda message: (
            QueueFault("ServiceUnavailable") if outage and message.subscription == "signal_lab" else None
        ),
    )
    result = bench.run()
    assert done(result) == RelayResult(claimed=40, published=5, released=35)
    assert result.breakers == {"signal_lab": "open", "system_events": "closed"}
    assert len(bench.fake.sends) == 2  # One failed batch was enough; the other batches of that topic were not sent.
    rows = seeds.deliveries(app)
    assert {(rows[event_id]["delivery_attempts"], rows[event_id]["state"]) for event_id in down} == {(0, "retrying")}
    assert {rows[event_id]["state"] for event_id in up} == {"delivered"}
    assert seeds.failed_attempts(app) == []

    seeds.pass_time(app)  # The rows are due, but the relay remembers that the queue is down.
    more = seeds.store(app, seeds.failures(7)[5:])
    assert done(bench.run()) == RelayResult(claimed=2, published=2)

    seeds.cool_down(app)
    outage = False
    result = bench.run()
    assert done(result) == RelayResult(claimed=35, published=35)
    assert result.breakers == {"signal_lab": "closed", "system_events": "closed"}
    assert {UUID(message.event_id) for message in bench.fake.sent} == {*down, *up, *more}


def test_an_outage_longer_than_all_attempts_dead_letters_nothing(app: Connection[Any]) -> None:
    seeds.store(app, seeds.ticks(3))
    bench = Bench(lambda: app, script=lambda _message: QueueFault("down"))
    assert done(bench.run()) == RelayResult(claimed=3, released=3)
    for _ in range(3 * MAX_ATTEMPTS):
        seeds.pass_time(app)
        assert done(bench.run()) == RelayResult()
        seeds.cool_down(app)
        assert done(bench.run()) == RelayResult(claimed=1, released=1)  # There was at most one probe per cool-down.
    assert {row["delivery_attempts"] for row in seeds.deliveries(app).values()} == {0}


def test_held_topic_does_not_starve_the_others(app: Connection[Any]) -> None:
    seeds.store(app, seeds.ticks(50))
    bench = Bench(
        lambda: app, claim_size=10, script=lambda m: QueueFault("down") if m.subscription == "signal_lab" else None
    )
    bench.run()
    seeds.pass_time(app)
    seeds.store(app, seeds.failures(3))
    assert done(bench.run()) == RelayResult(claimed=3, published=3)


# A real publisher and SQS's answers


@pytest.fixture
def bench_on_sqs(app: Connection[Any]) -> Iterator[Callable[[SqsAnswer], Bench]]:
    """Makes a relay with the real publisher, and an SQS endpoint that answers by a function."""
    endpoints = []

    def make(answer: SqsAnswer) -> Bench:
        endpoint = sqs_endpoint(answer)
        url = endpoint.__enter__()
        endpoints.append(endpoint)
        bench = Bench(lambda: app)
        client = sqs_client(url, connect_timeout=2, read_timeout=5, connections=2)
        publisher = SqsPublisher(client, monotonic=bench.clock.monotonic)
        return_url = {"signal_lab": f"{url}/ticks", "system_events": f"{url}/system"}
        made = Bench(lambda: app, publisher=publisher, queue_urls=return_url)
        made.clock = bench.clock
        made.relay._monotonic = bench.clock.monotonic
        return made

    yield make
    for endpoint in endpoints:
        endpoint.__exit__(None, None, None)


def entry(event_id: UUID, entries: list[dict[str, Any]]) -> dict[str, Any] | None:
    return next((one for one in entries if str(event_id) in one["MessageBody"]), None)


def test_refused_batch_dead_letters_only_the_culprit(
    app: Connection[Any], bench_on_sqs: Callable[[SqsAnswer], Bench]
) -> None:
    promised = seeds.store(app, seeds.ticks(10))
    requests: list[int] = []

    def answer(entries: list[dict[str, Any]]) -> tuple[int, Any]:
        requests.append(len(entries))
        return sqs_error("InvalidMessageContents") if entry(promised[3], entries) else all_successful(entries)

    assert done(bench_on_sqs(answer).run()) == RelayResult(claimed=10, published=9, dead_lettered=1)
    assert requests == [10] + [1] * 10
    row = seeds.deliveries(app)[promised[3]]
    assert row["last_error"] == "InvalidMessageContents: said the queue"


def test_an_answer_is_read_entry_by_entry(app: Connection[Any], bench_on_sqs: Callable[[SqsAnswer], Bench]) -> None:
    good, bad, busy, odd, forgotten = promised = seeds.store(app, seeds.ticks(5))
    fates = {bad: ("InvalidMessageContents", True), busy: ("RequestThrottled", True), odd: ("Mystery", False)}

    def answer(entries: list[dict[str, Any]]) -> tuple[int, Any]:
        said: dict[str, Any] = {"Successful": [{"Id": "0", "MessageId": "m-0"}], "Failed": []}
        for event_id, (code, sender_fault) in fates.items():
            one = entry(event_id, entries)
            assert one is not None
            said["Failed"].append({"Id": one["Id"], "Code": code, "SenderFault": sender_fault, "Message": "hm"})
        return 200, said

    assert done(bench_on_sqs(answer).run()) == RelayResult(
        claimed=5, published=1, failed=1, dead_lettered=1, released=2
    )
    rows = seeds.deliveries(app)
    assert [rows[event_id]["state"] for event_id in promised] == [
        "delivered", "dead_lettered", "retrying", "retrying", "retrying",
    ]  # fmt: skip
    assert [rows[event_id]["delivery_attempts"] for event_id in promised] == [1, 1, 0, 1, 0]
    assert rows[good]["message_id"] == "m-0"
    assert "does not name this entry" in rows[forgotten]["last_error"]
    assert rows[forgotten]["suspect_since"] is not None


@pytest.mark.parametrize(
    ("refusal", "error"),
    [
        (sqs_error("QueueDoesNotExist"), "QueueDoesNotExist"),
        (sqs_error("AccessDeniedException", status=403), "AccessDeniedException"),
        (sqs_error("RequestThrottled", status=429), "RequestThrottled"),
        (sqs_error("ServiceUnavailable", status=503), "ServiceUnavailable"),
        (sqs_error("NeverHeardOf", status=500), "NeverHeardOf"),
        (sqs_error("KmsDisabled"), "KmsDisabled"),
        ((502, "<html>Bad Gateway</html>"), "Bad Gateway"),
    ],
)
def test_a_queues_own_fault_costs_no_attempts(
    app: Connection[Any], bench_on_sqs: Callable[[SqsAnswer], Bench], refusal: tuple[int, Any], error: str
) -> None:
    (event_id,) = seeds.store(app, seeds.ticks(1))
    bench = bench_on_sqs(lambda _entries: refusal)
    assert done(bench.run()) == RelayResult(claimed=1, released=1)
    row = seeds.deliveries(app)[event_id]
    assert row == row | {"state": "retrying", "delivery_attempts": 0}
    assert error in row["last_error"]


@pytest.mark.parametrize(
    "answer", [(200, "<html>Welcome to the Wi-Fi</html>"), (200, {}), (418, {"message": "teapot"})]
)
def test_an_answer_that_makes_no_sense_costs_no_attempt(
    app: Connection[Any], bench_on_sqs: Callable[[SqsAnswer], Bench], answer: tuple[int, Any]
) -> None:
    seeds.store(app, seeds.ticks(20))
    bench = bench_on_sqs(lambda _entries: answer)
    for _ in range(2 * MAX_ATTEMPTS):
        bench.run()
        seeds.pass_time(app)
        seeds.cool_down(app)
    rows = seeds.deliveries(app).values()
    assert {(row["state"], row["delivery_attempts"]) for row in rows} == {("retrying", 0)}
    assert bench.run().breakers["signal_lab"] != "closed"


@pytest.mark.parametrize(
    "text", ["a NUL \x00", "a lone \ud800 surrogate", "an essay " * 10_000], ids=["NUL", "surrogate", "long"]
)
def test_whatever_the_queue_says_can_be_recorded(
    app: Connection[Any], bench_on_sqs: Callable[[SqsAnswer], Bench], text: str
) -> None:
    good, bad = seeds.store(app, seeds.ticks(2))

    def answer(entries: list[dict[str, Any]]) -> tuple[int, Any]:
        failed = {"Id": "1", "Code": "Odd", "SenderFault": False, "Message": text}
        return 200, {"Successful": [{"Id": "0", "MessageId": "m"}], "Failed": [failed]}

    assert done(bench_on_sqs(answer).run()) == RelayResult(claimed=2, published=1, failed=1)
    rows = seeds.deliveries(app)
    assert rows[good]["state"] == "delivered"
    assert rows[bad]["last_error"].startswith(f"Odd: {text[:2]}")
    assert len(rows[bad]["last_error"]) <= 2_000
