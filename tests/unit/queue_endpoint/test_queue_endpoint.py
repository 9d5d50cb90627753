"""The local endpoint, as boto3 sees it."""

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
import psutil
import pytest
from botocore.config import Config
from botocore.exceptions import (
    ClientError,
    ConnectionClosedError,
    EndpointConnectionError,
    ReadTimeoutError,
)
from moto import mock_aws

from queue_endpoint import QueueEndpoint, serve
from queue_endpoint.nonsense import NONSENSE

if TYPE_CHECKING:
    from mypy_boto3_sqs import SQSClient


@pytest.fixture(scope="module")
def running() -> Iterator[QueueEndpoint]:
    with serve() as endpoint:
        yield endpoint


@pytest.fixture
def endpoint(running: QueueEndpoint) -> QueueEndpoint:
    running.reset()
    return running


@pytest.fixture
def sqs(endpoint: QueueEndpoint) -> Iterator["SQSClient"]:
    client = _client(endpoint.url)
    yield client
    client.close()


def _client(url: str, *, read_timeout: float = 5) -> "SQSClient":
    return boto3.client(
        "sqs", endpoint_url=url, config=Config(retries={"total_max_attempts": 1}, read_timeout=read_timeout)
    )


def entries(*event_ids: str, body: str = "{}") -> Any:
    return [
        {
            "Id": str(index),
            "MessageBody": body,
            "MessageAttributes": {"event_id": {"DataType": "String", "StringValue": event_id}},
        }
        for index, event_id in enumerate(event_ids)
    ]


def accepted_ids(endpoint: QueueEndpoint) -> list[str | None]:
    return [one.event_id for one in endpoint.accepted()]


def test_batch_is_accepted_with_message_ids_and_recorded_in_order(endpoint: QueueEndpoint, sqs: "SQSClient") -> None:
    answer = sqs.send_message_batch(QueueUrl=endpoint.queue_url("ticks"), Entries=entries("a", "b"))
    sqs.send_message_batch(QueueUrl=endpoint.queue_url("system"), Entries=entries("c"))
    assert [one["Id"] for one in answer["Successful"]] == ["0", "1"]
    assert answer["Failed"] == []
    accepted = endpoint.accepted()
    assert [(one.queue, one.event_id) for one in accepted] == [("ticks", "a"), ("ticks", "b"), ("system", "c")]
    assert [one.message_id for one in accepted[:2]] == [one["MessageId"] for one in answer["Successful"]]
    assert len({one.message_id for one in accepted}) == 3
    assert endpoint.counts() == {"ticks": 2, "system": 1}
    assert [(one.queue, one.entries, one.answer) for one in endpoint.requests()] == [
        ("ticks", 2, "ok"),
        ("system", 1, "ok"),
    ]


def test_digests_are_those_that_another_emulator_computes(endpoint: QueueEndpoint, sqs: "SQSClient") -> None:
    batch = entries("a", body="grüße \U0001f30d")
    batch[0]["MessageAttributes"]["a_number"] = {"DataType": "Number", "StringValue": "1"}
    ours = sqs.send_message_batch(QueueUrl=endpoint.queue_url("q"), Entries=batch)["Successful"][0]
    with mock_aws():
        moto = boto3.client("sqs")
        url = moto.create_queue(QueueName="q")["QueueUrl"]
        theirs = moto.send_message_batch(QueueUrl=url, Entries=batch)["Successful"][0]
    assert ours["MD5OfMessageBody"] == theirs["MD5OfMessageBody"]
    assert ours["MD5OfMessageAttributes"] == theirs["MD5OfMessageAttributes"]


def test_large_bodies_and_many_batches_are_read_completely(endpoint: QueueEndpoint, sqs: "SQSClient") -> None:
    url = endpoint.queue_url("q")
    sqs.send_message_batch(QueueUrl=url, Entries=entries("big", body="x" * 1_000_000))
    for number in range(50):
        sqs.send_message_batch(QueueUrl=url, Entries=entries(str(number), body='"quoted"\n'))
    assert accepted_ids(endpoint) == ["big", *map(str, range(50))]


@pytest.mark.parametrize(
    ("fault", "status", "code"),
    [("throttled", 400, "RequestThrottled"), ("error", 500, "InternalFailure"), ("denied", 403, "AccessDenied")],
)
def test_refusal_answers_like_sqs_and_accepts_nothing(
    endpoint: QueueEndpoint, sqs: "SQSClient", fault: str, status: int, code: str
) -> None:
    endpoint.set(answer=fault)
    with pytest.raises(ClientError) as refused:
        sqs.send_message_batch(QueueUrl=endpoint.queue_url("q"), Entries=entries("a"))
    assert refused.value.response["ResponseMetadata"]["HTTPStatusCode"] == status
    assert refused.value.response["Error"]["Code"] == code
    assert endpoint.accepted() == []


