"""Reads SQS's answers to SendMessageBatch entry by entry; an entry counts only if what it says makes sense.

Both publishers read their answers here. :class:`control_plane.outbox.publisher.Publisher` says what an outcome means.
"""

import json
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Final

from control_plane.model.lifecycle import Accepted, Failed, MessageFault, NoVerdict, Outcome, QueueFault
from control_plane.outbox.publisher import Message, Publisher
from control_plane.platform.connections import Answer

_MAX_MESSAGE_ID_CHARACTERS: Final = 100
"""Source: the SQS API reference, *SendMessage*: "the maximum length of a message ID is 100 characters"."""
_QUOTED_CHARACTERS: Final = 200
_CODE: Final = re.compile("[A-Za-z][A-Za-z0-9.]{0,99}")

# Error codes of SQS in both protocols, query ("AWS.SimpleQueueService.…", shortened here) and JSON. Sources: the SQS
# API reference, *Common errors* and SendMessageBatch; botocore's sqs/2012-11-05 service model.
_QUEUE_FAULTS: Final = frozenset(
    {
        "AccessDenied",
        "AccessDeniedException",
        "ExpiredToken",
        "ExpiredTokenException",
        "IncompleteSignature",
        "IncompleteSignatureException",
        "InvalidAccessKeyId",
        "InvalidAction",
        "InvalidAddress",
        "InvalidClientTokenId",
        "InvalidSecurity",
        "InvalidSignatureException",
        # Every request has the same shape. So if a parameter is missing, the queue is of another kind, such as FIFO.
        "MissingParameter",
        "MissingAuthenticationToken",
        "MissingAuthenticationTokenException",
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
        "UnknownOperationException",
        "UnrecognizedClientException",
        "UnsupportedOperation",
    }
)
_CONTENT_FAULTS: Final = frozenset({"BatchRequestTooLong", "InvalidMessageContents", "InvalidParameterValue"})
_BATCH_FAULTS: Final = frozenset(
    {"BatchEntryIdsNotDistinct", "EmptyBatchRequest", "InvalidBatchEntryId", "TooManyEntriesInBatchRequest"}
)
"""Errors that can only concern a whole batch, never a message that is sent alone."""
_ACCESS_STATUSES: Final = frozenset({401, 403, 407, 429})


def read_answer(
    answer: Answer, publisher: Publisher, queue_url: str, messages: Sequence[Message], *, start_before: float
) -> Sequence[Outcome]:
    """Returns one outcome per message. Each message was sent as the entry whose id is its position, from "0" on.

    If the batch was refused for its content, ``publisher`` sends its messages one by one, because the answer did not
    say which message caused the refusal.
    """
    if answer.status == 200:
        return _verdicts(answer.body, len(messages))
    refusal = _refusal(answer, is_batch=len(messages) > 1)
    if isinstance(refusal, MessageFault) and len(messages) > 1:
        return one_by_one(publisher, queue_url, messages, start_before=start_before)
    return [refusal] * len(messages)


def one_by_one(
    publisher: Publisher, queue_url: str, messages: Sequence[Message], *, start_before: float
) -> Sequence[Outcome]:
    """Sends each message by itself; returns their outcomes in order."""
    return [
        outcome
        for message in messages
        for outcome in publisher.publish(queue_url, [message], start_before=start_before)
    ]


def _verdicts(body: bytes, count: int) -> list[Outcome]:
    """Returns what an answer of status 200 says of each of ``count`` entries.

    An entry that is named exactly once, by the id that it was sent under, is believed whatever else the answer holds.
    An unknown id says nothing about the known entries. An entry that is missing, named twice, or described as SQS never
    would is NoVerdict.
    """
    said = _parsed(body)
    if not isinstance(said, dict):
        return [NoVerdict(f"the queue's answer cannot be read: {_quoted(body)}")] * count
    places = _places(count)
    outcomes: list[Outcome | None] = [None] * count
    for name, read in _READERS:
        entries = said.get(name)
        if not isinstance(entries, list):
            continue
        for entry in entries:
            entry_id = entry.get("Id") if isinstance(entry, dict) else None
            place = places.get(entry_id) if isinstance(entry_id, str) else None
            if place is None:
                continue
            outcomes[place] = read(entry) if outcomes[place] is None else _DOUBLED
    if None not in outcomes:
        return outcomes  # type: ignore[return-value]  # the line above excludes None
    missing = NoVerdict(f"the queue's answer does not name this entry: {_quoted(body)}")
    return [outcome or missing for outcome in outcomes]


