"""Runs the queue's contract with the relay tests' fake and with moto's SQS."""

from collections.abc import Iterator

import pytest
from moto import mock_aws
from moto.server import ThreadedMotoServer
from tests.contracts.queue import PublisherContract, Queue, QueueContract, Received, SqsQueue, SqsQueueOverHttp
from tests.integration.fakes import FakePublisher

from control_plane.outbox.publisher import Publisher


class InMemoryQueue(Queue):
    url = "memory://queue"
    unknown_url = "memory://nowhere"

    def __init__(self) -> None:
        self._publisher = FakePublisher(self.url)

    @property
    def publisher(self) -> Publisher:
        return self._publisher

    def received(self, count: int) -> list[Received]:
        queue = self._publisher.queues[self.url]
        taken, queue[:] = queue[:count], queue[count:]
        return [Received(self._publisher.message_ids[id(one)], one.body, one.attributes) for one in taken]


class TestFakePublisher(PublisherContract):
    @pytest.fixture
    def queue(self) -> Queue:
        return InMemoryQueue()


class TestMoto(QueueContract):
    # moto 5.2.5 ignores attributes in a message's size and accepts any character; the fake and LocalStack pass these
    # tests.
    counts_bytes_of_attributes = False
    checks_characters = False

    @pytest.fixture
    def queue(self) -> Iterator[SqsQueue]:
        with mock_aws():
            queue = SqsQueue(None)
            yield queue
            queue.delete()


@pytest.fixture(scope="module")
def endpoint_url() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


class TestMotoOverHttp(TestMoto):
    @pytest.fixture
    def queue(self, endpoint_url: str) -> Iterator[SqsQueue]:
        queue = SqsQueueOverHttp(endpoint_url)
        yield queue
        queue.delete()
