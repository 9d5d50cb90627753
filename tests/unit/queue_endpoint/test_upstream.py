"""The endpoint with an upstream: what it accepts is passed on, what it fails is not."""

import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError, ConnectionClosedError

from queue_endpoint import QueueEndpoint, serve

if TYPE_CHECKING:
    from mypy_boto3_sqs import SQSClient


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[QueueEndpoint, QueueEndpoint]]:
    with serve() as behind, serve(upstream=behind.url) as front:
        yield front, behind


@pytest.fixture
def front(pair: tuple[QueueEndpoint, QueueEndpoint]) -> QueueEndpoint:
    pair[0].reset()
    pair[1].reset()
    return pair[0]


@pytest.fixture
def behind(pair: tuple[QueueEndpoint, QueueEndpoint], front: QueueEndpoint) -> QueueEndpoint:
    return pair[1]


@pytest.fixture
def sqs(front: QueueEndpoint) -> Iterator["SQSClient"]:
    client = boto3.client("sqs", endpoint_url=front.url, config=Config(retries={"total_max_attempts": 1}))
    yield client
    client.close()


def entries(*event_ids: str) -> Any:
    return [
        {
            "Id": str(index),
            "MessageBody": '"grüße"',
            "MessageAttributes": {"event_id": {"DataType": "String", "StringValue": event_id}},
        }
        for index, event_id in enumerate(event_ids)
    ]


def ids(endpoint: QueueEndpoint) -> list[str | None]:
    return [one.event_id for one in endpoint.accepted()]


def test_accepted_messages_are_forwarded_and_get_the_queues_ids(
    front: QueueEndpoint, behind: QueueEndpoint, sqs: "SQSClient"
) -> None:
    answer = sqs.send_message_batch(QueueUrl=front.queue_url("q"), Entries=entries("a", "b"))
    assert [one["MessageId"] for one in answer["Successful"]] == [one.message_id for one in behind.accepted()]
    assert front.accepted() == behind.accepted()
    assert ids(behind) == ["a", "b"]


def test_failed_entry_is_not_forwarded_but_its_neighbours_are(
    front: QueueEndpoint, behind: QueueEndpoint, sqs: "SQSClient"
) -> None:
    front.set(fail_events=["b"], fail_code="Mystery")
    answer = sqs.send_message_batch(QueueUrl=front.queue_url("q"), Entries=entries("a", "b", "c"))
    assert [one["Id"] for one in answer["Successful"]] == ["0", "2"]
    assert [(one["Id"], one["Code"]) for one in answer["Failed"]] == [("1", "Mystery")]
    assert ids(front) == ids(behind) == ["a", "c"]
    front.set(fail_share=1)
    answer = sqs.send_message_batch(QueueUrl=front.queue_url("q"), Entries=entries("d"))
    assert [one["Id"] for one in answer["Failed"]] == ["0"]
    assert ids(behind) == ["a", "c"]


def test_refused_entries_reach_no_queue(front: QueueEndpoint, behind: QueueEndpoint, sqs: "SQSClient") -> None:
    front.set(answer="error")
    with pytest.raises(ClientError, match="InternalFailure"):
        sqs.send_message_batch(QueueUrl=front.queue_url("q"), Entries=entries("a"))
    assert behind.accepted() == []
    front.heal()
    sqs.send_message_batch(QueueUrl=front.queue_url("q"), Entries=entries("a"))
    assert ids(behind) == ["a"]


def test_a_refusal_of_the_queues_behind_is_passed_back(
    front: QueueEndpoint, behind: QueueEndpoint, sqs: "SQSClient"
) -> None:
    behind.set(answer="throttled")
    with pytest.raises(ClientError) as refused:
        sqs.send_message_batch(QueueUrl=front.queue_url("q"), Entries=entries("a"))
    assert refused.value.response["Error"]["Code"] == "RequestThrottled"
    assert front.accepted() == []


@pytest.mark.parametrize("accepts", ["before", "after"])
def test_held_answer_forwards_its_messages_before_or_after(
    front: QueueEndpoint, behind: QueueEndpoint, sqs: "SQSClient", accepts: str
) -> None:
    front.set(hold=True, accepts=accepts)
    thread = threading.Thread(
        target=sqs.send_message_batch, kwargs={"QueueUrl": front.queue_url("q"), "Entries": entries("a")}
    )
    thread.start()
    front.wait_for(lambda one: one.held() == 1)
    assert ids(behind) == (["a"] if accepts == "before" else [])
    (port,) = front.held_ports()
    assert 1024 < port < 65536
    assert port != front.port
    front.release()
    thread.join(10)
    assert ids(behind) == ["a"]


def test_without_an_upstream_the_connection_is_closed(sqs: "SQSClient") -> None:
    with serve() as gone:
        pass
    with serve(upstream=gone.url) as front:
        client = boto3.client("sqs", endpoint_url=front.url, config=Config(retries={"total_max_attempts": 1}))
        with pytest.raises(ConnectionClosedError):
            client.send_message_batch(QueueUrl=front.queue_url("q"), Entries=entries("a"))
        client.close()
        assert front.accepted() == []


def test_only_http_upstreams_are_supported() -> None:
    from queue_endpoint.upstream import Upstream

    with pytest.raises(ValueError, match="https://sqs"):
        Upstream("https://sqs.us-east-1.amazonaws.com")
