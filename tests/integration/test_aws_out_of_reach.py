"""Secrets Manager and SQS refuse or cannot be reached, as in a VPC that has no route to AWS yet."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import boto3
import pytest
from moto import mock_aws
from tests.contracts.queue import message

from control_plane.model.lifecycle import QueueFault
from control_plane.outbox.sqs_http import SqsEndpoint, SqsHttpPublisher
from control_plane.platform.aws import SecretUnavailable, find_sqs, read_secret

ARN = "arn:aws:secretsmanager:us-east-1:123456789012:secret:database-AbCdEf"
HINT = "A function in a VPC needs an interface endpoint for"


@contextmanager
def answering(status: int, body: dict[str, Any]) -> Iterator[str]:
    """Serves a Secrets Manager that always gives this answer."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(status)
            self.send_header("Content-Type", "application/x-amz-json-1.1")
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@contextmanager
def black_hole() -> Iterator[str]:
    """Yields a port that never answers, as in a network without a route: its queue of connections is full."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        waiting = [socket.socket() for _ in range(8)]
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(listener.getsockname())
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        for one in waiting:
            one.close()


def refused(endpoint_url: str | None, *texts: str, arn: str = ARN) -> str:
    with pytest.raises(SecretUnavailable) as caught:
        read_secret(arn, endpoint_url=endpoint_url)
    message = str(caught.value)
    for text in (arn, *texts):
        assert text in message
    return message


@pytest.mark.parametrize(
    ("code", "remedy"),
    [
        ("ResourceNotFoundException", "DatabaseSecretArn"),
        ("AccessDeniedException", "its last six characters"),
        ("AccessDeniedException", "SecretsKeyArn"),
        ("DecryptionFailure", "SecretsKeyArn"),
        ("InvalidRequestException", "aws secretsmanager restore-secret"),
    ],
)
def test_a_refused_secret_says_why_and_what_to_change(code: str, remedy: str) -> None:
    with answering(400, {"__type": code, "Message": "said by AWS"}) as url:
        message = refused(url, code, "said by AWS", remedy)
    assert HINT not in message


def test_a_secret_that_does_not_exist() -> None:
    with mock_aws():
        refused(None, "ResourceNotFoundException", "as …DatabaseSecretArn, DatabaseOwnerSecretArn")


def test_a_secret_without_text() -> None:
    with mock_aws():
        client = boto3.client("secretsmanager")
        arn = client.create_secret(Name="binary", SecretBinary=b"\x00")["ARN"]
        client.close()
        refused(None, "holds no text", "SecretString", arn=arn)


def test_missing_credentials_are_not_reported_as_a_missing_route(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)  # The container has credentials already.
    assert HINT not in refused("http://127.0.0.1:1", "Unable to locate credentials")


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "http://secretsmanager.invalid"])
def test_unreachable_secrets_manager_names_the_endpoint_a_vpc_needs(url: str) -> None:
    refused(url, "no connection to", url, f"{HINT} secretsmanager", "NAT gateway")


def test_secrets_manager_without_a_route_is_given_up_in_time() -> None:
    with black_hole() as url:
        began = time.monotonic()
        refused(url, "no connection to", url, f"{HINT} secretsmanager")
        assert time.monotonic() - began < 25


def unsent(url: str) -> str:
    publisher = SqsHttpPublisher(lambda: SqsEndpoint(*find_sqs(url)))
    [outcome] = publisher.publish(f"{url}/queue", [message()], start_before=time.monotonic() + 60)
    assert isinstance(outcome, QueueFault)
    return outcome.reason


@contextmanager
def nothing() -> Iterator[str]:
    yield "http://127.0.0.1:1"


@contextmanager
def no_such_name() -> Iterator[str]:
    yield "http://sqs.invalid"


@pytest.mark.parametrize("network", [black_hole, nothing, no_such_name])
def test_unreachable_sqs_is_a_queue_fault_naming_the_vpc_endpoint(
    network: Callable[[], Any],
) -> None:
    with network() as url:
        assert f"{HINT} sqs" in unsent(url)


def test_sqs_answering_with_an_error_is_not_out_of_reach() -> None:
    with answering(403, {"__type": "AccessDenied", "Message": "said by AWS"}) as url:
        assert unsent(url) == "AccessDenied: said by AWS"
