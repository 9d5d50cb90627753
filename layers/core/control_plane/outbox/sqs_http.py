"""Publishes to SQS without boto3's client on the hot path: the same request for a third of the processor time.

boto3's client builds, validates and parses each call by its service model, at about 2 ms a batch. The request of
``SendMessageBatch`` is always the same, so it is written here directly, signed by botocore and sent over kept-alive
connections. Credentials, region, endpoint and certificate authorities are those that botocore finds.
"""

import json
import ssl
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from io import BufferedReader, RawIOBase
from json.encoder import encode_basestring_ascii as quoted
from socket import socket
from threading import Lock
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.exceptions import BotoCoreError
from botocore.httpsession import get_cert_path
from urllib3.util.wait import wait_for_read

from control_plane.model.lifecycle import MessageFault, NotSent, Outcome, QueueFault
from control_plane.outbox.publisher import Message
from control_plane.outbox.sqs import CONNECT_TIMEOUT_SECONDS, READ_TIMEOUT_SECONDS, one_by_one, read_answer, refusal
from control_plane.platform.aws import vpc_hint

if TYPE_CHECKING:
    from http.client import HTTPMessage

    from botocore.credentials import Credentials

IDLE_SECONDS: Final = 20.0
"""How long a connection may have been idle to be used again."""
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

    ``endpoint`` is called before the first send, not at start: it costs more than a first claim. Every thread that
    sends at a time has a connection to itself.
    """

    send_timeout_seconds = CONNECT_TIMEOUT_SECONDS + READ_TIMEOUT_SECONDS

    def __init__(self, endpoint: Callable[[], SqsEndpoint], *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._find_endpoint = endpoint
        self._monotonic = monotonic
        self._lock = Lock()
        self._found: _Transport | None = None

    def prepare(self) -> None:
        """Finds the endpoint ahead of the first send."""
        self._transport()

    def publish(self, queue_url: str, messages: Sequence[Message], *, start_before: float) -> Sequence[Outcome]:
        """See :class:`control_plane.outbox.publisher.Publisher`."""
        try:
            # Not before: to find the endpoint, to sign and to connect takes its time.
            may_start = partial(self._may_start, start_before)
            status, headers, text = self._transport().post(_request(queue_url, messages), may_start=may_start)
        except TooLateError:
            return [NotSent()] * len(messages)
        except (OSError, HTTPException, BotoCoreError) as error:
            return [QueueFault(f"{type(error).__name__}: {error}")] * len(messages)
        try:
            answer = json.loads(text)
            if status == 200:
                return read_answer(answer, len(messages))
            code, said = _error(headers, answer)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            # No words of SQS, so of something between here and there.
            reason = f"HTTP {status} with an answer that cannot be read: {type(error).__name__}"
            return [QueueFault(reason)] * len(messages)
        outcome = refusal(code, said, status)
        if isinstance(outcome, MessageFault) and len(messages) > 1:
            return one_by_one(self, queue_url, messages, start_before=start_before)
        return [outcome] * len(messages)

    def _may_start(self, start_before: float) -> bool:
        return self._monotonic() < start_before

    def _transport(self) -> "_Transport":
        with self._lock:
            if self._found is None:
                self._found = _Transport(self._find_endpoint())
            return self._found


class TooLateError(Exception):
    """The time was up before anything was sent."""


class UnreachableError(OSError):
    """No connection came about."""


class _Transport:
    """Signed requests over connections that are kept alive."""

    def __init__(self, endpoint: SqsEndpoint) -> None:
        self._endpoint = endpoint
        self._url = urlsplit(endpoint.url)
        self._idle: deque[tuple[HTTPConnection, float]] = deque()
        """With the time since when."""
        weakref.finalize(self, _close, self._idle)

    def post(self, body: bytes, *, may_start: Callable[[], bool]) -> tuple[int, "HTTPMessage", bytes]:
        """Status, headers and body of the answer. Sent once: a send that may have been accepted is not repeated.

        Raises TooLateError, OSError, HTTPException, BotoCoreError.
        """
        headers = self._signed(body)
        connection = self._connection()
        try:
            _start(may_start)
            ends = time.monotonic() + READ_TIMEOUT_SECONDS
            connection.sock.settimeout(READ_TIMEOUT_SECONDS)
            connection.response_class = partial(_Answer, ends=ends)  # type: ignore[assignment]  # it makes one
            connection.request("POST", self._url.path, body, headers)
            answer = connection.getresponse()
            text = answer.read()
        except BaseException:
            connection.close()
            raise
        if not answer.will_close:
            self._idle.append((connection, time.time()))
        return answer.status, answer.headers, text

    def _signed(self, body: bytes) -> Mapping[str, str]:
        if self._endpoint.credentials is None:
            return _HEADERS
        request = AWSRequest("POST", self._endpoint.url, headers=_HEADERS, data=body)
        SigV4Auth(self._endpoint.credentials.get_frozen_credentials(), "sqs", self._endpoint.region).add_auth(request)
        return dict(request.headers.items())

    def _connection(self) -> HTTPConnection:
        """One that is open: what was idle for long may be gone without a word, as after Lambda froze this process.

        By the time of day, for a monotonic clock may stand still meanwhile. One that the other side has closed shows as
        something to read.
        """
        while self._idle:
            try:
                connection, idle_since = self._idle.pop()
            except IndexError:  # another thread was faster
                break
            if 0 <= time.time() - idle_since < IDLE_SECONDS and not wait_for_read(connection.sock, timeout=0):
                return connection
            connection.close()
        return self._opened()

    def _opened(self) -> HTTPConnection:
        host, port = self._url.hostname or "", self._url.port
        connection = (
            HTTPSConnection(host, port, timeout=CONNECT_TIMEOUT_SECONDS, context=self._tls)
            if self._url.scheme == "https"
            else HTTPConnection(host, port, timeout=CONNECT_TIMEOUT_SECONDS)
        )
        try:
            connection.connect()
        except ssl.SSLError:
            raise  # it is there, and not to be trusted
        except OSError as error:
            msg = f"no connection to {self._endpoint.url}: {error}. {vpc_hint('sqs')}"
            raise UnreachableError(msg) from error
        return connection

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=self._endpoint.ca_bundle or get_cert_path(True))


def _start(may_start: Callable[[], bool]) -> None:
    if not may_start():
        raise TooLateError


def _close(connections: Iterable[tuple[HTTPConnection, float]]) -> None:
    for connection, _ in connections:
        connection.close()


class _Answer(HTTPResponse):
    """An answer that is whole in time, or a time-out: a socket's own counts anew for every piece."""

    def __init__(self, sock: socket, *, ends: float, method: str | None = None) -> None:
        super().__init__(sock, method=method)
        self.fp = BufferedReader(_Timed(self.fp.detach(), sock, ends))


