"""RelayFunction: delivers pending messages to the queues of their subscriptions."""

from functools import cache
from typing import Any

from control_plane.outbox.ledger import RelayPolicy
from control_plane.outbox.relay import Relay
from control_plane.outbox.sqs_http import SqsEndpoint, SqsHttpPublisher
from control_plane.platform.aws import find_sqs
from control_plane.platform.breakers import BreakerPolicy
from control_plane.platform.database import Database
from control_plane.platform.function import LambdaContext, environ, function, open_database
from control_plane.platform.settings import RelaySettings, parse_linger_seconds
from control_plane.platform.telemetry import Telemetry

telemetry = Telemetry("relay")


@cache
def settings() -> RelaySettings:
    """Returns the settings, validated once per environment."""
    return RelaySettings.from_environ(environ())


@cache
def database() -> Database:
    """One connection per environment."""
    return open_database(
        settings().database, endpoint_url=settings().cloud_endpoint_url, application_name="acp-relay", role="acp_relay"
    )


@cache
def publisher() -> SqsHttpPublisher:
    """Returns the publisher. It finds its endpoint at the first send, because that takes longer than a first claim."""
    return SqsHttpPublisher(lambda: SqsEndpoint(*find_sqs(settings().cloud_endpoint_url)))


@cache
def relay(name: str) -> Relay:
    """Returns the environment's one relay. Its name is the log stream's, so claims and failures lead to its log."""
    return Relay(
        connection=database().connection,
        publisher=publisher(),
        queue_urls=settings().subscription_queue_urls,
        policy=RelayPolicy(
            claim_size=settings().claim_size,
            lease_seconds=settings().lease_seconds,
            max_attempts=settings().max_delivery_attempts,
            publish_concurrency=settings().publish_concurrency,
            breaker=BreakerPolicy(settings().breaker_failure_threshold, settings().breaker_cool_down_seconds),
            traces_ratio=settings().traces_ratio,
        ),
        telemetry=telemetry,
        name=name,
    )


@function(telemetry, sample="events/relay.json")
def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    """Delivers what is due, then lingers for RELAY_LINGER_SECONDS, or as the event says: ``{"linger_seconds": n}``.

    Returns a RelayResult.
    """
    linger_seconds = parse_linger_seconds(event.get("linger_seconds"), default=settings().linger_seconds)
    return (
        relay(context.log_stream_name)
        .run(
            remaining_seconds=lambda: context.get_remaining_time_in_millis() / 1000,
            linger_seconds=linger_seconds,
        )
        .to_dict()
    )
