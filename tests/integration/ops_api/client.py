"""Clients of the API's functions, which ask as API Gateway does."""

import json
import os
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from tests.conftest import PASSWORD
from tests.integration.functions.invoked import Function

TOKEN = "the-token-of-these-tests-is-long-enough"
VARIABLES = ("DATABASE_URL", "DATABASE_SECRET_ARN", "API_TOKEN", "API_TOKEN_SECRET_ARN", "CLOUD_ENDPOINT_URL")
RUNS = {
    "INGESTION_FUNCTION": "ingestion",
    "RELAY_FUNCTION": "relay",
    "OPERATIONS_FUNCTION": "operations",
    "RETRIAL_FUNCTION": "retrial",
}
"""The names of the functions that the API's functions start or ask."""
LIMITS = ("PATIENCE_SECONDS", "HEALTH_PATIENCE_SECONDS", "SECRET_PATIENCE_SECONDS")
"""What the functions call the seconds for which they wait for others."""


class Client:
    """Calls the function as API Gateway's REST proxy does, and checks what every answer must be."""

    def __init__(self, function: str = "ops_api") -> None:
        self.function = Function(function)
        self._limits = {name: limit for name, limit in vars(self.function.module).items() if name in LIMITS}
        self.wait_long()
        self.keeps_health = False
        """Whether /health may give an answer again; the connection is kept anyway."""

    def wait_long(self) -> None:
        """Makes the function wait a minute for others, because a machine that is busy answers late."""
        self._limit(dict.fromkeys(self._limits, 60))

    def wait_as_deployed(self, **limits: int) -> None:
        """Makes the function wait for others only as long as it does when deployed, but for the given limits."""
        self._limit(self._limits | limits)

    def _limit(self, limits: Mapping[str, int]) -> None:
        vars(self.function.module).update(limits)
        self.function.forget_connections()

    def get(self, path: str, *, headers: Mapping[str, str] | None = None, method: str = "GET") -> "Answer":
        multiple = {name: [value] for name, value in (headers or {}).items()}
        return self.send({"httpMethod": method, "path": path, "headers": headers, "multiValueHeaders": multiple})

    def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        token: str | None = TOKEN,
        key: str | None = None,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> "Answer":
        """Sends a request with a token, a new key where it changes something, and a body as JSON."""
        sent = {"User-Agent": "tests/1"}
        if token is not None:
            sent["Authorization"] = f"Bearer {token}"
        if method not in {"GET", "HEAD"}:
            sent["Idempotency-Key"] = key or str(uuid.uuid4())
        if body is not None:
            sent["Content-Type"] = "application/json"
        sent |= headers or {}
        return self.send(
            {
                "httpMethod": method,
                "path": path,
                "headers": sent,
                "queryStringParameters": query,
                "body": body if isinstance(body, str) or body is None else json.dumps(body),
                "requestContext": {"identity": {"sourceIp": "203.0.113.7"}},
            }
        )

    def timeline(self, event_id: object, *, token: str = TOKEN) -> "Answer":
        return self.get(f"/events/{event_id}", headers={"Authorization": f"Bearer {token}"})

    def send(self, event: Mapping[str, Any]) -> "Answer":
        self.function.forget_logs()
        if (
            not self.keeps_health
            and hasattr(self.function.module, "health")
            and self.function.module.health.cache_info().currsize
        ):
            self.function.module.health().expire()
        answer = self.function(event)
        assert answer.keys() == {"statusCode", "headers", "body", "isBase64Encoded"}
        assert answer["isBase64Encoded"] is False
        is_json = answer["headers"]["Content-Type"] in {"application/json", "application/problem+json"}
        assert not is_json or answer["headers"]["Cache-Control"] == "no-store"
        assert answer["headers"]["X-Content-Type-Options"] == "nosniff"
        for secret in (PASSWORD, TOKEN):
            assert secret not in json.dumps(answer) + self.function.output
        body = json.loads(answer["body"] or "null") if is_json else answer["body"]
        return Answer(answer["statusCode"], answer["headers"], body)


def asked_by(api: Client, url: str) -> Function:
    """Returns a RetrialFunction that OpsApiFunction asks in the place of Lambda; it reads the database as its role."""
    before = os.environ.get("DATABASE_URL")
    os.environ["DATABASE_URL"] = url
    try:
        retrial = Function("retrial")
        retrial.module.database()  # Its settings are read now; the connection is opened by the first question.
    finally:
        os.environ.pop("DATABASE_URL")
        if before is not None:
            os.environ["DATABASE_URL"] = before
    vars(api.function.module)["invoker"] = lambda *_, **__: retrial
    return retrial


class Answer:
    def __init__(self, status: int, headers: Mapping[str, str], body: dict[str, Any]) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    @property
    def text(self) -> str:
        return json.dumps([self.body, dict(self.headers)])

    def detail(self, status: int) -> str:
        """Returns the detail of an answer that must be a problem document of this status."""
        assert self.headers["Content-Type"] == "application/problem+json"
        assert self.body.keys() == {"type", "title", "status", "detail", "instance"}
        assert (self.status, self.body["status"], self.body["type"]) == (status, status, "about:blank")
        assert uuid.UUID(self.body["instance"].removeprefix("urn:uuid:"))
        detail: str = self.body["detail"]
        return detail


type Load = Callable[..., Client]
