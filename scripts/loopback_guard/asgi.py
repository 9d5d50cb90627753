"""The guard in front of an ASGI application (https://asgi.readthedocs.io/en/stable/specs/www.html)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from loopback_guard import is_cors, refusal

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, MutableMapping

    type Message = MutableMapping[str, Any]
    type Receive = Callable[[], Awaitable[Message]]
    type Send = Callable[[Message], Awaitable[None]]
    type Application = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

_STARTS = {"http.response.start", "websocket.accept", "websocket.http.response.start"}


def guarded(application: Application) -> Application:
    """Returns the application behind the guard: it gets only allowed requests, and sends no CORS headers."""

    async def guard(scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] not in {"http", "websocket"}:
            await application(scope, receive, send)
            return
        reason = refusal(scope["headers"])
        if reason is None:
            await application(scope, receive, _without_cors(send))
        elif scope["type"] == "websocket":
            # Before the handshake is accepted, this message answers it with 403.
            await send({"type": "websocket.close", "code": 1008, "reason": ""})
        else:
            body = reason.encode()
            headers = [(b"content-type", b"text/plain"), (b"content-length", str(len(body)).encode())]
            await send({"type": "http.response.start", "status": 403, "headers": headers})
            await send({"type": "http.response.body", "body": body})

    return guard


def _without_cors(send: Send) -> Send:
    async def send_without_cors(message: Message) -> None:
        if message["type"] in _STARTS:
            headers = [(name, value) for name, value in message.get("headers", []) if not is_cors(name)]
            message = {**message, "headers": headers}
        await send(message)

    return send_without_cors
