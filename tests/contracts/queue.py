"""What the relay needs of a publisher and its queue: one suite for fakes, emulators and the real service.

Subclass PublisherContract, or QueueContract if a real queue is behind it, and give it ``queue``.
"""

import json
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from botocore.exceptions import ClientError
from tests.waiting import wait_until

from control_plane.model.lifecycle import Accepted, MessageFault, NotSent, QueueFault
from control_plane.outbox.publisher import MAX_BATCH_BYTES, Message, Publisher, size_of
from control_plane.outbox.sqs import SqsPublisher
from control_plane.outbox.sqs_http import SqsEndpoint, SqsHttpPublisher
from control_plane.platform.aws import find_sqs, sqs_client
from local_cloud.net import free_port

if TYPE_CHECKING:
    from mypy_boto3_sqs import SQSClient

LATER = time.monotonic() + 10**6
MAX_RECEIVE_COUNT = 3


@dataclass(frozen=True)
class Received:
    """A message as a consumer receives it."""

    message_id: str
    body: str
    attributes: Mapping[str, str]


def message(body: str = '{"price": 1.5}', **attributes: str) -> Message:
    """Returns a message with an event_id and these other attributes."""
    event_id = str(uuid4())
    attributes = {"event_id": event_id, **attributes}
    return Message(
        outbox_id=1,
        subscription="signal_lab",
        operation_id=None,
        claim_token=uuid4(),
        event_id=event_id,
        trace_id=str(uuid4()),
        topic="market.ticks",
        attempt=1,
        is_suspect=False,
        body=body,
        attributes=attributes,
        size=size_of(body, attributes),
    )


def sized(size: int, **attributes: str) -> Message:
    """Returns a message of this size, in bytes as SQS counts them."""
    return message("x" * (size - message("", **attributes).size), **attributes)


class Queue(ABC):
    """A test's own queue, and the publisher to it."""

    url: str

    @property
    @abstractmethod
    def publisher(self) -> Publisher:
        """The publisher under test."""

    @property
    @abstractmethod
    def unknown_url(self) -> str:
        """The URL of a queue that does not exist."""

    @abstractmethod
    def received(self, count: int) -> list[Received]:
        """Receives so many messages from the queue, or fewer if no more come."""

    def publish(self, *messages: Message) -> Sequence[object]:
        return self.publisher.publish(self.url, messages, start_before=LATER)


class PublisherContract(ABC):
    """Tests for subclasses, which define the fixture ``queue``."""

    counts_bytes_of_attributes: bool = True
    checks_characters: bool = True

    @pytest.fixture
    @abstractmethod
    def queue(self) -> Queue: ...

    def test_a_batch_of_ten_arrives_with_bodies_and_attributes(self, queue: Queue) -> None:
        sent = [
            message(json.dumps({"n": number, "text": "é 🚀 \t"}, ensure_ascii=False), traceparent=f"00-{number}")
            for number in range(10)
        ]
        outcomes = queue.publish(*sent)
        received = queue.received(10)
        assert Counter((one.body, tuple(sorted(one.attributes.items()))) for one in received) == Counter(
            (one.body, tuple(sorted(one.attributes.items()))) for one in sent
        )
        by_body = {one.body: one.message_id for one in received}
        assert outcomes == [Accepted(by_body[one.body]) for one in sent]
        assert len(set(by_body.values())) == 10

    def test_batch_of_more_than_ten_is_sent_one_by_one(self, queue: Queue) -> None:
        sent = [message(f'{{"n": {number}}}') for number in range(11)]
        assert {type(outcome) for outcome in queue.publish(*sent)} == {Accepted}
        assert Counter(one.body for one in queue.received(11)) == Counter(one.body for one in sent)

    def test_a_message_of_the_largest_size_is_taken(self, queue: Queue) -> None:
        largest = sized(MAX_BATCH_BYTES, traceparent="00-1")
        assert largest.size == MAX_BATCH_BYTES
        assert [type(outcome) for outcome in queue.publish(largest)] == [Accepted]
        assert [one.body for one in queue.received(1)] == [largest.body]

    def test_a_message_over_the_limit_is_at_fault(self, queue: Queue) -> None:
        (outcome,) = queue.publish(message("x" * (MAX_BATCH_BYTES + 1)))
        assert isinstance(outcome, MessageFault)
        assert outcome.reason
        assert queue.received(1) == []

    def test_attributes_count_towards_the_size(self, queue: Queue) -> None:
        (outcome,) = queue.publish(sized(MAX_BATCH_BYTES + 1, traceparent="00-1"))
        assert isinstance(outcome, MessageFault if self.counts_bytes_of_attributes else Accepted)

    def test_largest_batch_is_accepted_and_a_larger_one_split(self, queue: Queue) -> None:
        half = MAX_BATCH_BYTES // 2
        exact = sized(half), sized(half)
        over = sized(half), sized(half + 1)
        for batch in (exact, over):
            assert [type(outcome) for outcome in queue.publish(*batch)] == [Accepted, Accepted]
            assert Counter(len(one.body) for one in queue.received(2)) == Counter(len(one.body) for one in batch)

    @pytest.mark.parametrize("character", ["\ufffe", "\uffff", "\x0b"])
    def test_character_that_sqs_refuses_is_the_messages_fault(self, queue: Queue, character: str) -> None:
        before, odd, after = message('{"n": 1}'), message(f'{{"n": "{character}"}}'), message('{"n": 2}')
        outcomes = queue.publish(before, odd, after)
        refused = MessageFault if self.checks_characters else Accepted
        assert [type(outcome) for outcome in outcomes] == [Accepted, refused, Accepted]
        arrived = Counter(one.body for one in queue.received(3))
        expected = [before, after] if self.checks_characters else [before, odd, after]
        assert arrived == Counter(one.body for one in expected)

    def test_a_queue_that_is_not_there_is_a_queues_fault(self, queue: Queue) -> None:
        outcomes = queue.publisher.publish(queue.unknown_url, [message(), message()], start_before=LATER)
        assert len(outcomes) == 2
        for outcome in outcomes:
            assert isinstance(outcome, QueueFault)
            assert "QueueDoesNotExist" in outcome.reason or "NonExistentQueue" in outcome.reason

    def test_too_late_a_batch_is_not_sent(self, queue: Queue) -> None:
        outcomes = queue.publisher.publish(queue.url, [message(), message()], start_before=0.0)
        assert outcomes == [NotSent(), NotSent()]
        assert queue.received(1) == []


