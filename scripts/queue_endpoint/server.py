"""The endpoint's server. It parses HTTP by hand on asyncio, in one process and one thread."""

import asyncio
import json
import time
from collections.abc import Callable, Mapping
from http.client import HTTPException
from typing import Any, Final, cast
from uuid import UUID

from loopback_guard import refusal_of_head
from queue_endpoint import protocol
from queue_endpoint.faults import Fault
from queue_endpoint.nonsense import NONSENSE, Entries
from queue_endpoint.upstream import Sent, Upstream

_SENDS: Final = b"amazonsqs.sendmessagebatch"
_REFUSALS: Final = {
    "throttled": protocol.THROTTLED,
    "error": protocol.INTERNAL_ERROR,
    "denied": protocol.DENIED,
    "garbage": protocol.GARBAGE,
}


class Queues:
    """The messages accepted, the requests made and the faults set; all connections share them."""

    def __init__(self, *, latency_ms: float = 0, record: bool = True, upstream: Upstream | None = None) -> None:
        self._sound = Fault(latency_ms=latency_ms)
        self._record = record
        self._message_number = 0
        self.upstream = upstream
        self.held: list[tuple[str, int, Callable[[], None]]] = []
        self.clear()

    def clear(self) -> None:
        """Releases what is held, and forgets all faults, messages and requests."""
        self.release(None)
        self.faults: dict[str | None, Fault] = {}
        self.accepted: list[tuple[str, str | None, str]] = []
        self.requests: list[tuple[str, float, int, str, bool]] = []
        self.counts: dict[str, int] = {}

    def release(self, queue: str | None) -> None:
        """Lets the held requests of a queue, or of all, go on."""
        held, self.held = self.held, []
        for name, port, go_on in held:
            if queue in {None, name}:
                go_on()
            else:
                self.held.append((name, port, go_on))

    def fault(self, queue: str) -> Fault:
        """Returns the fault that applies to this request, and counts down how often it still applies."""
        name = queue if queue in self.faults else None
        fault = self.faults.get(name)
        if fault is None:
            return self._sound
        if fault.times is not None:
            fault.times -= 1
            if fault.times <= 0:
                del self.faults[name]
        return fault

    def asked(self, queue: str, entries: int, fault: Fault) -> None:
        """Records a request."""
        if self._record:
            self.requests.append((queue, time.monotonic(), entries, fault.answer, fault is not self._sound))

    def take(self, queue: str, entry: Mapping[str, Any]) -> str:
        """Accepts one entry; returns its message id."""
        self._message_number += 1
        message_id = str(UUID(int=self._message_number))
        self.note(queue, entry, message_id)
        return message_id

    def note(self, queue: str, entry: Mapping[str, Any], message_id: str) -> None:
        """Records an entry that is in its queue."""
        self.counts[queue] = self.counts.get(queue, 0) + 1
        if self._record:
            self.accepted.append((queue, _event_id(entry), message_id))


