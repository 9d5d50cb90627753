"""Invokes another Lambda function and waits for its answer."""

import json
from collections.abc import Callable, Mapping
from typing import Any, Final

import boto3
from botocore.config import Config

from control_plane.model.errors import ControlPlaneError
from control_plane.model.text import readable

ANSWER_SECONDS: Final = 35.0
"""How long an answer is waited for: less than an engine's step may take, and than the 60 s for which Postgres leaves a
session idle within a transaction."""


class InvocationFailed(ControlPlaneError):
    """Raised when the invoked function itself failed; says with what. Retryable."""


def invoker(function_name: str, *, endpoint_url: str | None) -> Callable[[Mapping[str, Any]], Mapping[str, Any]]:
    """Returns a function that invokes with an event and returns the answer.

    It raises InvocationFailed, and botocore's errors.
    """
    client = boto3.client(
        "lambda",
        endpoint_url=endpoint_url,
        # Invoked once more, the function might run twice at once; whoever asks decides whether to ask again.
        config=Config(connect_timeout=2, read_timeout=ANSWER_SECONDS, retries={"total_max_attempts": 1}),
    )

    def ask(event: Mapping[str, Any]) -> Mapping[str, Any]:
        response = client.invoke(FunctionName=function_name, Payload=json.dumps(event).encode())
        text = response["Payload"].read()
        try:
            answer = json.loads(text)
        except ValueError:
            answer = None
        if response.get("FunctionError") or not isinstance(answer, dict):
            told = answer.get("errorMessage") if isinstance(answer, dict) else None
            raise InvocationFailed(f"{function_name} failed: {readable(str(told or text[:200]))}")
        return answer

    return ask