class _Timed(RawIOBase):
    """What a socket receives until an instant of ``time.monotonic()``."""

    def __init__(self, raw: RawIOBase, sock: socket, ends: float) -> None:
        self._raw = raw
        self._sock = sock
        self._ends = ends

    def readable(self) -> bool:
        """Io's: it is."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Io's: reads a piece. Raises TimeoutError."""
        remaining = self._ends - time.monotonic()
        if remaining <= 0:
            raise TimeoutError("the answer was not whole in time")
        if self._sock.fileno() >= 0:  # an answer that is the last on its connection outlives it
            self._sock.settimeout(remaining)
        return self._raw.readinto(buffer) or 0

    def close(self) -> None:
        """Io's: and lets go of the socket."""
        self._raw.close()
        super().close()


def _request(queue_url: str, messages: Sequence[Message]) -> bytes:
    """SendMessageBatch's body. Joined from its parts: a document built to be dumped costs three times as much."""
    entries = []
    for index, message in enumerate(messages):
        attributes = ",".join(
            [
                f'{quoted(name)}:{{"DataType":"String","StringValue":{quoted(value)}}}'
                for name, value in message.attributes.items()
            ]
        )
        entries.append(f'{{"Id":"{index}","MessageBody":{quoted(message.body)},"MessageAttributes":{{{attributes}}}}}')
    return f'{{"QueueUrl":{quoted(queue_url)},"Entries":[{",".join(entries)}]}}'.encode()


def _error(headers: "HTTPMessage", answer: Any) -> tuple[str, str]:
    """The error's code and message; the code of SQS's older protocol, where the answer gives it."""
    older_code = headers.get("x-amzn-query-error", "").partition(";")[0]
    return older_code or str(answer["__type"]), str(answer.get("message") or answer.get("Message") or "no message")
