"""A container's credentials endpoint answers nonsense for a while, and both publishers must survive that."""

import datetime
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import boto3
import pytest
from botocore.utils import ContainerMetadataFetcher
from tests.contracts.answers import Endpoint, serving
from tests.contracts.queue import LATER, message

from control_plane.model.lifecycle import Accepted, QueueFault
from control_plane.outbox.publisher import Publisher
from control_plane.outbox.sqs import SqsPublisher
from control_plane.outbox.sqs_http import SqsEndpoint, SqsHttpPublisher
from control_plane.platform.aws import find_sqs, sqs_client


def boto3_publisher(url: str) -> Publisher:
    return SqsPublisher(sqs_client(url, connect_timeout=2, read_timeout=8, connections=1))


def http_publisher(url: str) -> Publisher:
    publisher = SqsHttpPublisher(lambda: SqsEndpoint(*find_sqs(url)))
    publisher.prepare()
    return publisher


def credentials(*, minutes: float, **others: object) -> str:
    """Returns a container's credentials; botocore asks for new ones at each use in their last ten minutes."""
    expires = datetime.datetime.now(datetime.UTC) + datetime.timedelta(minutes=minutes)
    given = {
        "AccessKeyId": "AKIDEXAMPLE",
        "SecretAccessKey": "secret",
        "Token": "token",
        "Expiration": expires.strftime("%Y-%m-%dT%H:%M:%SZ"),
    }
    return json.dumps({name: value for name, value in (given | others).items() if value is not None})


class CredentialsEndpoint:
    """Answers each request for credentials with ``status`` and ``body``."""

    def __init__(self) -> None:
        self.status, self.body = 200, credentials(minutes=5)


@contextmanager
def answering(endpoint: CredentialsEndpoint) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(endpoint.status)
            self.end_headers()
            self.wfile.write(endpoint.body.encode())

        def log_message(self, *_: object) -> None:
            """Logs nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/credentials"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def container(monkeypatch: pytest.MonkeyPatch) -> Iterator[CredentialsEndpoint]:
    endpoint = CredentialsEndpoint()
    with answering(endpoint) as url:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name)
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", url)
        monkeypatch.setattr(ContainerMetadataFetcher, "SLEEP_TIME", 0)  # a pause between botocore's attempts
        monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)  # The container has credentials already.
        yield endpoint


@pytest.fixture
def queue() -> Iterator[Endpoint]:
    with serving() as queue:
        yield queue


@pytest.mark.parametrize("make", [boto3_publisher, http_publisher])
@pytest.mark.parametrize(
    ("status", "body"),
    [
        pytest.param(200, credentials(minutes=-1), id="expired"),
        pytest.param(200, credentials(minutes=5, Expiration="soon"), id="a time that is none"),
        pytest.param(200, credentials(minutes=5, AccessKeyId=None), id="without a key id"),
        pytest.param(200, credentials(minutes=5, Expiration=None), id="without a time"),
        pytest.param(200, "{}", id="an empty object"),
        pytest.param(200, "[]", id="a list"),
        pytest.param(200, "null", id="null"),
        pytest.param(200, "<html>", id="a page"),
        pytest.param(200, '{"AccessKeyId": "AK', id="half of the JSON"),
        pytest.param(500, "{}", id="an internal error"),
        pytest.param(403, '{"message": "no"}', id="a refusal"),
    ],
)
def test_senseless_credentials_are_an_outage_in_which_nothing_is_sent(
    container: CredentialsEndpoint, queue: Endpoint, make: Callable[[str], Publisher], status: int, body: str
) -> None:
    publisher = make(queue.url)
    container.status, container.body = status, body
    outcomes: Any = publisher.publish("q", [message(), message()], start_before=LATER)
    assert [type(outcome) for outcome in outcomes] == [QueueFault, QueueFault]
    assert all(outcome.reason for outcome in outcomes)
    assert queue.batches == []
    container.status, container.body = 200, credentials(minutes=60)
    assert isinstance(publisher.publish("q", [message()], start_before=LATER)[0], Accepted)


def test_credentials_that_are_missing_at_first_are_requested_again(
    container: CredentialsEndpoint, queue: Endpoint
) -> None:
    container.body = "<html>"
    publisher = SqsHttpPublisher(lambda: SqsEndpoint(*find_sqs(queue.url)))
    assert isinstance(publisher.publish("q", [message()], start_before=LATER)[0], QueueFault)
    container.body = credentials(minutes=60)
    assert isinstance(publisher.publish("q", [message()], start_before=LATER)[0], Accepted)
    assert len(queue.batches) == 1
