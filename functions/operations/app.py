"""OperationsFunction: every minute it folds what was counted, and makes steps of the operations that people ask for."""

from collections.abc import Mapping
from functools import cache
from typing import Any

from control_plane.flow.folding import fold
from control_plane.operations.backfill.kind import Ask
from control_plane.operations.engine import run_operations
from control_plane.platform.database import Database
from control_plane.platform.function import LambdaContext, environ, function, open_database
from control_plane.platform.invocation import invoker
from control_plane.platform.settings import OperationsSettings
from control_plane.platform.telemetry import Telemetry
from domains import load_kinds

telemetry = Telemetry("operations")


@cache
def settings() -> OperationsSettings:
    """Returns the settings, validated once per environment."""
    return OperationsSettings.from_environ(environ())


@cache
def database() -> Database:
    """Returns the environment's one connection."""
    return open_database(
        settings().database,
        endpoint_url=settings().cloud_endpoint_url,
        application_name="acp-operations",
        role="acp_maintain",
    )


@cache
def ingestion() -> Ask:
    """Returns what invokes IngestionFunction. It is made for the first piece: most runs have none."""
    return invoker(settings().ingestion_function, endpoint_url=settings().cloud_endpoint_url)


def ingest(piece: Mapping[str, Any]) -> Mapping[str, Any]:
    """Has IngestionFunction do one piece of a backfill, and returns its result."""
    return ingestion()(piece)


@function(telemetry, sample="events/operations.json")
def handler(_event: dict[str, Any], context: LambdaContext) -> dict[str, int]:
    """Folds, and works for as long as something is planning or running, and there is time.

    Returns an OperationsReport, and how many rows were ``folded``.
    """

    def remaining_seconds() -> float:
        return context.get_remaining_time_in_millis() / 1000

    folded = fold(database().connection(), remaining_seconds=remaining_seconds)
    report = run_operations(
        database().connection(), load_kinds(ask=ingest), telemetry, remaining_seconds=remaining_seconds
    )
    telemetry.logger.info(
        "operations",
        steps=report.steps,
        finished=report.finished,
        failed=report.failed,
        active=report.active,
        stalled=report.stalled,
        folded=folded,
    )
    return report.to_dict() | {"folded": folded}
