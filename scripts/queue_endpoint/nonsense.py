"""Answers to SendMessageBatch that make no sense, such as a broken proxy, a bug or a foreign server may give."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final
from uuid import UUID

from queue_endpoint import protocol

type Entries = Sequence[Mapping[str, Any]]

_MESSAGE_ID: Final = str(UUID(int=0))


def _said(successful: object = (), failed: object = ()) -> bytes:
    return protocol.http(200, json.dumps({"Successful": successful, "Failed": failed}).encode())


def _accepted(ids: Iterable[object]) -> list[dict[str, object]]:
    return [{"Id": entry_id, "MessageId": _MESSAGE_ID, "MD5OfMessageBody": ""} for entry_id in ids]


def _failed(entry_id: str) -> dict[str, object]:
    return {"Id": entry_id, "Code": "InternalError", "Message": "as it was told", "SenderFault": False}


def _ids(entries: Entries) -> list[str]:
    return [entry["Id"] for entry in entries]


NONSENSE: Final[Mapping[str, Callable[[Entries], bytes]]] = {
    "empty object": lambda _: protocol.http(200, b"{}"),
    "no body": lambda _: protocol.http(200),
    "list": lambda entries: protocol.http(200, json.dumps(_accepted(_ids(entries))).encode()),
    "ids of nobody": lambda entries: _said(_accepted([f"-{place}" for place in range(1, len(entries) + 1)])),
    "ids as numbers": lambda entries: _said(_accepted(range(len(entries)))),
    "named twice": lambda entries: _said(_accepted(_ids(entries)), [_failed(one) for one in _ids(entries)]),
    "no message id": lambda entries: _said([{"Id": entry_id} for entry_id in _ids(entries)]),
    "failed without a code": lambda entries: _said((), [{"Id": entry_id} for entry_id in _ids(entries)]),
    "unknown error": lambda _: protocol.http(418, b'{"__type": "ITeapot", "message": "short and stout"}'),
    "no HTTP": lambda _: b"220 mail.example.com ESMTP ready\r\n\r\n",
}
"""For each kind of nonsense, a function from the sent entries to the answer. No answer gives an entry a verdict."""