@pytest.mark.parametrize("accepts", ["before", "never"])
def test_closed_connection_fails_the_send_even_if_accepted(
    endpoint: QueueEndpoint, sqs: "SQSClient", accepts: str
) -> None:
    endpoint.set(answer="close", accepts=accepts)
    with pytest.raises(ConnectionClosedError):
        sqs.send_message_batch(QueueUrl=endpoint.queue_url("q"), Entries=entries("a"))
    assert accepted_ids(endpoint) == (["a"] if accepts == "before" else [])


@pytest.mark.parametrize("answer", ["half", "garbage"])
def test_an_answer_that_cannot_be_read_mentions_no_entry(
    endpoint: QueueEndpoint, sqs: "SQSClient", answer: str
) -> None:
    # boto3 raises nothing for half a body: it takes it for a whole one that it cannot parse.
    endpoint.set(answer=answer)
    said = sqs.send_message_batch(QueueUrl=endpoint.queue_url("q"), Entries=entries("a"))
    assert "Successful" not in said
    assert "Failed" not in said
    assert accepted_ids(endpoint) == ["a"]


def test_latency_delays_an_answer_that_long(endpoint: QueueEndpoint, sqs: "SQSClient") -> None:
    endpoint.set(latency_ms=80)
    started = time.monotonic()
    sqs.send_message_batch(QueueUrl=endpoint.queue_url("q"), Entries=entries("a"))
    assert 0.08 <= time.monotonic() - started < 2


@pytest.mark.parametrize("accepts", ["before", "after"])
def test_a_held_answer_comes_when_released(endpoint: QueueEndpoint, sqs: "SQSClient", accepts: str) -> None:
    endpoint.set(hold=True, accepts=accepts)
    answers: list[Any] = []

    def send() -> None:
        answers.append(sqs.send_message_batch(QueueUrl=endpoint.queue_url("q"), Entries=entries("a")))

    thread = threading.Thread(target=send)
    thread.start()
    endpoint.wait_for(lambda one: one.held() == 1)
    assert answers == []
    assert accepted_ids(endpoint) == (["a"] if accepts == "before" else [])
    endpoint.release("another")
    assert endpoint.held() == 1
    endpoint.release("q")
    thread.join(10)
    assert len(answers[0]["Successful"]) == 1
    assert accepted_ids(endpoint) == ["a"]


def test_nothing_is_accepted_after_the_client_gave_up(endpoint: QueueEndpoint) -> None:
    endpoint.set(hold=True, accepts="after")
    client = _client(endpoint.url, read_timeout=0.2)
    with pytest.raises(ReadTimeoutError):
        client.send_message_batch(QueueUrl=endpoint.queue_url("q"), Entries=entries("a"))
    client.close()
    endpoint.release()
    assert endpoint.accepted() == []


@pytest.mark.parametrize("sender_fault", [True, False])
def test_chosen_events_fail_always_and_their_neighbours_do_not(
    endpoint: QueueEndpoint, sqs: "SQSClient", sender_fault: bool
) -> None:
    endpoint.set(fail_events=["b"], fail_code="InvalidMessageContents", sender_fault=sender_fault)
    for _ in range(2):
        answer = sqs.send_message_batch(QueueUrl=endpoint.queue_url("q"), Entries=entries("a", "b"))
        assert [one["Id"] for one in answer["Successful"]] == ["0"]
        (failed,) = answer["Failed"]
        assert (failed["Id"], failed["Code"], failed["SenderFault"]) == ("1", "InvalidMessageContents", sender_fault)
    assert accepted_ids(endpoint) == ["a", "a"]


@pytest.mark.parametrize(("share", "expected"), [(0.1, 10), (1 / 3, 33), (0.5, 50), (1.0, 100)])
def test_a_share_of_the_entries_fails_evenly_spread(
    endpoint: QueueEndpoint, sqs: "SQSClient", share: float, expected: int
) -> None:
    endpoint.set(fail_share=share)
    failed = [
        len(sqs.send_message_batch(QueueUrl=endpoint.queue_url("q"), Entries=entries(*map(str, range(10))))["Failed"])
        for _ in range(10)
    ]
    assert sum(failed) == expected
    assert max(failed) - min(failed) <= 1


def test_fault_ends_after_its_requests_and_spares_other_queues(endpoint: QueueEndpoint, sqs: "SQSClient") -> None:
    endpoint.set("ticks", answer="throttled", times=2)
    for _ in range(2):
        with pytest.raises(ClientError):
            sqs.send_message_batch(QueueUrl=endpoint.queue_url("ticks"), Entries=entries("a"))
        sqs.send_message_batch(QueueUrl=endpoint.queue_url("system"), Entries=entries("b"))
    sqs.send_message_batch(QueueUrl=endpoint.queue_url("ticks"), Entries=entries("c"))
    assert endpoint.counts() == {"ticks": 1, "system": 2}


