"""TraceFunction: exports the spans of what is recorded to an OTLP receiver, every minute."""

from collections.abc import Mapping
from functools import cache
from typing import Any

from control_plane.platform.aws import read_secret
from control_plane.platform.database import Database
from control_plane.platform.function import LambdaContext, environ, function, open_database
from control_plane.platform.settings import TraceSettings
from control_plane.platform.telemetry import Telemetry
from control_plane.tracing.export import TraceExport
from control_plane.tracing.receiver import Receiver, parse_headers

telemetry = Telemetry("trace")


@cache
def settings() -> TraceSettings:
    """Returns the settings, validated once per environment."""
    return TraceSettings.from_environ(environ())


@cache
def database() -> Database:
    """Returns the environment's one connection, as the role that reads."""
    return open_database(
        settings().database, endpoint_url=settings().cloud_endpoint_url, application_name="acp-trace", role="acp_reader"
    )


@cache
def headers() -> Mapping[str, str]:
    """Returns the headers that the receiver asks for. They are read again after a run that failed."""
    arn = settings().secret_arn
    if arn is None:
        return {}
    return parse_headers(read_secret(arn, endpoint_url=settings().cloud_endpoint_url), origin=f"the secret {arn}")


@function(telemetry, sample="events/trace.json")
def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    """Exports for as long as there is time; ``{"anew": true}`` leaves out what is stored so far.

    Returns a TraceReport.
    """
    report = TraceExport(
        database().connection(),
        Receiver(settings().endpoint, headers),
        telemetry,
        sample_ratio=settings().sample_ratio,
    ).run(
        remaining_seconds=lambda: context.get_remaining_time_in_millis() / 1000,
        anew=event.get("anew") is True,
    )
    if report.failure is not None:
        headers.cache_clear()
    telemetry.logger.info("traces exported", **report.to_dict())
    return report.to_dict()
