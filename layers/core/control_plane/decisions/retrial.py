"""Tries other policies on every verdict so far: what they would have decided, and where that differs."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from psycopg import Connection

from control_plane.decisions.policy import Policy, PolicyUnusable, Ruling, from_record, load, rule
from control_plane.platform.queries import load_queries

QUERIES: Final = load_queries(__package__)


@dataclass(frozen=True, slots=True)
class Retried:
    """One recorded request, and what two policies say to it."""

    verdict_id: UUID
    decision_id: UUID
    judged_at: datetime
    entity_id: str
    occurred_at: datetime
    is_shadow: bool
    recorded: str
    """The verdict on record. It may be refused although the policies were not: by a switch, or an approval that failed."""
    before: Ruling
    """By the policies that were asked then."""
    after: Ruling

    @property
    def differs(self) -> bool:
        """Whether the verdict would have been another."""
        return self.before.verdict != self.after.verdict


def retry(connection: Connection[Any], domain: str, policy: Policy) -> Iterator[Retried]:
    """Yields every request of a domain's that policies were asked about, oldest first. Raises psycopg.Error."""
    for row in connection.execute(QUERIES["recorded_requests"].sql).fetchall():
        (verdict_id, decision_id, judged_at, recorded, is_shadow, approval, of_domain, entity, at, *texts) = row
        if of_domain != domain:
            continue
        used, schema, request = (bytes(text) for text in texts)
        is_approved = approval is not None and recorded != "needs_approval"
        asked = from_record(request)
        yield Retried(
            verdict_id,
            decision_id,
            judged_at,
            entity,
            at,
            is_shadow,
            recorded,
            _ruling(used, schema, asked, is_approved=is_approved),
            rule(policy, asked, is_approved=is_approved),
        )


def count_unasked(connection: Connection[Any]) -> int:
    """Returns how many verdicts fell before any policy was asked. Raises psycopg.Error."""
    row = connection.execute(QUERIES["count_unasked_verdicts"].sql).fetchone()
    assert row is not None
    return int(row[0])


def _ruling(policies: bytes, schema: bytes, asked: dict[str, Any], *, is_approved: bool) -> Ruling:
    try:
        return rule(load(policies.decode(), schema.decode()), asked, is_approved=is_approved)
    except PolicyUnusable as error:  # by a newer Cedar, which reads it otherwise
        return Ruling("refused", (), (str(error),))


def differences(retried: Sequence[Retried]) -> Sequence[Retried]:
    """Returns those where the verdict would have been another."""
    return [one for one in retried if one.differs]
