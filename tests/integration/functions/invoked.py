"""Runs functions as Lambda does: from their files, with settings from the environment, with Lambda's events."""

import importlib.util
import io
import json
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from psycopg import Connection, sql
from tests.checkout import ROOT
from tests.conftest import PASSWORD

from control_plane.ingestion.store import Look
from control_plane.model.contract import Event, new_event
from control_plane.model.errors import ControlPlaneError
from domains.finance.events import MarketTick

FUNCTIONS = ROOT / "functions"


NAMES = ["ingestion", "relay", "signal_lab", "migration", "maintenance"]


NOWHERE = f"postgresql://acp_test:{PASSWORD}@127.0.0.1:1/database"
"""A database URL for functions that refuse their settings before they connect."""
NOON = datetime(2026, 1, 5, 12, tzinfo=UTC)


@dataclass
class FakeContext:
    """The context that Lambda gives a handler.

    Source: https://docs.aws.amazon.com/lambda/latest/dg/python-context.html
    """

    function_name: str = "function"
    function_version: str = "$LATEST"
    invoked_function_arn: str = "arn:aws:lambda:us-east-1:123456789012:function:function"
    memory_limit_in_mb: str = "512"
    aws_request_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    log_group_name: str = "/aws/lambda/function"
    log_stream_name: str = "2026/01/05/[$LATEST]0123456789abcdef0123456789abcdef"
    identity: None = None
    client_context: None = None

    def get_remaining_time_in_millis(self) -> int:
        return 60_000


class Function:
    """One warm environment: a function's module, and what it logged."""

    def __init__(self, name: str) -> None:
        path = FUNCTIONS / name / "app.py"
        spec = importlib.util.spec_from_file_location(f"app_of_{name}", path)
        assert spec is not None
        assert spec.loader is not None
        self.module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(self.module)
        self._output = io.StringIO()
        # The logger outlives the module, and keeps the stream that it was first given.
        # That one may be closed by now, so it is not flushed.
        self.module.telemetry.logger.registered_handler.stream = self._output

    def __call__(self, event: Any = None) -> dict[str, Any]:
        result = self.module.handler({} if event is None else event, FakeContext())
        answer: dict[str, Any] = json.loads(json.dumps(result))  # Lambda answers JSON, too.
        return answer

    @property
    def output(self) -> str:
        return self._output.getvalue()

    @property
    def logs(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.output.splitlines()]

    @property
    def errors(self) -> list[dict[str, Any]]:
        return [line for line in self.logs if line["level"] in {"ERROR", "CRITICAL"}]

    def forget_logs(self) -> None:
        self._output.seek(0)
        self._output.truncate()

    def fails(self, error: type[ControlPlaneError], *texts: str, event: Any = None) -> str:
        """Invokes the function and expects an error with these texts, raised, and logged once without a stack trace."""
        self.forget_logs()
        with pytest.raises(error) as caught:
            self(event)
        message = str(caught.value)
        for text in texts:
            assert text in message
        assert [(line["message"], line["error"]) for line in self.errors] == [(error.__name__, message)]
        assert "exception" not in self.errors[0]
        assert PASSWORD not in self.output + message
        return message

    def close(self) -> None:
        for holder in (self.module.database, getattr(self.module, "health", None)):
            if holder is not None and holder.cache_info().currsize:
                holder().close()

    def forget_connections(self) -> None:
        """Makes the next invocation open its connections anew."""
        self.close()
        for holder in (self.module.database, getattr(self.module, "health", None)):
            if holder is not None:
                holder.cache_clear()


type Load = Callable[..., Function]

