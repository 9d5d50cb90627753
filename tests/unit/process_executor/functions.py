"""Starts and invokes function processes for tests."""

import json
from pathlib import Path
from typing import Any, Protocol

import psutil

from process_executor.environment import ExecutionEnvironment, Outcome

ARN = "arn:aws:lambda:eu-west-1:000000000000:function:shop"
LAMBDA_SETS = {
    "AWS_REGION": "eu-west-1",
    "AWS_LAMBDA_FUNCTION_NAME": "shop",
    "AWS_LAMBDA_FUNCTION_VERSION": "7",
    "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "256",
    "AWS_LAMBDA_LOG_GROUP_NAME": "/aws/lambda/shop",
    "AWS_LAMBDA_LOG_STREAM_NAME": "2026/01/01/[7]abc",
}


class Start(Protocol):
    def __call__(
        self,
        code: str,
        *,
        layers: tuple[Path, ...] = (),
        environment: dict[str, str] | None = None,
        timeout_s: float = 20,
        init_timeout_s: float = 20,
        handler: str = "app.handler",
    ) -> ExecutionEnvironment: ...


def invoke(environment: ExecutionEnvironment, event: Any = None, request_id: str = "req-1") -> Outcome:
    return environment.invoke(request_id, json.dumps(event).encode(), function_arn=ARN, trace_id="Root=1-2-3")


def answer(outcome: Outcome) -> Any:
    assert not outcome.is_error, outcome
    return json.loads(outcome.payload)


def error(outcome: Outcome) -> dict[str, Any]:
    assert outcome.is_error, outcome
    found = json.loads(outcome.payload)
    assert isinstance(found, dict)
    return found


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
