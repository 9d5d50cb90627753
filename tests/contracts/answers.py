"""A table of a queue's answers, sensible or not, with the outcomes that every publisher must report for them.

Each answer goes through a real socket. Subclass AnswersContract and give it ``publisher``.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from http.client import responses
from socketserver import StreamRequestHandler, ThreadingTCPServer
from threading import Event, Thread
from typing import Any, Final
from uuid import uuid4

import pytest
from tests.contracts.queue import LATER, message

from control_plane.model.lifecycle import Accepted, Failed, MessageFault, NotSent, NoVerdict, Outcome, QueueFault
from control_plane.outbox.publisher import Message, Publisher

type Kind = type[Outcome]


@dataclass(frozen=True)
class Reply:
    """The bytes to answer a request with, and whether to hang up then."""

    raw: bytes
    hangs_up: bool = False


type Answering = Callable[[Sequence[Mapping[str, Any]]], Reply]
"""Returns the reply to a batch with these entries."""


def http(body: object, *, status: int = 200, headers: str = "", hangs_up: bool = False) -> Reply:
    """Returns a whole HTTP answer: text and bytes are used unchanged, anything else is written as JSON."""
    content = body if isinstance(body, bytes) else body.encode() if isinstance(body, str) else json.dumps(body).encode()
    head = f"HTTP/1.1 {status} {responses.get(status, 'Odd')}\r\n{headers}Content-Length: {len(content)}\r\n\r\n"
    return Reply(head.encode() + content, hangs_up)


def taken(entry_id: object, message_id: object = "") -> dict[str, Any]:
    """Returns an entry of Successful."""
    return {"Id": entry_id, "MessageId": message_id or str(uuid4()), "MD5OfMessageBody": ""}


def refused(entry_id: object, code: object = "InternalError", *, is_senders: object = False) -> dict[str, Any]:
    """Returns an entry of Failed."""
    return {"Id": entry_id, "Code": code, "Message": "said the queue", "SenderFault": is_senders}


def said(*successful: object, failed: object = ()) -> Reply:
    return http({"Successful": list(successful), "Failed": list(failed) if isinstance(failed, tuple) else failed})


def error(code: str, *, status: int = 400, query_code: str = "") -> Reply:
    """Returns a refusal of the whole request, as SQS words it."""
    body = {"__type": f"com.amazonaws.sqs#{code}", "message": "said the queue"}
    return http(body, status=status, headers=f"x-amzn-query-error: {query_code};Sender\r\n" if query_code else "")


HTML: Final = "<html><body>Service temporarily busy</body></html>"
A, F, M, Q, N = Accepted, Failed, MessageFault, QueueFault, NoVerdict

SENSELESS: Final[Mapping[str, tuple[Reply, Sequence[Kind]]]] = {
    # ids
    "an id that was not asked for": (said(taken("0"), taken("7"), taken("2")), [A, N, A]),
    "only ids that were not asked for": (said(taken("7"), taken("8"), taken("9")), [N, N, N]),
    "a negative id": (said(taken("-1"), taken("0"), taken("1")), [A, A, N]),
    "a negative id of a failure": (said(taken("0"), failed=(refused("-1"), refused("-2"))), [A, N, N]),
    "an id with a space": (said(taken(" 1"), taken("0"), taken("2 ")), [A, N, N]),
    "an id with a leading zero": (said(taken("01"), taken("00"), taken("2")), [N, N, A]),
    "an id with a sign": (said(taken("+1"), taken("2")), [N, N, A]),
    "an id with an underscore": (said(taken("0_0"), taken("1")), [N, A, N]),
    "an id in other digits": (said(taken("\u0661"), taken("\u00b2")), [N, N, N]),
    "an id that is a number": (said(taken(1), taken(0.0), taken("2")), [N, N, A]),
    "an id that is true": (said(taken(True), taken("0")), [A, N, N]),
    "an id that is null": (said(taken(None), taken("0")), [A, N, N]),
    "an id that is a list": (said(taken(["0"]), taken("1")), [N, A, N]),
    "an id that is an object": (said(taken({"0": "0"}), taken("1")), [N, A, N]),
    "an empty id": (said(taken(""), taken("1")), [N, A, N]),
    "an id of a million digits": (said(taken("9" * 1_000_000), taken("1")), [N, A, N]),
    "no id": (said({"MessageId": "m-1"}, taken("1")), [N, A, N]),
    "an entry that is left out": (said(taken("0"), taken("2")), [A, N, A]),
    "an entry that is doubled": (said(taken("0"), taken("1"), taken("1")), [A, N, N]),
    "an entry that is said three times": (said(taken("2"), taken("2"), taken("1"), taken("2")), [N, A, N]),
    "an entry that is doubled with one message id": (said(taken("0", "m-1"), taken("0", "m-1")), [N, N, N]),
    "an entry that failed twice": (said(taken("0"), taken("1"), failed=(refused("2"), refused("2"))), [A, A, N]),
    "an entry that was taken and failed": (said(taken("0"), taken("1"), failed=(refused("1"),)), [A, N, N]),
    # message ids
    "a message id that is missing": (said({"Id": "0"}, taken("1")), [N, A, N]),
    "a message id that is null": (said({"Id": "0", "MessageId": None}, taken("1")), [N, A, N]),
    "a message id that is empty": (said({"Id": "0", "MessageId": ""}, taken("1")), [N, A, N]),
    "a message id that is blank": (said(taken("0", "   "), taken("1")), [N, A, N]),
    "a message id that is a number": (said(taken("0", 7), taken("1")), [N, A, N]),
    "a message id that is a list": (said(taken("0", ["m-1"]), taken("1")), [N, A, N]),
    "a message id that Postgres cannot hold": (said(taken("0", "m\x00n"), taken("1", "\ud800")), [N, N, N]),
    "a message id of two lines": (said(taken("0", "m\nn"), taken("1")), [N, A, N]),
    "a message id of 10,000 characters": (said(taken("0", "m" * 10_000), taken("1")), [N, A, N]),
    # failures
    "a failure without a code": (said(taken("0"), failed=({"Id": "1", "SenderFault": True},)), [A, N, N]),
    "a failure with an empty code": (said(taken("0"), failed=(refused("1", ""), refused("2"))), [A, N, F]),
    "a failure whose code is null": (said(failed=(refused("0", None), refused("1"), refused("2"))), [N, F, F]),
    "a failure whose code is a number": (said(failed=(refused("0", 500), refused("1"), refused("2"))), [N, F, F]),
    "a failure whose code is a page": (said(failed=(refused("0", HTML), refused("1"))), [N, F, N]),
    "a failure whose fault is text": (said(failed=(refused("0", is_senders="true"), refused("1"))), [N, F, N]),
    "a failure whose message is a list": (
        said(taken("0"), taken("1"), failed=({**refused("2"), "Message": ["said"]},)),
        [A, A, F],
    ),
    # the shape
    "an empty object": (http({}), [N, N, N]),
    "two empty lists": (said(), [N, N, N]),
    "a list": (http([taken("0"), taken("1"), taken("2")]), [N, N, N]),
    "null": (http("null"), [N, N, N]),
    "true": (http("true"), [N, N, N]),
    "a number": (http("200"), [N, N, N]),
    "a text": (http('"OK"'), [N, N, N]),
    "nothing": (http(""), [N, N, N]),
    "a page": (http(HTML), [N, N, N]),
    "half of the JSON": (http(said(taken("0"), taken("1"), taken("2")).raw.partition(b"\r\n\r\n")[2][:-40]), [N, N, N]),
    "bytes that are no text": (http(b"\xff\xfe\x00{}"), [N, N, N]),
    "lists nested without end": (http("[" * 200_000), [N, N, N]),
    "a number of 10,000 digits": (http(f'{{"Successful": {"9" * 10_000}}}'), [N, N, N]),
    "XML of the older protocol": (
        http("<SendMessageBatchResponse><SendMessageBatchResult/></SendMessageBatchResponse>"),
        [N, N, N],
    ),
    "Successful that is null": (http({"Successful": None, "Failed": [refused("1")]}), [N, F, N]),
    "Successful that is text": (http({"Successful": "012", "Failed": [refused("1")]}), [N, F, N]),
    "Successful that is a number": (http({"Successful": 3, "Failed": [refused("1")]}), [N, F, N]),
    "Successful that is one entry": (http({"Successful": taken("0"), "Failed": [refused("1")]}), [N, F, N]),
    "Successful by id": (http({"Successful": {"0": taken("0")}, "Failed": [refused("1")]}), [N, F, N]),
    "Failed that is text": (http({"Successful": [taken("0")], "Failed": "1"}), [A, N, N]),
    "Failed that is one entry": (http({"Successful": [taken("0")], "Failed": refused("1")}), [A, N, N]),
    "lists by other names": (http({"successful": [taken("0")], "SUCCESSFUL": [taken("1")]}), [N, N, N]),
    "entries of all kinds": (said(None, 1, "0", [], [taken("0")], {}, True, taken("2")), [N, N, A]),
    "an answer within an answer": (http({"SendMessageBatchResult": {"Successful": [taken("0")]}}), [N, N, N]),
    "more than anybody reads": (http(json.dumps({"Successful": [taken("0")]}) + " " * 2_000_000), [N, N, N]),
    # the status
    "an error document with status 200": (error("InternalFailure", status=200), [N, N, N]),
    "a refusal with status 200": (error("AccessDenied", status=200), [N, N, N]),
    "a success with status 201": (http({"Successful": [taken("0")]}, status=201), [N, N, N]),
    "a success with status 204": (Reply(b"HTTP/1.1 204 No Content\r\n\r\n"), [N, N, N]),
    "a success with status 400": (http({"Successful": [taken("0")]}, status=400), [N, N, N]),
    "a success with status 500": (http({"Successful": [taken("0")]}, status=500), [N, N, N]),
    "a page with status 400": (http(HTML, status=400), [N, N, N]),
    "a page with status 403": (http(HTML, status=403), [N, N, N]),
    "a page with status 413": (http(HTML, status=413), [N, N, N]),
    "a page with status 429": (http(HTML, status=429), [N, N, N]),
    "a page with status 502": (http(HTML, status=502), [N, N, N]),
    "nothing with status 503": (http("", status=503), [N, N, N]),
    "a list with status 400": (http([1], status=400), [N, N, N]),
    "an empty object with status 400": (http({}, status=400), [N, N, N]),
    "an error whose type is a number": (http({"__type": 7, "message": "seven"}, status=400), [N, N, N]),
    "an error whose type is a page": (http({"__type": HTML}, status=400), [N, N, N]),
    "a redirect": (http(HTML, status=302, headers="Location: http://127.0.0.1:1/\r\n"), [N, N, N]),
    "an internal error": (error("InternalFailure", status=500), [N, N, N]),
    "an internal error with status 400": (error("InternalError"), [N, N, N]),
    "the content's fault with status 500": (error("InvalidMessageContents", status=500), [N, N, N]),
    "a code that nobody knows": (error("MessageIsOddException"), [N, N, N]),
    "a request that cannot be read": (error("SerializationException", query_code="MalformedInput"), [N, N, N]),
    # the connection
    "a connection that is closed": (Reply(b"", hangs_up=True), [N, N, N]),
    "half of the head": (Reply(b"HTTP/1.1 200 OK\r\nContent-Le", hangs_up=True), [N, N, N]),
    "half of the body": (Reply(http({"Successful": [taken("0")]}).raw[:-9], hangs_up=True), [N, N, N]),
    "another protocol": (Reply(b"SSH-2.0-OpenSSH_9.9\r\n\r\n", hangs_up=True), [N, N, N]),
}

REFUSALS: Final[Mapping[str, tuple[Reply, Kind]]] = {
    "throttled": (error("RequestThrottled"), Q),
    "throttled with status 503": (error("ThrottlingException", status=503), Q),
    "throttled by a code that nobody knows": (error("SlowDownPleaseException", status=429), Q),
    "unavailable": (error("ServiceUnavailable", status=503), Q),
    "denied": (error("AccessDeniedException", status=403, query_code="AccessDenied"), Q),
    "denied by a code that nobody knows": (error("ForbiddenByOrganisationException", status=403), Q),
    "expired": (error("ExpiredToken", status=403), Q),
    "expired with status 400": (error("ExpiredTokenException"), Q),
    "a request that expired": (error("RequestExpired"), Q),
    "an unknown key": (error("InvalidClientTokenId", status=403), Q),
    "a token of elsewhere": (error("UnrecognizedClientException"), Q),
    "a wrong signature": (error("SignatureDoesNotMatch", status=403), Q),
    "a signature for another region": (error("InvalidSignatureException"), Q),
    "no queue": (error("QueueDoesNotExist", query_code="AWS.SimpleQueueService.NonExistentQueue"), Q),
    "no queue in the older words": (error("X", query_code="AWS.SimpleQueueService.NonExistentQueue"), Q),
    "no key": (error("KmsDisabled", query_code="KMS.DisabledException"), Q),
    "a queue of another kind": (error("MissingParameter"), Q),
    "an operation that it does not have": (error("UnsupportedOperation"), Q),
    "another service": (error("UnknownOperationException", query_code="InvalidAction"), Q),
    "its content": (error("InvalidMessageContents"), M),
    "its size": (error("BatchRequestTooLong", query_code="AWS.SimpleQueueService.BatchRequestTooLong"), M),
    "a parameter of it": (error("InvalidParameterValue"), M),
    # A message that is sent alone cannot be a batch of too many, nor share its id with another.
    "too many entries in a batch of one": (error("TooManyEntriesInBatchRequest"), N),
    "ids that are not distinct in a batch of one": (error("BatchEntryIdsNotDistinct"), N),
}

FAILURES: Final[Mapping[str, tuple[Mapping[str, Any], Kind]]] = {
    "an internal error": (refused("0", "InternalError"), F),
    "a code that nobody knows": (refused("0", "Odd"), F),
    "a code that nobody knows, the sender's fault": (refused("0", "Odd", is_senders=True), M),
    "without a word on whose fault it is": ({"Id": "0", "Code": "InternalError"}, F),
    "its content": (refused("0", "InvalidMessageContents", is_senders=True), M),
    "its content as an emulator says it": (refused("0", "InvalidMessageContents"), M),
    "throttled": (refused("0", "RequestThrottled", is_senders=True), Q),
    "denied": (refused("0", "AccessDenied", is_senders=True), Q),
    "no key": (refused("0", "KMS.AccessDeniedException", is_senders=True), Q),
}


class Endpoint:
    """An SQS endpoint that replies as a test says; it records the bodies of each batch."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.batches: list[list[str]] = []
        self.answering: Answering = take_all


