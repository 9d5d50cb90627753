"""Publishes to SQS without boto3's client: the same request for a tenth of the processor time.

boto3's client builds, validates and parses each call by its service model. The request of ``SendMessageBatch`` is the
same every time, so it is written here directly, signed, and sent over kept-alive connections. botocore still finds the
credentials, region, endpoint and certificate authorities. See docs/decisions/0009.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from json.encoder import encode_basestring as quoted
from socket import socket
from threading import Lock
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from control_plane.model.lifecycle import MessageFault, NotSent, NoVerdict, Outcome, QueueFault
from control_plane.outbox.answers import one_by_one, read_answer
from control_plane.outbox.publisher import Message
from control_plane.outbox.signing import Signer
from control_plane.outbox.sqs import CONNECT_TIMEOUT_SECONDS, READ_TIMEOUT_SECONDS, described
from control_plane.platform.connections import Answer, Connections

if TYPE_CHECKING:
    from botocore.credentials import Credentials

_SIGNED_HEADERS: Final = {
    "Content-Type": "application/x-amz-json-1.0",
    "X-Amz-Target": "AmazonSQS.SendMessageBatch",
    # This header makes SQS also send the error code of its older protocol, in a header.
    "X-Amzn-Query-Mode": "true",
}


@dataclass(frozen=True, slots=True)
class SqsEndpoint:
    """SQS's address and our credentials, as botocore found them."""

    url: str
    region: str
    credentials: "Credentials | None"
    """botocore refreshes them as needed; None sends requests unsigned."""
    ca_bundle: str | None


class SqsHttpPublisher:
    """Sends a batch once with ``SendMessageBatch``, and reads the answer entry by entry.

    ``endpoint`` is called before the first send and not at start, because it takes longer than a first claim.
    """

    send_timeout_seconds = CONNECT_TIMEOUT_SECONDS + READ_TIMEOUT_SECONDS

    def __init__(self, endpoint: Callable[[], SqsEndpoint], *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._find_endpoint = endpoint
        self._monotonic = monotonic
        self._lock = Lock()
        self._found: _Transport | None = None

    def prepare(self) -> None:
        """Finds the endpoint before the first send."""
        self._transport()

    def publish(self, queue_url: str, messages: Sequence[Message], *, start_before: float) -> Sequence[Outcome]:
        """See :class:`control_plane.outbox.publisher.Publisher`."""
        try:
            body = _body(queue_url, messages)
        except (AttributeError, TypeError, ValueError) as error:  # not a text, or one that UTF-8 cannot encode
            if len(messages) > 1:
                return one_by_one(self, queue_url, messages, start_before=start_before)
            return [MessageFault(described(error))]
        try:
            transport = self._transport()
            request = transport.request(body)
            connection = transport.connections.take()
        except Exception as error:  # noqa: BLE001  botocore's credential providers raise anything; nothing was sent
            return [QueueFault(described(error))] * len(messages)
        # This check comes last, because finding the endpoint, signing and connecting take time.
        if self._monotonic() >= start_before:
            transport.connections.give_back(connection)
            return [NotSent()] * len(messages)
        try:
            answer = transport.exchange(connection, request)
        except Exception as error:  # noqa: BLE001  whatever it was, the messages may have been accepted
            return [NoVerdict(described(error))] * len(messages)
        return read_answer(answer, self, queue_url, messages, start_before=start_before)

    def _transport(self) -> "_Transport":
        with self._lock:
            if self._found is None:
                self._found = _Transport(self._find_endpoint())
            return self._found


class _Transport:
    """Signs requests, and keeps the connections over which they are sent."""

    def __init__(self, endpoint: SqsEndpoint) -> None:
        parts = urlsplit(endpoint.url)
        host, path = _host(endpoint.url), parts.path or "/"
        self.connections = Connections(
            endpoint.url, service="sqs", ca_bundle=endpoint.ca_bundle, connect_timeout=CONNECT_TIMEOUT_SECONDS
        )
        headers = {
            "Host": host,
            "Accept-Encoding": "identity",
            **self.connections.added_headers,
            **_SIGNED_HEADERS,
        }
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        self._head = f"POST {self.connections.target_prefix}{path} HTTP/1.1\r\n{lines}".encode("ascii")
        self._signer = (
            None
            if endpoint.credentials is None
            else Signer(endpoint.credentials, region=endpoint.region, host=host, path=path, headers=_SIGNED_HEADERS)
        )

    def request(self, body: bytes) -> bytes:
        """Returns the whole request, signed. Raises whatever botocore's credential providers raise."""
        signed = b"" if self._signer is None else self._signer.headers(body)
        return b"%b%bContent-Length: %d\r\n\r\n%b" % (self._head, signed, len(body), body)

    def exchange(self, connection: socket, request: bytes) -> Answer:
        """Returns the answer. The request is sent once: a send that may have been accepted is not repeated."""
        return self.connections.exchange(connection, request, ends=time.monotonic() + READ_TIMEOUT_SECONDS)


def _host(url: str) -> str:
    """Returns the Host header for a URL: lower case, without the scheme's default port."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    host = f"[{host}]" if ":" in host else host
    is_usual = parts.port in {None, {"http": 80, "https": 443}.get(parts.scheme)}
    return host if is_usual else f"{host}:{parts.port}"


def _body(queue_url: str, messages: Sequence[Message]) -> bytes:
    """Returns SendMessageBatch's body, joined from parts, because `json.dumps` takes three times as long."""
    entries = [
        f'{{"Id":"{index}","MessageBody":{quoted(message.body)},"MessageAttributes":{_attributes(message.attributes)}}}'
        for index, message in enumerate(messages)
    ]
    return f'{{"QueueUrl":{quoted(queue_url)},"Entries":[{",".join(entries)}]}}'.encode()


def _attributes(attributes: Mapping[str, str]) -> str:
    return f"{{{','.join([f'{_typed(name)}{quoted(value)}}}' for name, value in attributes.items()])}}}"


@lru_cache(maxsize=64)
def _typed(name: str) -> str:
    """Returns the part of an attribute before its value; it is cached, because there are only about six names."""
    return f'{quoted(name)}:{{"DataType":"String","StringValue":'
