"""Upgrade: brings a database's schema and subscriptions in line with the deployment, both in one transaction."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from psycopg import Connection

from control_plane.model.subscription import Subscription
from control_plane.ops.migrations import Migration, MigrationReport, migrate
from control_plane.ops.subscriptions import SubscriptionReport, sync_subscriptions


@dataclass(frozen=True, slots=True)
class UpgradeReport:
    """What a run did."""

    schema: MigrationReport
    subscriptions: SubscriptionReport

    def __str__(self) -> str:
        changes = [f"{len(self.schema.applied) or 'no'} migrations applied"]
        for what, names in (("added", self.subscriptions.added), ("removed", self.subscriptions.removed)):
            if names:
                changes.append(f"{what}: {', '.join(names)}")
        if self.subscriptions.backfilled:
            changes.append(f"{self.subscriptions.backfilled} earlier messages pending for them")
        if self.subscriptions.dead_lettered:
            changes.append(f"{self.subscriptions.dead_lettered} dead-lettered")
        return f"version {self.schema.version}; {'; '.join(changes)}"


def upgrade(
    connection: Connection[Any], migrations: Sequence[Migration], subscriptions: Mapping[str, Subscription] | None
) -> UpgradeReport:
    """Applies the missing migrations and syncs the subscriptions; None leaves the subscriptions as they are.

    It is one transaction, so that no ingestion stores messages under a new schema before their subscriptions exist.
    ``connection`` is the owner's, in autocommit mode. Raises MigrationError, SubscriptionError, psycopg.Error.
    """
    with connection.transaction():
        schema = migrate(connection, migrations)
        report = SubscriptionReport() if subscriptions is None else sync_subscriptions(connection, subscriptions)
    return UpgradeReport(schema, report)
