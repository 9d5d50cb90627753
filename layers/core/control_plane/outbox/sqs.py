"""Publishes to SQS with boto3."""

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

from botocore.exceptions import BotoCoreError, ClientError, ParamValidationError

from control_plane.model.lifecycle import Accepted, Failed, MessageFault, NotSent, Outcome, QueueFault
from control_plane.model.text import readable
from control_plane.outbox.publisher import Message, Publisher

if TYPE_CHECKING:
    from mypy_boto3_sqs import SQSClient

CONNECT_TIMEOUT_SECONDS: Final = 2.0
READ_TIMEOUT_SECONDS: Final = 8.0

# Error codes of SQS in both protocols, query ("AWS.SimpleQueueService.…", shortened here) and JSON. Sources: the SQS
# API reference, *Common errors* and SendMessageBatch; botocore's sqs/2012-11-05 service model.
_QUEUE_FAULTS: Final = frozenset(
    {
        "AccessDenied",
        "AccessDeniedException",
        "ExpiredToken",
        "ExpiredTokenException",
        "InternalError",
        "InternalFailure",
        "InvalidAccessKeyId",
        "InvalidAddress",
        "InvalidClientTokenId",
        "InvalidSecurity",
        "InvalidSignatureException",
        "IncompleteSignature",
        "MissingAuthenticationToken",
        "NonExistentQueue",
        "NotAuthorized",
        "OptInRequired",
        "OverLimit",
        "QueueDeletedRecently",
        "QueueDoesNotExist",
        "RequestExpired",
        "RequestThrottled",
        "ServiceUnavailable",
        "SignatureDoesNotMatch",
        "Throttling",
        "ThrottlingException",
        "TooManyRequestsException",
        "UnrecognizedClientException",
    }
)
_INTERNAL: Final = frozenset({"InternalError", "InternalFailure"})
_INVALID_CONTENT: Final = frozenset(
    {
        "BatchEntryIdsNotDistinct",
        "BatchRequestTooLong",
        "EmptyBatchRequest",
        "InvalidAttributeValue",
        "InvalidBatchEntryId",
        "InvalidMessageContents",
        "InvalidParameterCombination",
        "InvalidParameterValue",
        "TooManyEntriesInBatchRequest",
        "ValidationError",
    }
)


class SqsPublisher:
    """Sends with ``SendMessageBatch`` and reads the answer entry by entry.

    ``client`` must neither retry nor outwait ``send_timeout_seconds``: a send that may have been accepted is not
    repeated here, but by the row's next attempt.
    """

    send_timeout_seconds = CONNECT_TIMEOUT_SECONDS + READ_TIMEOUT_SECONDS

    def __init__(self, client: "SQSClient", *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._client = client
        self._monotonic = monotonic

    def publish(self, queue_url: str, messages: Sequence[Message], *, start_before: float) -> Sequence[Outcome]:
        """See :class:`control_plane.outbox.publisher.Publisher`."""
        if self._monotonic() >= start_before:
            return [NotSent()] * len(messages)
        try:
            answer = self._client.send_message_batch(
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
        except ClientError as error:
            said = error.response.get("Error", {})
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            outcome = refusal(said.get("Code", ""), said.get("Message") or "no message", status)
        except ParamValidationError as error:  # botocore itself refuses the message: nothing was sent
            outcome = MessageFault(f"{type(error).__name__}: {error}")
        except BotoCoreError as error:
            outcome = QueueFault(f"{type(error).__name__}: {error}")
        else:
            return read_answer(answer, len(messages))
        if isinstance(outcome, MessageFault) and len(messages) > 1:
            return one_by_one(self, queue_url, messages, start_before=start_before)
        return [outcome] * len(messages)


def one_by_one(
    publisher: Publisher, queue_url: str, messages: Sequence[Message], *, start_before: float
) -> list[Outcome]:
    """Each message on its own: one spoiled the whole batch, and the answer did not say which."""
    return [
        outcome
        for message in messages
        for outcome in publisher.publish(queue_url, [message], start_before=start_before)
    ]


def read_answer(answer: Any, count: int) -> list[Outcome]:
    """The outcome of each of ``count`` entries, whose ids are their places, from a SendMessageBatch answer."""
    outcomes: list[Outcome] = [Failed("the queue's answer does not mention this entry")] * count
    for entry in answer.get("Successful", ()):
        # One that Postgres refused would undo the settlement of all the others.
        outcomes[int(entry["Id"])] = Accepted(readable(str(entry["MessageId"])))
    for entry in answer.get("Failed", ()):
        code = _short(entry.get("Code", ""))
        reason = f"{code}: {entry.get('Message') or 'no message'}"
        # A queue that answers is there: an entry it trips over is one to give up on in the end, not to wait for.
        if _is_queue_fault(code) and code not in _INTERNAL:
            outcome: Outcome = QueueFault(reason)
        elif entry.get("SenderFault") or code in _INVALID_CONTENT:  # LocalStack says SenderFault: false of such a code
            outcome = MessageFault(reason)
        else:
            outcome = Failed(reason)
        outcomes[int(entry["Id"])] = outcome
    return outcomes


def refusal(code: str, said: str, status: int) -> Outcome:
    """What a refused request means for each of its messages; ``status`` is HTTP's."""
    code = _short(code)
    reason = f"{code}: {said}"
    if _is_queue_fault(code) or status >= 500 or status in {403, 429}:
        return QueueFault(reason)
    if code in _INVALID_CONTENT:
        return MessageFault(reason)
    return Failed(reason)


def _is_queue_fault(code: str) -> bool:
    return code in _QUEUE_FAULTS or code.startswith(("Kms", "KMS."))


def _short(code: str) -> str:
    """``AWS.SimpleQueueService.NonExistentQueue`` and ``com.amazonaws.sqs#QueueDoesNotExist`` without their prefix."""
    return code.removeprefix("AWS.SimpleQueueService.").rpartition("#")[2]
