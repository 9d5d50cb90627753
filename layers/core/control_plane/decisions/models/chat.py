"""Models behind an OpenAI-compatible endpoint: ``POST {url}/chat/completions``, written and read here.

Source: OpenAI's API reference, *Create chat completion*. Nothing is streamed, no redirect is followed, nothing is sent
twice, an answer has at most 1 MiB, and all is over in time however slowly the bytes come.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final, Literal
from urllib.parse import urlsplit

from control_plane.decisions.models.conversation import (
    Conversation,
    Reply,
    Usage,
    compact,
    failed,
    read_usage,
    refused,
    unknown,
    words_of,
)
from control_plane.decisions.strict_json import parse
from control_plane.model.errors import ContractViolation, ControlPlaneError
from control_plane.model.text import visible
from control_plane.platform.aws import ca_bundle
from control_plane.platform.connections import MAX_ANSWER_BYTES, Answer, Connections

CONNECT_TIMEOUT_SECONDS: Final = 3.0
_MOST_DEPTH: Final = 32


class ChatClient:
    """One model at one endpoint. ``key`` is called before the first request, and again after one that was refused."""

    def __init__(
        self,
        url: str,
        model: str,
        *,
        most_output_tokens: int,
        key: Callable[[], str] | None = None,
        output: Literal["json_schema", "tool"] = "json_schema",
    ) -> None:
        self._url = f"{url.rstrip('/')}/chat/completions"
        self.model = model
        self.most_output_tokens = most_output_tokens
        self._read_key = key
        self._key: str | None = None
        self._output = output

    def __repr__(self) -> str:
        return f"ChatClient({self.model!r})"

    def request_bytes(self, conversation: Conversation) -> int:
        """See ModelClient."""
        return len(self._body(conversation))

    def ask(self, conversation: Conversation, *, seconds_left: float) -> Reply:
        """See ModelClient."""
        ends = time.monotonic() + seconds_left
        try:
            connections = Connections(
                self._url,
                service="the model",
                ca_bundle=ca_bundle(),
                connect_timeout=max(0.001, min(CONNECT_TIMEOUT_SECONDS, seconds_left)),
            )
            request = self._request(self._body(conversation), connections)
            connection = connections.take()
        except ControlPlaneError as error:
            return failed(f"nothing was sent: {visible(str(error))}")
        except (OSError, ValueError) as error:
            return failed(f"nothing was sent: {words_of(error)}", is_providers_fault=isinstance(error, OSError))
        try:
            answer = connections.exchange(connection, request, ends=ends)
        except Exception as error:  # noqa: BLE001 - whatever it was, the request may have been received
            return unknown(f"the provider gave no whole answer: {words_of(error)}")
        reply = self._read(answer)
        key = self._key
        if answer.status in {401, 403}:
            self._key = None  # it may have been rotated
        return reply if key is None else _without_key(reply, key)

    def _body(self, conversation: Conversation) -> bytes:
        turns = [{"role": turn.role, "content": turn.text} for turn in conversation.turns]
        # OpenAI's own models refuse the older name of the limit, others do not know the newer one.
        is_openai = (urlsplit(self._url).hostname or "").endswith(("openai.com", "openai.azure.com"))
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [{"role": "system", "content": conversation.instructions}, *turns],
            "max_completion_tokens" if is_openai else "max_tokens": self.most_output_tokens,
            "stream": False,
            "n": 1,
        }
        shape = {"name": conversation.answer_name, "strict": True}
        if self._output == "json_schema":
            schema = {**shape, "schema": conversation.answer_schema}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        else:
            body["tools"] = [{"type": "function", "function": {**shape, "parameters": conversation.answer_schema}}]
            body["tool_choice"] = {"type": "function", "function": {"name": conversation.answer_name}}
        return compact(body).encode("ascii")

    def _request(self, body: bytes, connections: Connections) -> bytes:
        if self._key is None and self._read_key is not None:
            self._key = self._read_key().strip()
        parts = urlsplit(self._url)
        headers = {
            "Host": parts.netloc.rpartition("@")[2],
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
            "Accept": "application/json",
            "Accept-Encoding": "identity",
            "Connection": "close",
            **connections.added_headers,
            **({"Authorization": f"Bearer {self._key}"} if self._key else {}),
        }
        if not all(value.isascii() and value.isprintable() for value in headers.values()):
            raise ControlPlaneError("the model's secret holds a character that no header can: it must be the bare key")
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        return f"POST {connections.target_prefix}{parts.path} HTTP/1.1\r\n{lines}\r\n".encode("ascii") + body

    def _read(self, answer: Answer) -> Reply:
        try:
            said = parse(answer.body, most_bytes=MAX_ANSWER_BYTES, most_depth=_MOST_DEPTH, check_texts=False)
        except ContractViolation as error:
            if answer.status != 200:
                return refused(answer.status, retry_after=answer.headers.get("retry-after"))
            return unknown(f"the answer {error.reason}")
        if answer.status != 200:
            codes = (_at(said, "error", "code"), _at(said, "error", "type"))
            return refused(answer.status, *codes, retry_after=answer.headers.get("retry-after"))
        usage = read_usage(_at(said, "usage", "prompt_tokens"), _at(said, "usage", "completion_tokens"))
        if usage is None:
            return unknown("the provider does not say what it charges for")
        return self._generated(_at(said, "choices", 0), usage)

    def _generated(self, choice: Any, usage: Usage) -> Reply:
        reason = _at(choice, "finish_reason")
        text = self._text(_at(choice, "message"))
        if reason == "length":
            return Reply("unusable", usage=usage, error=f"is cut off at {self.most_output_tokens} tokens")
        if not isinstance(text, str) or not text:
            said_why = reason if reason in {"content_filter", "stop", "tool_calls"} else "no reason"
            return Reply("unusable", usage=usage, error=f"is missing ({said_why})")
        return Reply("answered", text.encode("utf-8", "surrogatepass"), usage)

    def _text(self, message: Any) -> Any:
        if self._output == "json_schema":
            return _at(message, "content")
        return _at(message, "tool_calls", 0, "function", "arguments")


def _without_key(reply: Reply, key: str) -> Reply:
    """Returns what may be recorded of a reply: no answer and no error that repeats the key, whoever repeats it."""
    if key and key.encode() in reply.text:
        return replace(reply, kind="unusable", text=b"", error="repeats a secret")
    if key and reply.error is not None and key in reply.error:
        return replace(reply, error="the provider's error repeats a secret")
    return reply


def _at(value: Any, *path: str | int) -> Any:
    """Returns what is at a path within JSON; None where there is nothing."""
    for step in path:
        if isinstance(step, str) and isinstance(value, Mapping):
            value = value.get(step)
        elif isinstance(step, int) and isinstance(value, list) and step < len(value):
            value = value[step]
        else:
            return None
    return value
