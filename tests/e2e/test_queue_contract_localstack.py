"""The queue's contract on LocalStack's SQS."""

from collections.abc import Iterator
from typing import Protocol

import pytest
from tests.contracts.queue import QueueContract, SqsQueue, SqsQueueOverHttp


class LocalCloud(Protocol):
    """Of the fixture ``local_cloud``, what is used here."""

    @property
    def endpoint_url(self) -> str: ...


class TestLocalStack(QueueContract):
    @pytest.fixture
    def queue(self, local_cloud: LocalCloud) -> Iterator[SqsQueue]:
        queue = SqsQueue(local_cloud.endpoint_url)
        yield queue
        queue.delete()


class TestLocalStackOverHttp(QueueContract):
    @pytest.fixture
    def queue(self, local_cloud: LocalCloud) -> Iterator[SqsQueue]:
        queue = SqsQueueOverHttp(local_cloud.endpoint_url)
        yield queue
        queue.delete()
