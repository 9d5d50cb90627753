"""Upgrade: brings a database's schema and subscriptions in line with the deployment, both in one transaction.

It refuses a release that cannot carry on the decisions that are open.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from psycopg import Connection

from control_plane.model.deciding import PlaybookVersion
from control_plane.model.subscription import Subscription
from control_plane.ops.migrations import Migration, MigrationError, MigrationReport, migrate
from control_plane.ops.subscriptions import SubscriptionReport, sync_subscriptions
from control_plane.platform.conflicts import retry_conflicts
from control_plane.platform.queries import load_queries

QUERIES: Final = load_queries(__package__)


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
    connection: Connection[Any],
    migrations: Sequence[Migration],
    subscriptions: Mapping[str, Subscription] | None,
    *,
    playbooks: Collection[PlaybookVersion],
) -> UpgradeReport:
    """Applies the missing migrations and syncs the subscriptions; None leaves the subscriptions as they are.

    ``playbooks`` are the versions that this release has; an open decision that needs another one refuses it.
    It is one transaction, tried again where it conflicts with others, so that no ingestion stores messages under a new
    schema before their subscriptions exist.
    ``connection`` is the owner's, in autocommit mode. Raises MigrationError, SubscriptionError, psycopg.Error.
    """

    def work() -> UpgradeReport:
        with connection.transaction():
            schema = migrate(connection, migrations)
            _check_open_decisions(connection, playbooks)
            report = SubscriptionReport() if subscriptions is None else sync_subscriptions(connection, subscriptions)
        return UpgradeReport(schema, report)

    return retry_conflicts(work)


def _check_open_decisions(connection: Connection[Any], playbooks: Collection[PlaybookVersion]) -> None:
    """Raises MigrationError where an open decision is pinned to a version that this release does not have."""
    needed = connection.execute(QUERIES["playbooks_of_open_decisions"].sql).fetchall()
    gone = [
        f"{playbook} {version} of {domain} ({count} open, such as {decision_id})"
        for domain, playbook, version, count, decision_id in needed
        if (domain, playbook, version) not in playbooks
    ]
    if gone:
        raise MigrationError(
            f"open decisions need playbooks that this release does not have: {'; '.join(gone)}. Nothing was changed. "
            "Deploy a release that has these versions beside the new ones, or wait until those decisions are closed "
            "(docs/decision_engine.md, What cannot go on)"
        )
