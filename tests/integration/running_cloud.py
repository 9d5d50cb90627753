"""A stand-in for the running local cloud, for tests of the commands; only its Postgres is real."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

from psycopg import Connection
from tests.conftest import PASSWORD
from typer.testing import CliRunner, Result

from acp_cli.cli import app as acp
from local_cloud.cloud import Cloud
from local_cloud.postgres import PostgresServer
from local_cloud.roles import SECRETS
from local_cloud.run_state import Deployment, RunState
from local_cloud.workspace import CHECKOUT, Workspace

QUEUE_URL = "http://sqs.localhost:4566/000000000000/acp-market-ticks-1a2b"
API_TOKEN = "the-token-of-a-cloud-that-seems-to-run"


class RunningCloud(Cloud):
    """A cloud that seems to run, with the test's own database, and with its API where there is a URL of one."""

    def __init__(self, folder: Path, server: PostgresServer, api_url: str = "") -> None:
        super().__init__(Workspace(CHECKOUT, folder, folder / "state"))
        self._server = server
        self._api_url = api_url

    def running(self) -> RunState:
        return RunState(
            role_passwords=dict.fromkeys(SECRETS.values(), PASSWORD),
            api_token=API_TOKEN,
            market_source="replay",
            deployment=Deployment(
                "1@2",
                template="",
                code="",
                outputs={"MarketTicksQueueUrl": QUEUE_URL} | ({"ApiUrl": self._api_url} if self._api_url else {}),
                environ={"SUBSCRIPTION_QUEUE_URLS": f'{{"signal_lab": "{QUEUE_URL}"}}'},
            ),
        )

    def postgres(self, run: RunState) -> PostgresServer:
        return self._server


def run(cloud: Cloud, *arguments: str, typed: str | None = None) -> Result:
    """Runs a command and returns its result; a traceback fails the test. ``typed`` is what its standard input holds."""
    result = CliRunner().invoke(acp, arguments, obj=cloud, input=typed)
    assert result.exception is None or isinstance(result.exception, SystemExit), "a traceback"
    return result


def give_up(owner: Connection[Any], event_ids: Sequence[UUID], reason: str) -> None:
    """Dead-letters the pending deliveries of these events, as a relay does after the fifth attempt."""
    owner.execute(
        "WITH gone AS (DELETE FROM pending_deliveries USING outbox"
        " WHERE outbox.id = outbox_id AND event_id = ANY (%(event_ids)s) RETURNING pending_deliveries.*),"
        " failed AS (INSERT INTO delivery_failures (outbox_id, subscription, attempt, claimed_by, error)"
        " SELECT outbox_id, subscription, 5, 'relay-a', %(reason)s FROM gone)"
        " INSERT INTO dead_letters (outbox_id, subscription, promised_at, delivery_attempts, reason)"
        " SELECT outbox_id, subscription, promised_at, 5, %(reason)s FROM gone",
        {"event_ids": list(event_ids), "reason": reason},
    )


def deliver(owner: Connection[Any], *, hours_ago: float = 0) -> None:
    """Delivers all that is pending, as a relay does at the first attempt."""
    owner.execute(
        "WITH gone AS (DELETE FROM pending_deliveries RETURNING *)"
        " INSERT INTO deliveries (outbox_id, subscription, operation_id, delivery_attempts, message_id, delivered_at)"
        " SELECT outbox_id, subscription, operation_id, 1, 'm', now() - make_interval(secs => %s) FROM gone",
        [hours_ago * 3600],
    )