@pytest.mark.parametrize(
    ("ids", "code"),
    [
        ([], "AWS.SimpleQueueService.EmptyBatchRequest"),
        (["a"] * 11, "AWS.SimpleQueueService.TooManyEntriesInBatchRequest"),
    ],
)
def test_a_batch_that_sqs_would_refuse_is_refused(
    endpoint: QueueEndpoint, sqs: "SQSClient", ids: list[str], code: str
) -> None:
    with pytest.raises(ClientError, match=code):
        sqs.send_message_batch(QueueUrl=endpoint.queue_url("q"), Entries=entries(*ids))


def test_entries_of_the_same_id_are_refused(endpoint: QueueEndpoint, sqs: "SQSClient") -> None:
    with pytest.raises(ClientError, match="BatchEntryIdsNotDistinct"):
        sqs.send_message_batch(QueueUrl=endpoint.queue_url("q"), Entries=entries("a") * 2)


def test_another_operation_is_refused(endpoint: QueueEndpoint, sqs: "SQSClient") -> None:
    with pytest.raises(ClientError, match="SendMessageBatch alone"):
        sqs.receive_message(QueueUrl=endpoint.queue_url("q"))


def test_an_unknown_fault_is_refused_by_name(endpoint: QueueEndpoint) -> None:
    with pytest.raises(ValueError, match="no such fault: latency_s"):
        endpoint.set(latency_s=3)
    with pytest.raises(ValueError, match="answer is 'maybe'"):
        endpoint.set(answer="maybe")
    with pytest.raises(ValueError, match="400"):
        endpoint._call("PUT", "/faults", {"answer": "maybe"})


def test_the_endpoint_ends_with_its_block() -> None:
    with serve() as endpoint:
        process = psutil.Process(endpoint.pid)
        client = _client(endpoint.url)
        client.send_message_batch(QueueUrl=endpoint.queue_url("q"), Entries=entries("a"))
    assert not process.is_running()
    with pytest.raises(EndpointConnectionError):
        client.send_message_batch(QueueUrl=endpoint.queue_url("q"), Entries=entries("a"))
    client.close()


def test_without_a_record_the_endpoint_only_counts() -> None:
    with serve(record=False, latency_ms=1) as endpoint:
        client = _client(endpoint.url)
        client.send_message_batch(QueueUrl=endpoint.queue_url("q"), Entries=entries("a", "b"))
        client.close()
        assert endpoint.counts() == {"q": 2}
        assert endpoint.accepted() == []


def test_the_command_writes_its_port_once_it_is_open(tmp_path: Path) -> None:
    port_file = tmp_path / "port"
    process = subprocess.Popen([sys.executable, "-m", "queue_endpoint", "--port", "0", "--port-file", str(port_file)])
    try:
        ends = time.monotonic() + 20
        while not port_file.exists():
            assert time.monotonic() < ends
            time.sleep(0.01)
        endpoint = QueueEndpoint(int(port_file.read_text()), process.pid)
        assert endpoint.counts() == {}
    finally:
        process.terminate()
    assert process.wait(10) == 0


def test_nonsense_is_every_kind_in_turn(endpoint: QueueEndpoint, sqs: "SQSClient") -> None:
    endpoint.set("q", answer="nonsense", accepts="never")
    for _ in range(2 * len(NONSENSE)):
        with suppress(Exception):  # boto3 raises errors of any type
            sqs.send_message_batch(QueueUrl=endpoint.queue_url("q"), Entries=entries("a", "b"))
    assert [one.answer for one in endpoint.requests()] == 2 * list(NONSENSE)
    assert all(one.faulty for one in endpoint.requests())
    assert endpoint.accepted() == []


def test_one_kind_of_nonsense_names_unknown_ids(endpoint: QueueEndpoint, sqs: "SQSClient") -> None:
    endpoint.set("q", answer="ids of nobody")
    answer = sqs.send_message_batch(QueueUrl=endpoint.queue_url("q"), Entries=entries("a", "b"))
    assert [one["Id"] for one in answer["Successful"]] == ["-1", "-2"]
    assert accepted_ids(endpoint) == ["a", "b"]


def test_an_answer_can_be_for_batches_with_one_event_alone(endpoint: QueueEndpoint, sqs: "SQSClient") -> None:
    endpoint.set("q", answer="error", answer_events=["bad"])
    answer = sqs.send_message_batch(QueueUrl=endpoint.queue_url("q"), Entries=entries("a", "b"))
    assert len(answer["Successful"]) == 2
    with pytest.raises(ClientError, match="InternalFailure"):
        sqs.send_message_batch(QueueUrl=endpoint.queue_url("q"), Entries=entries("c", "bad"))
    assert accepted_ids(endpoint) == ["a", "b"]
    assert [one.answer for one in endpoint.requests()] == ["ok", "error"]