_DOUBLED: Final = NoVerdict("the queue's answer names this entry more than once")


@lru_cache(maxsize=16)
def _places(count: int) -> Mapping[str, int]:
    return {str(place): place for place in range(count)}


def _success(entry: Mapping[str, Any]) -> Outcome:
    message_id = entry.get("MessageId")
    if (
        isinstance(message_id, str)
        and 0 < len(message_id) <= _MAX_MESSAGE_ID_CHARACTERS
        and message_id.isprintable()
        and not message_id.isspace()
    ):
        return Accepted(message_id)
    return NoVerdict(f"the queue accepted this entry with an invalid message id: {str(message_id)[:100]!r}")


def _failure(entry: Mapping[str, Any]) -> Outcome:
    code, is_senders = _code(entry.get("Code")), entry.get("SenderFault")
    if code is None or not isinstance(is_senders, bool | None):
        return NoVerdict(f"the queue says that this entry failed, but not why: {str(entry)[:_QUOTED_CHARACTERS]}")
    reason = _reason(code, entry.get("Message"))
    if _is_queue_fault(code):
        return QueueFault(reason)
    if is_senders or code in _CONTENT_FAULTS:  # LocalStack sends SenderFault: false with such a code.
        return MessageFault(reason)
    # This includes internal errors: the queue answers, so an entry on which it always fails has to be given up
    # eventually.
    return Failed(reason)


_READERS: Final = (("Successful", _success), ("Failed", _failure))


def _refusal(answer: Answer, *, is_batch: bool) -> Outcome:
    """Returns what a refused request means for each of its messages; MessageFault if their content was the reason.

    Only an error code that the queue itself gives shows a fault of the queue or of a message. In all other cases (a
    proxy's page, an internal error, an unknown code) the messages were sent and have no verdict, because one of them
    may be the cause.
    """
    said = _parsed(answer.body)
    said = said if isinstance(said, dict) else {}
    # The code of SQS's older protocol, where the answer gives it.
    code = _code(answer.headers.get("x-amzn-query-error", "").partition(";")[0]) or _code(said.get("__type"))
    if not said or code is None:
        return NoVerdict(f"HTTP {answer.status} with an answer that cannot be read: {_quoted(answer.body)}")
    reason = _reason(code, said.get("message") or said.get("Message"))
    if _is_queue_fault(code):
        return QueueFault(reason)
    if answer.status in {400, 413} and (code in _CONTENT_FAULTS or (is_batch and code in _BATCH_FAULTS)):
        return MessageFault(reason)
    if answer.status in _ACCESS_STATUSES:
        return QueueFault(reason)
    return NoVerdict(f"HTTP {answer.status}, {reason}")


def _parsed(body: bytes) -> Any:
    """Returns the JSON value, or None if the body is no JSON."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def _code(said: object) -> str | None:
    """Returns an error's code without its prefix, ``AWS.SimpleQueueService.`` or ``com.amazonaws.sqs#``.

    Returns None for a text that is no code: codes of SQS and AWS are ASCII words, which may have dots.
    """
    code = said.removeprefix("AWS.SimpleQueueService.").rpartition("#")[2] if isinstance(said, str) else ""
    return code if _CODE.fullmatch(code) else None


def _is_queue_fault(code: str) -> bool:
    return code in _QUEUE_FAULTS or code.startswith(("Kms", "KMS."))


def _reason(code: str, message: object) -> str:
    return f"{code}: {message if isinstance(message, str) and message else 'no message'}"


def _quoted(body: bytes) -> str:
    return repr(body[:_QUOTED_CHARACTERS].decode(errors="replace"))
