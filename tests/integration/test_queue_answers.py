"""Runs the table of a queue's answers with both publishers."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from tests.contracts.answers import AnswersContract

from control_plane.outbox.publisher import Publisher
from control_plane.outbox.sqs import SqsPublisher
from control_plane.outbox.sqs_http import SqsEndpoint, SqsHttpPublisher
from control_plane.platform.aws import find_sqs, sqs_client


class TestBoto3(AnswersContract):
    @staticmethod
    def publisher(url: str) -> Publisher:
        return SqsPublisher(sqs_client(url, connect_timeout=2, read_timeout=8, connections=1))

    @staticmethod
    @contextmanager
    def impatient(url: str, read_timeout: float) -> Iterator[Publisher]:
        yield SqsPublisher(sqs_client(url, connect_timeout=2, read_timeout=read_timeout, connections=1))


class TestHttp(AnswersContract):
    @staticmethod
    def publisher(url: str) -> Publisher:
        return SqsHttpPublisher(lambda: SqsEndpoint(*find_sqs(url)))

    @staticmethod
    @contextmanager
    def impatient(url: str, read_timeout: float) -> Iterator[Publisher]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("control_plane.outbox.sqs_http.READ_TIMEOUT_SECONDS", read_timeout)
            yield TestHttp.publisher(url)
