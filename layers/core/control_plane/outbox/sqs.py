"""Publishes to SQS with boto3."""

import ssl
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

from botocore.exceptions import (
    ConnectTimeoutError,
    EndpointConnectionError,
    ParamValidationError,
    ProxyConnectionError,
    SSLError,
)

from control_plane.model.lifecycle import MessageFault, NotSent, NoVerdict, Outcome, QueueFault
from control_plane.outbox.answers import one_by_one, read_answer
from control_plane.outbox.publisher import Message
from control_plane.platform.connections import MAX_ANSWER_BYTES, Answer

if TYPE_CHECKING:
    from mypy_boto3_sqs import SQSClient

CONNECT_TIMEOUT_SECONDS: Final = 2.0
READ_TIMEOUT_SECONDS: Final = 8.0


class _TooLateError(Exception):
    """Raised within botocore's call when the time was up before anything was sent."""


class _Call(threading.local):
    """How far the current thread's call of botocore has come. Its events tell that; its exceptions do not."""

    may_start: Callable[[], bool] = staticmethod(lambda: True)
    was_sent = False
    answer: Answer | None = None

    def begin(self, may_start: Callable[[], bool]) -> None:
        """Forgets the previous call."""
        self.may_start = may_start
        self.was_sent = False
        self.answer = None


_call = _Call()


class SqsPublisher:
    """Sends with boto3's ``SendMessageBatch`` and reads the answer entry by entry.

    ``client`` must not retry, and must not wait longer than ``send_timeout_seconds``. A send that may have been
    accepted is not repeated here, but by the delivery's next attempt.
    """

    send_timeout_seconds = CONNECT_TIMEOUT_SECONDS + READ_TIMEOUT_SECONDS

    def __init__(self, client: "SQSClient", *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._client = client
        self._monotonic = monotonic
        events = client.meta.events
        events.register_first("before-send.sqs.SendMessageBatch", _note_sending, unique_id="control-plane-sending")
        events.register_first("before-parse.sqs.SendMessageBatch", _keep_answer, unique_id="control-plane-answer")

    def publish(self, queue_url: str, messages: Sequence[Message], *, start_before: float) -> Sequence[Outcome]:
        """See :class:`control_plane.outbox.publisher.Publisher`."""
        _call.begin(lambda: self._monotonic() < start_before)
        try:
            self._client.send_message_batch(
                QueueUrl=queue_url,
                Entries=[
                    {
                        "Id": str(index),
                        "MessageBody": message.body,
                        "MessageAttributes": {
                            name: {"DataType": "String", "StringValue": value}
                            for name, value in message.attributes.items()
                        },
                    }
                    for index, message in enumerate(messages)
                ],
            )
        except _TooLateError:
            return [NotSent()] * len(messages)
        except ParamValidationError as error:  # botocore itself refuses a message, so nothing was sent.
            if len(messages) > 1:
                return one_by_one(self, queue_url, messages, start_before=start_before)
            return [MessageFault(described(error))]
        except Exception as error:  # noqa: BLE001  botocore's providers and parsers raise anything
            if _call.answer is None:
                outcome = NoVerdict if _call.was_sent and not _could_not_connect(error) else QueueFault
                return [outcome(described(error))] * len(messages)
        # botocore's own parser takes a single entry for a list, and any status below 300 for a success.
        answer = _call.answer
        if answer is None or len(answer.body) > MAX_ANSWER_BYTES:
            return [NoVerdict("the queue's answer is missing or too long")] * len(messages)
        return read_answer(answer, self, queue_url, messages, start_before=start_before)


def described(error: Exception) -> str:
    """Returns an exception as one line: its type and its text."""
    return f"{type(error).__name__}: {error}"


def _note_sending(**_: Any) -> None:
    """Handles botocore's event that the request is signed and is about to be sent."""
    if not _call.may_start():
        raise _TooLateError
    _call.was_sent = True


def _keep_answer(response_dict: dict[str, Any], **_: Any) -> None:
    """Handles botocore's event that an answer is there and is about to be parsed."""
    headers = {name.lower(): value for name, value in response_dict["headers"].items()}
    _call.answer = Answer(response_dict["status_code"], headers, response_dict["body"])


def _could_not_connect(error: Exception) -> bool:
    """Whether no connection was made: unknown name, refused, timed out, or an untrusted certificate."""
    if isinstance(error, SSLError):
        # A connection that is lost after the handshake is an SSL error, too.
        cause = error.kwargs.get("error")
        return not any(isinstance(argument, ssl.SSLEOFError) for argument in (cause, *getattr(cause, "args", ())))
    return isinstance(error, ConnectTimeoutError | EndpointConnectionError | ProxyConnectionError)
