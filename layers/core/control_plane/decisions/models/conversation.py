"""What a model is asked and what came back, whichever provider it is asked at."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, Protocol

from control_plane.model.text import visible
from control_plane.platform.connections import UnreadableError

MOST_ANSWER_BYTES: Final = 65_536
"""A longer answer of an agent is refused."""
MOST_ANSWER_DEPTH: Final = 16
MOST_TOKENS: Final = 2**31 - 1
"""The largest count that Postgres' integer holds; a provider that says more is taken to have said this."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of a conversation."""

    role: Literal["user", "assistant"]
    text: str


@dataclass(frozen=True, slots=True)
class Conversation:
    """Everything that a model is told, and the shape that its answer is to have."""

    instructions: str
    turns: tuple[Turn, ...]
    answer_name: str
    """Names the answer's type to the model: letters, digits and underscores."""
    answer_schema: Mapping[str, Any]
    """JSON Schema of the answer."""


@dataclass(frozen=True, slots=True)
class Usage:
    """The tokens that a provider says it charges for."""

    input_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True)
class Reply:
    """What came of asking once.

    ``answered``: there is a text and a usage. ``unusable``: the model spoke, and what it is charged for is known, but
    there is no text in it that could be an answer. ``failed``: certainly nothing was generated, so nothing is charged.
    ``unknown``: it was sent, and nobody knows what it costs.
    """

    kind: Literal["answered", "unusable", "failed", "unknown"]
    text: bytes = b""
    usage: Usage | None = None
    error: str | None = None
    is_providers_fault: bool = False
    """Whether the provider's breaker counts it: out of reach, overloaded, throttling or too slow."""
    retry_after_seconds: int | None = None
    """How long the provider wants not to be asked again, where it says so."""


class ModelClient(Protocol):
    """A model at a provider. It asks once: whether to ask again is decided where the budget is known."""

    @property
    def model(self) -> str:
        """The provider's name of the model; its switch is ``model:`` and this."""

    @property
    def most_output_tokens(self) -> int:
        """The limit that each request gives the model."""

    def request_bytes(self, conversation: Conversation) -> int:
        """Returns the size of the body that would be sent: no fewer than the tokens that are in it."""

    def ask(self, conversation: Conversation, *, seconds_left: float) -> Reply:
        """Returns the reply within the given time, whatever the provider does. Raises nothing."""


def compact(value: Any) -> str:
    """Returns JSON without spaces, in ASCII. Raises ValueError for NaN and Infinity."""
    return json.dumps(value, allow_nan=False, separators=(",", ":"))


def read_usage(input_tokens: object, output_tokens: object) -> Usage | None:
    """Returns a provider's usage; None where it says none that can be one."""
    if not _is_count(input_tokens) or not _is_count(output_tokens):
        return None
    return Usage(min(int(str(input_tokens)), MOST_TOKENS), min(int(str(output_tokens)), MOST_TOKENS))


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0 and value.bit_length() <= 64


def failed(error: str, *, is_providers_fault: bool = False) -> Reply:
    """Returns the reply of a request that certainly generated nothing."""
    return Reply("failed", error=error, is_providers_fault=is_providers_fault)


def unknown(error: str) -> Reply:
    """Returns the reply of a request that was sent and has no verdict."""
    return Reply("unknown", error=error, is_providers_fault=True)


NOTHING_GENERATED: Final = frozenset({400, 401, 403, 404, 405, 413, 415, 422, 429, 503})
"""The HTTP statuses that a provider refuses a request with. After any other error a model may have been running."""
_OVERLOADED: Final = frozenset({429, 503})
_CODES: Final = frozenset(
    {
        # Amazon Bedrock's, and those of AWS's signatures
        *("AccessDeniedException", "ExpiredTokenException", "IncompleteSignatureException", "InternalServerException"),
        *("InvalidSignatureException", "MissingAuthenticationTokenException", "ModelErrorException"),
        *("ModelNotReadyException", "ModelTimeoutException", "ResourceNotFoundException"),
        *("ServiceQuotaExceededException", "ServiceUnavailableException", "ThrottlingException"),
        *("UnrecognizedClientException", "ValidationException"),
        # OpenAI's, and those of endpoints like it
        *("account_deactivated", "api_error", "authentication_error", "billing_hard_limit_reached"),
        *("context_length_exceeded", "insufficient_quota", "internal_error", "invalid_api_key", "invalid_prompt"),
        *("invalid_request_error", "invalid_type", "invalid_value", "json_validate_failed"),
        *("missing_required_parameter", "model_decommissioned", "model_not_found", "not_found", "not_found_error"),
        *("overloaded_error", "permission_error", "rate_limit_error", "rate_limit_exceeded", "request_too_large"),
        *("server_error", "server_overloaded", "service_unavailable", "unsupported_parameter", "unsupported_value"),
        *("DeploymentNotFound", "OperationNotSupported"),
    }
)
"""Error codes that providers document. Any other text could be a key, or part of the prompt."""


def refused(status: int, *codes: object, retry_after: str | None = None) -> Reply:
    """Returns the reply of an HTTP error. Of its body only a code that is known is kept, the first of those given.

    ``retry_after`` is the header of that name; only whole seconds count.
    """
    known = next((f" {code}" for code in codes if isinstance(code, str) and code in _CODES), "")
    text = f"the provider answered HTTP {status}{known}"
    if status in NOTHING_GENERATED or 300 <= status < 400:
        is_overloaded = status in _OVERLOADED
        told = retry_after or ""
        pause = int(told) if is_overloaded and re.fullmatch(r"[0-9]{1,6}", told, re.ASCII) else None
        return replace(failed(text, is_providers_fault=is_overloaded), retry_after_seconds=pause)
    return unknown(text)


def words_of(error: Exception) -> str:
    """Returns what an error of a connection says: its kind, and its words unless they quote what came or was sent."""
    words = visible(str(error).partition(". ")[0])
    is_ours = isinstance(error, OSError | UnreadableError) and "b'" not in words and 'b"' not in words
    return words if is_ours and words else type(error).__name__