class Connection(asyncio.Protocol):
    """One client's connection; it handles one request at a time, as HTTP/1.1 clients send them."""

    def __init__(self, queues: Queues) -> None:
        self._queues = queues
        self._received = bytearray()
        self._needed = 0
        self._answering = False
        self._passing_on: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keeps the new connection's transport; asyncio calls this."""
        self._transport = cast("asyncio.Transport", transport)
        self._loop = asyncio.get_running_loop()

    def data_received(self, data: bytes) -> None:
        """Reads what the client has sent; asyncio calls this."""
        self._received += data
        self._read()

    def _read(self) -> None:
        while not self._answering and len(self._received) >= self._needed:
            received = self._received
            end = received.find(b"\r\n\r\n")
            if end < 0:
                return
            said_head = bytes(received[:end])
            head = said_head.lower()
            start = end + 4
            self._needed = start + _content_length(head)
            if len(received) < self._needed:
                return
            body = received[start : self._needed]
            del received[: self._needed]
            self._needed = 0
            if reason := refusal_of_head(said_head):
                self._transport.write(protocol.http(403, json.dumps({"error": reason}).encode()))
                self._transport.close()
                return
            if _SENDS in head:
                self._send_message_batch(said_head, body)
            else:
                self._control(head, body)

    def _send_message_batch(self, head: bytes, body: bytearray) -> None:
        queues = self._queues
        try:
            said = json.loads(body.decode())
            queue = said["QueueUrl"].rpartition("/")[2]
            entries = said["Entries"]
            distinct = len({entry["Id"] for entry in entries})
        except (ValueError, TypeError, KeyError, AttributeError):
            self._transport.write(protocol.UNREADABLE)
            return
        if not 0 < len(entries) <= protocol.MAX_ENTRIES:
            self._transport.write(protocol.TOO_MANY_ENTRIES if entries else protocol.EMPTY_BATCH)
            return
        if distinct != len(entries):
            self._transport.write(protocol.IDS_NOT_DISTINCT)
            return
        fault = queues.fault(queue).of_batch(map(_event_id, entries))
        queues.asked(queue, len(entries), fault)
        if queues.upstream is not None:
            self._answering = True
            self._passing_on = self._loop.create_task(self._pass_on(queues.upstream, head, said, fault))
            return
        answer = self._take(queue, entries, fault) if fault.accepts == "before" else b""

        def answer_now() -> None:
            late = self._take(queue, entries, fault) if fault.accepts == "after" else b""
            self._answer(answer or late, fault, entries)

        def answer_later() -> None:
            self._answering = False
            if not self._transport.is_closing():
                answer_now()
                self._read()

        if fault.hold:
            self._answering = True
            self._hold(queue, answer_later)
        elif fault.latency_ms:
            self._answering = True
            self._loop.call_later(fault.latency_ms / 1000, answer_later)
        else:
            answer_now()

    def _hold(self, queue: str, go_on: Callable[[], None]) -> None:
        self._queues.held.append((queue, self._transport.get_extra_info("peername")[1], go_on))

    async def _pass_on(self, upstream: Upstream, head: bytes, said: Mapping[str, Any], fault: Fault) -> None:
        """Answers a batch of an endpoint with an upstream, whose queues accept the entries."""
        queue = said["QueueUrl"].rpartition("/")[2]
        answer = b""
        try:
            if fault.accepts == "before":
                answer = await self._send_on(upstream, head, said, queue, fault)
            if fault.hold:
                released = self._loop.create_future()
                self._hold(queue, lambda: released.set_result(None))
                await released
            elif fault.latency_ms:
                await asyncio.sleep(fault.latency_ms / 1000)
            if fault.accepts == "after" and not self._transport.is_closing():
                answer = await self._send_on(upstream, head, said, queue, fault)
        except (OSError, ValueError, HTTPException):
            # The upstream is unreachable or its answer makes no sense; the client sees a closed connection.
            self._transport.close()
        self._answering = False
        if not self._transport.is_closing():
            self._answer(answer, fault, said["Entries"])
            self._read()

    async def _send_on(
        self, upstream: Upstream, head: bytes, said: Mapping[str, Any], queue: str, fault: Fault
    ) -> bytes:
        accepted, failed = _sort(said["Entries"], fault)
        sent: Sent = await self._loop.run_in_executor(None, upstream.send, head, said, accepted, failed)
        for entry in accepted:
            if entry["Id"] in sent.message_ids:
                self._queues.note(queue, entry, sent.message_ids[entry["Id"]])
        return sent.answer

    def _take(self, queue: str, entries: list[dict[str, Any]], fault: Fault) -> bytes:
        accepted, failed = _sort(entries, fault)
        return protocol.sent([(entry, self._queues.take(queue, entry)) for entry in accepted], failed)

    def _answer(self, answer: bytes, fault: Fault, entries: Entries) -> None:
        if refusal := _REFUSALS.get(fault.answer):
            self._transport.write(refusal)
            return
        if make := NONSENSE.get(fault.answer):
            self._transport.write(make(entries))
            return
        if fault.answer == "ok":
            self._transport.write(answer)
            return
        if fault.answer == "half":
            body = answer.find(b"\r\n\r\n")
            self._transport.write(answer[: (body + len(answer)) // 2])
        self._transport.close()

    def _control(self, head: bytes, body: bytearray) -> None:
        method, path = head.split(b" ", 2)[:2]
        queues = self._queues
        result: Any = None
        try:
            match method, path:
                case b"put", b"/faults":
                    fault = Fault.parse(json.loads(body))
                    queues.faults[fault.queue] = fault
                case b"delete", b"/faults":
                    queues.faults.clear()
                case b"post", b"/release":
                    queues.release(json.loads(body)["queue"])
                case b"post", b"/reset":
                    queues.clear()
                case b"get", b"/accepted":
                    result = queues.accepted
                case b"get", b"/requests":
                    result = queues.requests
                case b"get", b"/state":
                    result = {"held": [port for _, port, _ in queues.held], "counts": queues.counts}
                case _:
                    self._transport.write(protocol.UNKNOWN_OPERATION if method == b"post" else protocol.http(404))
                    return
        except (ValueError, TypeError, KeyError) as error:
            self._transport.write(protocol.http(400, json.dumps({"error": str(error)}).encode()))
            return
        self._transport.write(protocol.http(200, json.dumps(result).encode()))


def _sort(entries: list[dict[str, Any]], fault: Fault) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Returns the entries to accept, and the error entries for those that fail."""
    accepted = []
    failed = []
    for entry in entries:
        if fault.fails(_event_id(entry)):
            failed.append(
                {
                    "Id": entry["Id"],
                    "Code": fault.fail_code,
                    "Message": "as it was told",
                    "SenderFault": fault.sender_fault,
                }
            )
        else:
            accepted.append(entry)
    return accepted, failed


def _content_length(head: bytes) -> int:
    start = head.find(b"\ncontent-length:")
    return 0 if start < 0 else int(head[start + 16 :].split(b"\r\n", 1)[0])


def _event_id(entry: Mapping[str, Any]) -> str | None:
    attribute = entry.get("MessageAttributes", {}).get("event_id")
    return attribute["StringValue"] if attribute else None
