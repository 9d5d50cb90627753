"""A relay as a process that tests can kill; its arguments are DATABASE_URL and QUEUE_URL. It runs once and ends."""

import sys

from control_plane.outbox.ledger import RelayPolicy
from control_plane.outbox.relay import Relay
from control_plane.outbox.sqs import CONNECT_TIMEOUT_SECONDS, READ_TIMEOUT_SECONDS, SqsPublisher
from control_plane.platform.aws import sqs_client
from control_plane.platform.breakers import BreakerPolicy
from control_plane.platform.database import connect
from control_plane.platform.telemetry import Telemetry

if __name__ == "__main__":
    database_url, queue_url = sys.argv[1:]
    connection = connect(database_url, application_name="doomed")
    client = sqs_client(
        queue_url,
        connect_timeout=CONNECT_TIMEOUT_SECONDS,
        read_timeout=READ_TIMEOUT_SECONDS,
        connections=2,
    )
    Relay(
        connection=lambda: connection,
        publisher=SqsPublisher(client),
        queue_urls={"signal_lab": queue_url},
        policy=RelayPolicy(
            claim_size=100, lease_seconds=30, max_attempts=5, publish_concurrency=2, breaker=BreakerPolicy(3, 30)
        ),
        telemetry=Telemetry("doomed"),
        name="doomed",
    ).run(remaining_seconds=lambda: 60)
