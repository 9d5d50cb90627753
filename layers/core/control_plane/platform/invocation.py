"""Invokes another Lambda function and waits for its answer."""

import json
from collections.abc import Callable, Mapping
from typing import Any, Final

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from control_plane.model.errors import ControlPlaneError
from control_plane.model.text import readable

ANSWER_SECONDS: Final = 35.0
"""How long an answer is waited for: less than the engine's lease lasts then. No transaction is open meanwhile."""


class InvocationFailed(ControlPlaneError):
    """Raised when the invoked function itself failed, or gave no answer; says with what. Retryable."""


class FunctionBusy(InvocationFailed):
    """Raised when as many runs of the function are at work as may be."""


def invoker(
    function_name: str, *, endpoint_url: str | None, answer_seconds: float = ANSWER_SECONDS
) -> Callable[[Mapping[str, Any]], Mapping[str, Any]]:
    """Returns a function that invokes with an event and returns the answer. It raises InvocationFailed."""
    client = boto3.client(
        "lambda",
        endpoint_url=endpoint_url,
        # Invoked once more, the function might run twice at once; whoever asks decides whether to ask again.
        config=Config(connect_timeout=2, read_timeout=answer_seconds, retries={"total_max_attempts": 1}),
    )

    def ask(event: Mapping[str, Any]) -> Mapping[str, Any]:
        try:
            response = client.invoke(FunctionName=function_name, Payload=json.dumps(event).encode())
            text = response["Payload"].read()
        except ClientError as error:
            is_busy = error.response.get("Error", {}).get("Code") == "TooManyRequestsException"
            kind = FunctionBusy if is_busy else InvocationFailed
            raise kind(f"{function_name} cannot be invoked: {readable(str(error))}") from error
        except BotoCoreError as error:
            raise InvocationFailed(f"{function_name} gave no answer: {readable(str(error))}") from error
        try:
            answer = json.loads(text)
        except ValueError:
            answer = None
        if response.get("FunctionError") or not isinstance(answer, dict):
            told = answer.get("errorMessage") if isinstance(answer, dict) else None
            raise InvocationFailed(f"{function_name} failed: {readable(str(told or text[:200]))}")
        return answer

    return ask
