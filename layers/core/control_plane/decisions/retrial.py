"""Tries other policies on the newest verdicts: what they would have decided, and where that differs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from psycopg import Connection

from control_plane.decisions.policy import Policy, Ruling, from_record, rule, rule_again
from control_plane.platform.queries import load_queries

QUERIES: Final = load_queries(__package__)
MOST_REQUESTS: Final = 500
"""The most recorded requests that are judged again at once."""


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
    """The verdict on record. A switch, or an approval that failed, may have refused what the policies did not."""
    before: Ruling
    """By the policies that were asked then."""
    after: Ruling

    @property
    def differs(self) -> bool:
        """Whether the verdict would have been another."""
        return self.before.verdict != self.after.verdict


@dataclass(frozen=True, slots=True)
class Retrial:
    """What a policy came to on the record."""

    retried: Sequence[Retried]
    """The newest requests, newest first."""
    recorded: int
    """The domain's recorded requests in all."""
    unasked: int
    """The domain's verdicts that fell before any policy was asked: they stay what they are."""
    is_out_of_time: bool

    @property
    def differences(self) -> Sequence[Retried]:
        """Those where the verdict would have been another."""
        return [one for one in self.retried if one.differs]


def retry(
    connection: Connection[Any],
    domain: str,
    policy: Policy,
    *,
    limit: int = MOST_REQUESTS,
    is_over: Callable[[], bool] = lambda: False,
) -> Retrial:
    """Judges a domain's newest recorded requests again, until ``is_over`` says that there is no time left.

    Raises psycopg.Error.
    """
    counted = connection.execute(QUERIES["count_verdicts"].sql, {"domain": domain}).fetchone()
    assert counted is not None
    rows = connection.execute(QUERIES["recorded_requests"].sql, {"domain": domain, "limit": limit}).fetchall()
    names = sorted({bytes(name) for row in rows for name in (row[8], row[9])})
    found = connection.execute(QUERIES["artifacts"].sql, {"hashes": names}).fetchall()
    texts = {bytes(name): bytes(content) for name, content in found}
    retried: list[Retried] = []
    for row in rows:
        if is_over():
            break
        verdict_id, decision_id, judged_at, recorded, is_shadow, approval, entity, at, used, schema, request = row
        is_approved = approval is not None and recorded != "needs_approval"
        asked = from_record(bytes(request))
        before = rule_again(texts[bytes(used)], texts[bytes(schema)], asked, is_approved=is_approved)
        after = rule(policy, asked, is_approved=is_approved)
        retried.append(Retried(verdict_id, decision_id, judged_at, entity, at, is_shadow, recorded, before, after))
    return Retrial(retried, counted[0], counted[1], is_out_of_time=len(retried) < len(rows))
