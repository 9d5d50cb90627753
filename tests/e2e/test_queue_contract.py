"""Runs the queue's contract on the local cloud's SQS."""

from collections.abc import Iterator

import pytest
from tests.contracts.queue import QueueContract, SqsQueue, SqsQueueOverHttp
from tests.e2e.clouds import Differences
from tests.e2e.conftest import LocalCloud


class TestLocalCloud(QueueContract):
    @pytest.fixture
    def queue(self, local_cloud: LocalCloud, differences: Differences) -> Iterator[SqsQueue]:
        self.counts_bytes_of_attributes = differences.counts_bytes_of_attributes
        queue = SqsQueue(local_cloud.endpoint_url)
        yield queue
        queue.delete()


class TestLocalCloudOverHttp(QueueContract):
    @pytest.fixture
    def queue(self, local_cloud: LocalCloud, differences: Differences) -> Iterator[SqsQueue]:
        self.counts_bytes_of_attributes = differences.counts_bytes_of_attributes
        queue = SqsQueueOverHttp(local_cloud.endpoint_url)
        yield queue
        queue.delete()