VARIABLES = """
    DATABASE_URL DATABASE_SECRET_ARN CLOUD_ENDPOINT_URL SUBSCRIPTION_QUEUE_URLS SYMBOLS MARKET_DATA_URL
    MAX_DELIVERY_ATTEMPTS RELAY_LINGER_SECONDS RELAY_CLAIM_SIZE RELAY_PUBLISH_CONCURRENCY LEASE_SECONDS
    BREAKER_FAILURE_THRESHOLD BREAKER_COOL_DOWN_SECONDS EVENT_RETENTION_DAYS SUBSCRIPTIONS AGENT_LEASE_SECONDS
    DEAD_LETTER_QUEUES FAILED_INVOCATIONS_QUEUE
    MODEL_PROVIDER MODEL_ID MODEL_URL MODEL_SECRET_ARN MODEL_MAX_TOKENS MODEL_OUTPUT MODEL_PRICE_MICROS
""".split()  # noqa: SIM905 - as a list it takes a line each
NEEDED = {
    "ingestion": {"SYMBOLS": "AAPL"},
    "relay": {"SUBSCRIPTION_QUEUE_URLS": '{"signal_lab": "http://127.0.0.1:1/queue"}'},
    "signal_lab": {},
    "migration": {},
    "maintenance": {},
    "dead_letter": {
        "DEAD_LETTER_QUEUES": '{"signal_lab": "ticks-dead", "agents": "agents-dead"}',
        "FAILED_INVOCATIONS_QUEUE": "failed",
    },
    "agent": {},
}


def tick(price: float = 100.0, *, minute: int = 0, entity: str = "AAPL") -> Event:
    payload = MarketTick(price=price, open=price, high=price, low=price, volume=10, currency="USD", interval="1m")
    return new_event(
        payload,
        source="yfinance",
        entity_id=entity,
        entity_type="equity",
        occurred_at=NOON + timedelta(minutes=minute),
        observed_at=NOON + timedelta(hours=1),
        ingested_at=NOON + timedelta(hours=1),
        trace_id=uuid.uuid4(),
        series="1m",
    )


def look(*, minute: int = 0) -> Look:
    """Returns a look that becomes a tick with these values."""
    event = tick(minute=minute)
    return Look(
        MarketTick(**event.payload),
        source=event.source,
        entity_id=event.entity_id,
        entity_type=event.entity_type,
        occurred_at=event.occurred_at,
        observed_at=event.observed_at,
        trace_id=event.trace_id,
        series=event.series,
    )


def record(body: str, number: int = 1, **attributes: str) -> dict[str, Any]:
    """Returns an SQS record as an event source mapping delivers it."""
    return {
        "messageId": f"00000000-0000-4000-8000-{number:012}",
        "receiptHandle": f"receipt-{number}",
        "body": body,
        "attributes": {
            "ApproximateReceiveCount": "2",
            "SentTimestamp": "1767618000000",
            "SenderId": "AIDAEXAMPLE",
            "ApproximateFirstReceiveTimestamp": "1767618000100",
        },
        "messageAttributes": {
            name: {"stringValue": value, "stringListValues": [], "binaryListValues": [], "dataType": "String"}
            for name, value in attributes.items()
        },
        "md5OfBody": "0" * 32,
        "eventSource": "aws:sqs",
        "eventSourceARN": "arn:aws:sqs:us-east-1:123456789012:market-ticks",
        "awsRegion": "us-east-1",
    }


def record_of(event: Event, number: int = 1) -> dict[str, Any]:
    return record(json.dumps(event.to_message()), number, event_id=str(event.event_id), trace_id=str(event.trace_id))


def failures(answer: dict[str, Any]) -> list[str]:
    return [item["itemIdentifier"] for item in answer["batchItemFailures"]]


def count(connection: Connection[Any], table: str) -> int:
    row = connection.execute(sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(table))).fetchone()
    assert row is not None
    number: int = row[0]
    return number


def metrics(capsys: pytest.CaptureFixture[str]) -> dict[str, float]:
    """Returns the sums of the metrics that were flushed since the last call, by name."""
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines() if '"_aws"' in line]
    names = [(line, metric["Name"]) for line in lines for metric in line["_aws"]["CloudWatchMetrics"][0]["Metrics"]]
    return {name: sum(line[name]) for line, name in names}
