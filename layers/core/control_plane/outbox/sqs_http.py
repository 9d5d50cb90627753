"""Publishes to SQS without boto3's client on the hot path: the same request for a third of the processor time.

boto3's client builds, validates and parses each call by its service model, at about 2 ms a batch. The request of
``SendMessageBatch`` is always the same, so it is written here directly, signed by botocore and sent over a kept-alive
urllib3 pool. Credentials, region, endpoint and certificate authorities are those that botocore finds.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, Any, Final

import urllib3
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.exceptions import BotoCoreError
from botocore.httpsession import get_cert_path

from control_plane.domain.lifecycle import MessageFault, NotSent, Outcome, QueueFault
from control_plane.outbox.publisher import Message
from control_plane.outbox.sqs import CONNECT_TIMEOUT_SECONDS, READ_TIMEOUT_SECONDS, one_by_one, read_answer, refusal
from control_plane.platform.aws import vpc_hint

if TYPE_CHECKING:
    from botocore.credentials import Credentials

_HEADERS: Final = {
    "Content-Type": "application/x-amz-json-1.0",
    "X-Amz-Target": "AmazonSQS.SendMessageBatch",
    # SQS names an error as it did before its JSON protocol, too.
    "X-Amzn-Query-Mode": "true",
}


@dataclass(frozen=True, slots=True)
class SqsEndpoint:
    """Where SQS is and who asks, as botocore found it."""

    url: str
    region: str
    credentials: "Credentials | None"
    """Refreshed by botocore as needed; None sends unsigned."""
    ca_bundle: str | None


class SqsHttpPublisher:
    """Sends with ``SendMessageBatch``, once, and reads the answer entry by entry.

    ``endpoint`` is called before the first send, not at start: it costs more than a first claim. ``connections`` bounds
    the pool.
    """

    send_timeout_seconds = CONNECT_TIMEOUT_SECONDS + READ_TIMEOUT_SECONDS

    def __init__(
        self,
        endpoint: Callable[[], SqsEndpoint],
        *,
        connections: int,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._find_endpoint = endpoint
        self._connections = connections
        self._monotonic = monotonic
        self._lock = Lock()
        self._found: tuple[SqsEndpoint, urllib3.PoolManager] | None = None

    def publish(self, queue_url: str, messages: Sequence[Message], *, start_before: float) -> Sequence[Outcome]:
        """See :class:`control_plane.outbox.publisher.Publisher`."""
        if self._monotonic() >= start_before:
            return [NotSent()] * len(messages)
        try:
            response = self._send(queue_url, messages)
        except (urllib3.exceptions.HTTPError, BotoCoreError) as error:
            hint = f". {vpc_hint('sqs')}" if isinstance(error, urllib3.exceptions.ConnectTimeoutError) else ""
            return [QueueFault(f"{type(error).__name__}: {error}{hint}")] * len(messages)
        try:
            answer = json.loads(response.data)
            if response.status == 200:
                return read_answer(answer, len(messages))
            code, said = _error(response, answer)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            # No words of SQS, so of something between here and there.
            reason = f"HTTP {response.status} with an answer that cannot be read: {type(error).__name__}"
            return [QueueFault(reason)] * len(messages)
        outcome = refusal(code, said, response.status)
        if isinstance(outcome, MessageFault) and len(messages) > 1:
            return one_by_one(self, queue_url, messages, start_before=start_before)
        return [outcome] * len(messages)

    def _transport(self) -> tuple[SqsEndpoint, urllib3.PoolManager]:
        with self._lock:
            if self._found is None:
                endpoint = self._find_endpoint()
                pool = urllib3.PoolManager(
                    maxsize=self._connections,
                    # Sent once: whether to send again is decided where it is known what may have been accepted.
                    retries=False,
                    timeout=urllib3.Timeout(connect=CONNECT_TIMEOUT_SECONDS, read=READ_TIMEOUT_SECONDS),
                    cert_reqs="CERT_REQUIRED",
                    ca_certs=endpoint.ca_bundle or get_cert_path(True),
                )
                self._found = endpoint, pool
            return self._found

    def _send(self, queue_url: str, messages: Sequence[Message]) -> urllib3.BaseHTTPResponse:
        entries = [
            {
                "Id": str(index),
                "MessageBody": message.body,
                "MessageAttributes": {
                    name: {"DataType": "String", "StringValue": value} for name, value in message.attributes.items()
                },
            }
            for index, message in enumerate(messages)
        ]
        body = json.dumps({"QueueUrl": queue_url, "Entries": entries}).encode()
        endpoint, pool = self._transport()
        headers = _HEADERS
        if endpoint.credentials is not None:
            request = AWSRequest("POST", endpoint.url, headers=_HEADERS, data=body)
            SigV4Auth(endpoint.credentials.get_frozen_credentials(), "sqs", endpoint.region).add_auth(request)
            headers = dict(request.headers.items())
        return pool.request("POST", endpoint.url, body=body, headers=headers)


def _error(response: urllib3.BaseHTTPResponse, answer: Any) -> tuple[str, str]:
    """The error's code and message; the code of SQS's older protocol, where the answer gives it."""
    older_code = response.headers.get("x-amzn-query-error", "").partition(";")[0]
    return older_code or str(answer["__type"]), str(answer.get("message") or answer.get("Message") or "no message")
