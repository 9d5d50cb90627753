"""The answers of SQS's JSON protocol. Source: the SQS API reference, and botocore's service model sqs/2012-11-05."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from http.client import responses
from struct import pack
from typing import Any, Final

MAX_ENTRIES: Final = 10
_JSON: Final = "application/x-amz-json-1.0"


def http(status: int, body: bytes = b"", *, headers: str = "") -> bytes:
    """Returns a whole HTTP answer; ``headers`` are further header lines, each with its line end."""
    start = f"HTTP/1.1 {status} {responses[status]}\r\nContent-Type: {_JSON}\r\n"
    return f"{start}{headers}Content-Length: {len(body)}\r\n\r\n".encode() + body


def error(status: int, kind: str, message: str, *, query_code: str, fault: str = "Sender") -> bytes:
    """Returns an error in SQS's format: the type in the body, the code of SQS's older query protocol in a header."""
    body = json.dumps({"__type": kind, "message": message}).encode()
    return http(status, body, headers=f"x-amzn-query-error: {query_code};{fault}\r\n")


def sent(accepted: Iterable[tuple[Mapping[str, Any], str]], failed: Iterable[Mapping[str, Any]]) -> bytes:
    """Returns the answer to SendMessageBatch, from accepted entries with their message ids, and from error entries."""
    successful = []
    for entry, message_id in accepted:
        said = {
            "Id": entry["Id"],
            "MessageId": message_id,
            "MD5OfMessageBody": hashlib.md5(entry["MessageBody"].encode(), usedforsecurity=False).hexdigest(),
        }
        if attributes := entry.get("MessageAttributes"):
            said["MD5OfMessageAttributes"] = md5_of_attributes(attributes)
        successful.append(said)
    return http(200, json.dumps({"Successful": successful, "Failed": list(failed)}).encode())


def md5_of_attributes(attributes: Mapping[str, Mapping[str, str]]) -> str:
    """Returns the digest that SQS gives for attributes with string values.

    Source: Amazon SQS Developer Guide, *Calculating the MD5 message digest for message attributes*.
    """
    parts: list[bytes] = []
    for name in sorted(attributes):
        attribute = attributes[name]
        for text in (name, attribute["DataType"]):
            encoded = text.encode()
            parts += (pack(">I", len(encoded)), encoded)
        value = attribute["StringValue"].encode()
        parts += (b"\x01", pack(">I", len(value)), value)
    return hashlib.md5(b"".join(parts), usedforsecurity=False).hexdigest()


THROTTLED: Final = error(
    400, "com.amazonaws.sqs#RequestThrottled", "Request is throttled.", query_code="RequestThrottled"
)
INTERNAL_ERROR: Final = error(
    500,
    "com.amazon.coral.service#InternalFailure",
    "We encountered an internal error. Please try again.",
    query_code="InternalFailure",
    fault="Receiver",
)
DENIED: Final = error(
    403,
    "com.amazon.coral.service#AccessDeniedException",
    "Access to the resource is denied.",
    query_code="AccessDenied",
)
UNKNOWN_OPERATION: Final = error(
    400,
    "com.amazon.coral.service#UnknownOperationException",
    "This endpoint knows SendMessageBatch alone.",
    query_code="InvalidAction",
)
UNREADABLE: Final = error(
    400,
    "com.amazon.coral.service#SerializationException",
    "The body is no SendMessageBatch.",
    query_code="MalformedInput",
)
EMPTY_BATCH: Final = error(
    400,
    "com.amazonaws.sqs#EmptyBatchRequest",
    "There should be at least one SendMessageBatchRequestEntry in the request.",
    query_code="AWS.SimpleQueueService.EmptyBatchRequest",
)
TOO_MANY_ENTRIES: Final = error(
    400,
    "com.amazonaws.sqs#TooManyEntriesInBatchRequest",
    "Maximum number of entries per request are 10.",
    query_code="AWS.SimpleQueueService.TooManyEntriesInBatchRequest",
)
IDS_NOT_DISTINCT: Final = error(
    400,
    "com.amazonaws.sqs#BatchEntryIdsNotDistinct",
    "Two or more batch entries in the request have the same Id.",
    query_code="AWS.SimpleQueueService.BatchEntryIdsNotDistinct",
)
GARBAGE: Final = http(200, b"<html>Service temporarily busy</html>")