class SqsQueue(Queue):
    """A queue with a dead-letter queue on an SQS endpoint, reached in the same way as by the relay."""

    def __init__(self, endpoint_url: str | None, *, receive_seconds: float = 5) -> None:
        self.client = self._client(endpoint_url)
        self._receive_seconds = receive_seconds
        name = f"contract-{uuid4()}"
        self.dead_letter_url = self.client.create_queue(QueueName=f"{name}-dead")["QueueUrl"]
        arn = self.client.get_queue_attributes(QueueUrl=self.dead_letter_url, AttributeNames=["QueueArn"])
        redrive = {"deadLetterTargetArn": arn["Attributes"]["QueueArn"], "maxReceiveCount": MAX_RECEIVE_COUNT}
        self.url = self.client.create_queue(QueueName=name, Attributes={"RedrivePolicy": json.dumps(redrive)})[
            "QueueUrl"
        ]

    def delete(self) -> None:
        for url in (self.url, self.dead_letter_url):
            self.client.delete_queue(QueueUrl=url)

    @property
    def publisher(self) -> Publisher:
        return SqsPublisher(self.client)

    @property
    def unreachable_publisher(self) -> Publisher:
        return SqsPublisher(self._client(f"http://127.0.0.1:{free_port()}"))

    @property
    def unknown_url(self) -> str:
        return f"{self.url}-that-is-not"

    def received(self, count: int) -> list[Received]:
        taken: list[Received] = []
        deadline = time.monotonic() + self._receive_seconds
        while len(taken) < count and time.monotonic() < deadline:
            for found in self._receive(self.url, visibility_timeout=60):
                attributes = found.get("MessageAttributes", {})
                assert {attribute["DataType"] for attribute in attributes.values()} <= {"String"}
                values = {name: attribute["StringValue"] for name, attribute in attributes.items()}
                taken.append(Received(found["MessageId"], found["Body"], values))
                self.client.delete_message(QueueUrl=self.url, ReceiptHandle=found["ReceiptHandle"])
            if count == 1 and not taken:
                break  # a check for any message at all
        return taken

    def _receive(self, url: str, *, visibility_timeout: int) -> list[Any]:
        answer = self.client.receive_message(
            QueueUrl=url,
            MaxNumberOfMessages=10,
            MessageAttributeNames=["All"],
            MessageSystemAttributeNames=["All"],
            VisibilityTimeout=visibility_timeout,
            WaitTimeSeconds=1,
        )
        return list(answer.get("Messages", []))

    @staticmethod
    def _client(endpoint_url: str | None) -> "SQSClient":
        return sqs_client(endpoint_url, connect_timeout=2, read_timeout=20, connections=2)


class SqsQueueOverHttp(SqsQueue):
    """The same queue, with RelayFunction's own publisher."""

    @cached_property
    def publisher(self) -> Publisher:
        return _over_http(self.client.meta.endpoint_url)

    @property
    def unreachable_publisher(self) -> Publisher:
        return _over_http(f"http://127.0.0.1:{free_port()}")


def _over_http(endpoint_url: str) -> SqsHttpPublisher:
    return SqsHttpPublisher(lambda: SqsEndpoint(*find_sqs(endpoint_url)))


class QueueContract(PublisherContract):
    """Tests for a queue from which a consumer reads."""

    @pytest.fixture
    @abstractmethod
    def queue(self) -> SqsQueue: ...

    def test_an_endpoint_that_cannot_be_reached_is_a_queues_fault(self, queue: SqsQueue) -> None:
        outcomes = queue.unreachable_publisher.publish(queue.url, [message(), message()], start_before=LATER)
        assert [type(outcome) for outcome in outcomes] == [QueueFault, QueueFault]

    def test_the_queue_itself_refuses_an_eleventh_entry(self, queue: SqsQueue) -> None:
        entries: Any = [{"Id": str(number), "MessageBody": "{}"} for number in range(11)]
        with pytest.raises(ClientError, match="TooManyEntriesInBatchRequest"):
            queue.client.send_message_batch(QueueUrl=queue.url, Entries=entries)

    def test_message_received_too_often_reaches_dead_letter_queue_unchanged(self, queue: SqsQueue) -> None:
        sent = message(traceparent="00-1")
        queue.publish(sent)
        receives: list[str] = []
        dead: list[Any] = []

        def move_on() -> bool:
            found_alive = queue._receive(queue.url, visibility_timeout=0)
            receives.extend(found["Attributes"]["ApproximateReceiveCount"] for found in found_alive)
            dead.extend(queue._receive(queue.dead_letter_url, visibility_timeout=60))
            return bool(dead)

        wait_until(move_on)
        assert receives == [str(number) for number in range(1, MAX_RECEIVE_COUNT + 1)]
        (found,) = dead
        assert found["Body"] == sent.body
        assert {name: value["StringValue"] for name, value in found["MessageAttributes"].items()} == sent.attributes