def take_all(entries: Sequence[Mapping[str, Any]]) -> Reply:
    """Returns the reply of a queue that accepts everything."""
    return said(*(taken(entry["Id"]) for entry in entries))


@contextmanager
def serving() -> Iterator[Endpoint]:
    class Handler(StreamRequestHandler):
        def handle(self) -> None:
            with suppress(ConnectionError):
                while self.reply():
                    """One request after the other, as long as the connection stands."""

        def reply(self) -> bool:
            lines = []
            while line := self.rfile.readline().strip():
                lines.append(line)
            if not lines:
                return False
            headers = dict(line.lower().split(b": ", 1) for line in lines[1:])
            request = json.loads(self.rfile.read(int(headers[b"content-length"])))
            endpoint.batches.append([entry["MessageBody"] for entry in request["Entries"]])
            reply = endpoint.answering(request["Entries"])
            self.wfile.write(reply.raw)
            return not reply.hangs_up

    class Server(ThreadingTCPServer):
        daemon_threads = True
        request_queue_size = 32

    with Server(("127.0.0.1", 0), Handler) as server:
        endpoint = Endpoint(f"http://127.0.0.1:{server.server_address[1]}")
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield endpoint
        finally:
            server.shutdown()
            thread.join()


def kinds(outcomes: Sequence[Outcome]) -> list[Kind]:
    return [type(outcome) for outcome in outcomes]


