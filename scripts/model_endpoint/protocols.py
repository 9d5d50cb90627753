"""The two protocols: what a request says, and how an answer is written.

Sources: the Bedrock API reference, *Converse*, and botocore's bedrock-runtime/2023-09-30 service model; OpenAI's API
reference, *Create chat completion*.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import unquote

MOST_TOKENS_UNTOLD: Final = 4096
"""The limit of a request that gives none."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A request as either protocol says it."""

    protocol: str
    """converse or chat."""
    model: str
    data: str
    """Every text of the conversation."""
    schema: Mapping[str, Any]
    tool: str | None
    """The name of the tool that is to be used; None where the answer is to be a text."""
    most_tokens: int


@dataclass(frozen=True, slots=True)
class Told:
    """An answer to be written: its JSON text, why it ended, the usage."""

    text: str | None
    reason: str = "done"
    """done, length or filtered."""
    usage: tuple[Any, Any] | None = None


def read(path: str, body: bytes) -> Asked | None:
    """Returns what a request asks; None for a path of neither protocol. Raises ValueError, LookupError, TypeError."""
    if path == "/v1/chat/completions":
        return _read_chat(json.loads(body))
    if path.startswith("/model/") and path.endswith("/converse"):
        return _read_converse(unquote(path.removeprefix("/model/").removesuffix("/converse")), json.loads(body))
    return None


def write(asked: Asked, told: Told) -> bytes:
    """Returns an answer's body."""
    return _write_chat(asked, told) if asked.protocol == "chat" else _write_converse(asked, told)


def write_error(protocol: str, code: str, message: str) -> tuple[bytes, Mapping[str, str]]:
    """Returns an error's body and headers."""
    if protocol == "chat":
        return json.dumps({"error": {"message": message, "type": code, "param": None, "code": code}}).encode(), {}
    return json.dumps({"message": message}).encode(), {"x-amzn-ErrorType": f"{code}:http://internal.amazon.com/"}


def _read_converse(model: str, said: Any) -> Asked:
    config = said.get("toolConfig", {})
    specs = [tool["toolSpec"] for tool in config.get("tools", ())]
    forced = config.get("toolChoice", {}).get("tool", {}).get("name")
    spec = next((one for one in specs if one["name"] == forced), None)
    texts = [block["text"] for message in said["messages"] for block in message["content"] if "text" in block]
    return Asked(
        "converse",
        model,
        "\n".join(texts),
        spec["inputSchema"]["json"] if spec else {},
        forced,
        said.get("inferenceConfig", {}).get("maxTokens", MOST_TOKENS_UNTOLD),
    )


def _read_chat(said: Any) -> Asked:
    shape = said.get("response_format", {}).get("json_schema", {})
    choice = said.get("tool_choice")
    forced = choice["function"]["name"] if isinstance(choice, dict) else None
    functions = [tool["function"] for tool in said.get("tools", ())]
    schema = next((one["parameters"] for one in functions if one["name"] == forced), shape.get("schema", {}))
    return Asked(
        "chat",
        said["model"],
        "\n".join(str(message["content"]) for message in said["messages"] if message["role"] != "system"),
        schema,
        forced,
        said.get("max_tokens") or said.get("max_completion_tokens") or MOST_TOKENS_UNTOLD,
    )


def _write_converse(asked: Asked, told: Told) -> bytes:
    content = ""
    if told.text is not None and asked.tool is not None and told.text.lstrip()[:1] in {"{", "["}:
        # Written as it is: it may hold a key twice, or NaN.
        name = json.dumps(asked.tool)
        content = f'{{"toolUse": {{"toolUseId": "tooluse_1", "name": {name}, "input": {told.text}}}}}'
    elif told.text is not None:
        content = json.dumps({"text": told.text})
    reasons = {"done": "tool_use" if asked.tool else "end_turn", "length": "max_tokens", "filtered": "content_filtered"}
    usage = ""
    if told.usage is not None:
        read, written = told.usage
        total = read + written if isinstance(read, int) and isinstance(written, int) else None
        usage = f', "usage": {json.dumps({"inputTokens": read, "outputTokens": written, "totalTokens": total})}'
    return (
        f'{{"output": {{"message": {{"role": "assistant", "content": [{content}]}}}}, '
        f'"stopReason": "{reasons[told.reason]}", "metrics": {{"latencyMs": 1}}{usage}}}'
    ).encode()


def _write_chat(asked: Asked, told: Told) -> bytes:
    message: dict[str, Any] = {"role": "assistant", "content": None, "refusal": None}
    if told.text is not None and asked.tool is not None:
        function = {"name": asked.tool, "arguments": told.text}
        message["tool_calls"] = [{"id": "call_1", "type": "function", "function": function}]
    else:
        message["content"] = told.text
    reasons = {"done": "tool_calls" if asked.tool else "stop", "length": "length", "filtered": "content_filter"}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": reasons[told.reason]}
    body: dict[str, Any] = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": asked.model,
        "choices": [choice],
    }
    if told.usage is not None:
        read, written = told.usage
        total = read + written if isinstance(read, int) and isinstance(written, int) else 0
        body["usage"] = {"prompt_tokens": read, "completion_tokens": written, "total_tokens": total}
    return json.dumps(body).encode()
