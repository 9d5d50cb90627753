"""Models on Amazon Bedrock, by its Converse API through boto3.

Source: the Bedrock API reference, *Converse*. boto3 signs, resolves credentials and the region; it does not retry, and
a transport of our own bounds the time and the size of the answer, for botocore's waits anew for every byte.
"""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from threading import local
from typing import Any, Final

import boto3
from botocore.awsrequest import AWSPreparedRequest, AWSResponse
from botocore.config import Config
from botocore.exceptions import ClientError

from control_plane.decisions.models.conversation import (
    Conversation,
    Reply,
    compact,
    failed,
    read_usage,
    refused,
    unknown,
    words_of,
)
from control_plane.decisions.strict_json import parse
from control_plane.model.errors import ContractViolation
from control_plane.model.text import visible
from control_plane.platform.aws import send_bounded
from control_plane.platform.connections import MAX_ANSWER_BYTES

_MOST_DEPTH: Final = 32
_TOP: Final = ("type", "properties", "required")
_FINISHED: Final = frozenset({"tool_use", "end_turn", "stop_sequence"})


@dataclass
class _Exchange:
    """One request as its transport saw it."""

    ends: float
    was_sent: bool = False
    body: bytes = b""
    status: int = 0


@dataclass
class _Exchanges(local):
    """The exchange of each thread: one that was given up on may still be under way."""

    current: _Exchange = field(default_factory=lambda: _Exchange(0.0))


class _Transport:
    """Takes the place of botocore's URLLib3Session."""

    def __init__(self, exchanges: _Exchanges) -> None:
        self._exchanges = exchanges

    def send(self, request: AWSPreparedRequest) -> AWSResponse:
        """Sends a request within the time of its exchange, and keeps the answer's bytes as they came."""
        exchange = self._exchanges.current

        def sending() -> None:
            exchange.was_sent = True

        answer = send_bounded(request, service="bedrock-runtime", ends=exchange.ends, sending=sending)
        exchange.body, exchange.status = answer.content, answer.status_code
        return answer

    def close(self) -> None:
        """Has nothing to close: no connection is kept."""


class ConverseClient:
    """One model of Bedrock's. Nothing is opened or resolved before the first request."""

    def __init__(
        self,
        model: str,
        *,
        most_output_tokens: int,
        endpoint_url: str | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.model = model
        self.most_output_tokens = most_output_tokens
        self._endpoint_url = endpoint_url
        self._monotonic = monotonic
        self._exchanges = _Exchanges()

    def __repr__(self) -> str:
        return f"ConverseClient({self.model!r})"

    def request_bytes(self, conversation: Conversation) -> int:
        """See ModelClient. botocore writes the same JSON, without spaces or with."""
        return len(json.dumps(self._arguments(conversation)))

    def ask(self, conversation: Conversation, *, seconds_left: float) -> Reply:
        """See ModelClient."""
        exchange = self._exchanges.current = _Exchange(self._monotonic() + seconds_left)
        try:
            said = self._client.converse(modelId=self.model, **self._arguments(conversation))
        except ClientError as error:
            said_of = error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
            code = error.response.get("Error", {}).get("Code")
            return refused(exchange.status, code, retry_after=said_of.get("retry-after"))
        except Exception as error:  # noqa: BLE001 - botocore's parsers and credential providers raise anything
            if not exchange.was_sent:
                return failed(f"nothing was sent: {words_of(error)}", is_providers_fault=isinstance(error, OSError))
            return unknown(f"the provider gave no whole answer: {words_of(error)}")
        return self._read(said, exchange.body)

    @cached_property
    def _client(self) -> Any:
        client: Any = boto3.client(
            "bedrock-runtime",
            endpoint_url=self._endpoint_url,
            config=Config(retries={"mode": "standard", "total_max_attempts": 1}),
        )
        client._endpoint.http_session = _Transport(self._exchanges)  # noqa: SLF001 - botocore has no public place
        return client

    def _arguments(self, conversation: Conversation) -> dict[str, Any]:
        name = conversation.answer_name
        # Amazon Nova takes these three at the top of a tool's schema, and no other.
        schema = {key: conversation.answer_schema[key] for key in _TOP if key in conversation.answer_schema}
        tool = {"name": name, "inputSchema": {"json": schema}}
        return {
            "system": [{"text": conversation.instructions}],
            "messages": [{"role": turn.role, "content": [{"text": turn.text}]} for turn in conversation.turns],
            "inferenceConfig": {"maxTokens": self.most_output_tokens},
            "toolConfig": {"tools": [{"toolSpec": tool}], "toolChoice": {"tool": {"name": name}}},
        }

    def _read(self, said: Mapping[str, Any], body: bytes) -> Reply:
        told = said.get("usage") or {}
        usage = read_usage(told.get("inputTokens"), told.get("outputTokens"))
        if usage is None:
            return unknown("the provider does not say what it charges for")
        reason = said.get("stopReason")
        if reason == "max_tokens":
            return Reply("unusable", usage=usage, error=f"is cut off at {self.most_output_tokens} tokens")
        if reason not in _FINISHED:
            return Reply("unusable", usage=usage, error=f"is missing ({visible(str(reason)[:64])})")
        try:
            # botocore has read the same bytes, and understood a key given twice, or NaN, in its own way.
            strictly = parse(body, most_bytes=MAX_ANSWER_BYTES, most_depth=_MOST_DEPTH, check_texts=False)
            text = compact(_tool_input(strictly)).encode("ascii")
        except ContractViolation as error:
            return Reply("unusable", usage=usage, error=error.reason)
        except (LookupError, StopIteration, TypeError):
            return Reply("unusable", usage=usage, error="is missing: the tool was not used")
        return Reply("answered", text, usage)


def _tool_input(said: Any) -> Any:
    blocks = said["output"]["message"]["content"]
    return next(block["toolUse"]["input"] for block in blocks if "toolUse" in block)