def reasons(outcomes: Sequence[Outcome]) -> list[str]:
    return [outcome.reason for outcome in outcomes if not isinstance(outcome, Accepted | NotSent)]


def three() -> list[Message]:
    return [message(f'{{"n": {number}}}') for number in range(3)]


class AnswersContract(ABC):
    """The tests of the table, for subclasses."""

    @staticmethod
    @abstractmethod
    def publisher(url: str) -> Publisher:
        """Returns the publisher under test, to an endpoint."""

    @staticmethod
    @abstractmethod
    def impatient(url: str, read_timeout: float) -> AbstractContextManager[Publisher]:
        """Makes a publisher that waits at most so many seconds for an answer."""

    @pytest.fixture(scope="class")
    @classmethod
    def served(cls) -> Iterator[tuple[Endpoint, Publisher]]:
        with serving() as endpoint:
            yield endpoint, cls.publisher(endpoint.url)

    @pytest.fixture
    def endpoint(self, served: tuple[Endpoint, Publisher]) -> Endpoint:
        """The endpoint; it accepts everything until a test says otherwise."""
        endpoint, self.published_by = served
        endpoint.answering = take_all
        endpoint.batches.clear()
        return endpoint

    def publish(self, *messages: Message) -> Sequence[Outcome]:
        return self.published_by.publish("q", messages, start_before=LATER)

    @pytest.mark.parametrize(("reply", "expected"), SENSELESS.values(), ids=SENSELESS)
    def test_only_sensible_parts_of_an_answer_are_believed(
        self, endpoint: Endpoint, reply: Reply, expected: Sequence[Kind]
    ) -> None:
        endpoint.answering = lambda _: reply
        outcomes = self.publish(*three())
        assert kinds(outcomes) == expected
        assert all(reasons(outcomes))
        assert len(endpoint.batches) == 1  # What may have been accepted is not sent again.

    @pytest.mark.parametrize(("reply", "expected"), REFUSALS.values(), ids=REFUSALS)
    def test_a_refused_message_gets_the_right_fault(self, endpoint: Endpoint, reply: Reply, expected: Kind) -> None:
        endpoint.answering = lambda _: reply
        outcomes = self.publish(message())
        assert kinds(outcomes) == [expected]
        assert all("said the queue" in reason for reason in reasons(outcomes))

    @pytest.mark.parametrize(("entry", "expected"), FAILURES.values(), ids=FAILURES)
    def test_a_failed_entry_gets_the_right_fault(
        self, endpoint: Endpoint, entry: Mapping[str, Any], expected: Kind
    ) -> None:
        endpoint.answering = lambda _: said(taken("1"), taken("2"), failed=(entry,))
        assert kinds(self.publish(*three())) == [expected, Accepted, Accepted]

    def test_an_answer_in_another_order_is_matched_by_id(self, endpoint: Endpoint) -> None:
        endpoint.answering = lambda _: said(taken("2", "c"), taken("0", "a"), taken("1", "b"))
        assert self.publish(*three()) == [Accepted("a"), Accepted("b"), Accepted("c")]

    def test_batch_refused_for_its_content_is_sent_one_by_one(self, endpoint: Endpoint) -> None:
        endpoint.answering = lambda entries: (
            error("InvalidMessageContents")
            if any("odd" in entry["MessageBody"] for entry in entries)
            else take_all(entries)
        )
        outcomes = self.publish(message("a"), message("odd"), message("b"))
        assert kinds(outcomes) == [Accepted, MessageFault, Accepted]
        assert endpoint.batches == [["a", "odd", "b"], ["a"], ["odd"], ["b"]]

    @pytest.mark.parametrize("code", ["TooManyEntriesInBatchRequest", "BatchRequestTooLong", "InvalidBatchEntryId"])
    def test_a_refused_batch_is_sent_one_by_one(self, endpoint: Endpoint, code: str) -> None:
        endpoint.answering = lambda entries: error(code) if len(entries) > 1 else take_all(entries)
        assert kinds(self.publish(*three())) == [Accepted, Accepted, Accepted]

    def test_an_outage_between_single_sends_blames_no_message(self, endpoint: Endpoint) -> None:
        replies = iter([error("InvalidMessageContents"), said(taken("0")), http(HTML, status=502), said(taken("0"))])
        endpoint.answering = lambda _: next(replies)
        assert kinds(self.publish(*three())) == [Accepted, NoVerdict, Accepted]

    def test_a_batch_refused_for_anything_else_is_sent_once(self, endpoint: Endpoint) -> None:
        endpoint.answering = lambda _: error("RequestThrottled")
        assert kinds(self.publish(*three())) == [QueueFault] * 3
        assert len(endpoint.batches) == 1

    def test_a_message_that_cannot_be_written_is_its_own_fault(self, endpoint: Endpoint) -> None:
        unwritable: Any = message()
        object.__setattr__(unwritable, "body", None)
        outcomes = self.publish(message("a"), unwritable, message("b"))
        assert kinds(outcomes) == [Accepted, MessageFault, Accepted]
        assert sorted(endpoint.batches) == [["a"], ["b"]]

    @pytest.mark.parametrize("url", ["http://127.0.0.1:1", "http://sqs.invalid", "https://127.0.0.1:1"])
    def test_without_a_connection_nothing_was_sent(self, url: str) -> None:
        assert kinds(self.publisher(url).publish("q", three(), start_before=LATER)) == [QueueFault] * 3

    def test_without_a_tls_handshake_nothing_was_sent(self) -> None:
        class Handler(StreamRequestHandler):
            def handle(self) -> None:
                self.request.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
                self.request.recv(1)

        with ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
            thread = Thread(target=server.handle_request)
            thread.start()
            publisher = self.publisher(f"https://127.0.0.1:{server.server_address[1]}")
            assert kinds(publisher.publish("q", three(), start_before=LATER)) == [QueueFault] * 3
            thread.join()

    def test_an_answer_that_never_comes_is_no_verdict(self, endpoint: Endpoint) -> None:
        asked, go_on = Event(), Event()

        def wait(entries: Sequence[Mapping[str, Any]]) -> Reply:
            asked.set()
            go_on.wait(10)
            return take_all(entries)

        endpoint.answering = wait
        try:
            with self.impatient(endpoint.url, 0.3) as publisher:
                assert kinds(publisher.publish("q", three(), start_before=LATER)) == [NoVerdict] * 3
        finally:
            go_on.set()
        assert asked.is_set()

    def test_after_senseless_answers_the_next_send_is_answered_rightly(self, endpoint: Endpoint) -> None:
        for reply, _ in SENSELESS.values():
            endpoint.answering = lambda _, reply=reply: reply  # type: ignore[misc]  # bound for this round
            self.publish(*three())
            endpoint.answering = take_all
            assert kinds(self.publish(*three())) == [Accepted] * 3
