"""Finance's part of the gatekeeper: its types of action, its policies, and what our code computes for them.

The policies are in policies.cedar; docs/decisions/0025 says how they are asked. Amounts are integers in millionths.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache, partial
from importlib import resources
from typing import Annotated, Any, Final
from uuid import UUID

from psycopg import Connection
from psycopg.rows import class_row
from pydantic import Field

from control_plane.model.deciding import ActionSchema, Gate, JsonObject, Judged, ReadPolicies, enforced_id
from control_plane.platform.queries import load_queries
from domains.finance.account_check import Account, AccountRow, account_faults, account_of
from domains.finance.approval_text import render
from domains.finance.deciding import measures
from domains.finance.deciding.evidence import is_market_wide_now
from domains.finance.evidence_check import (
    Grounds,
    Micros,
    Ppm,
    Present,
    StoredAction,
    StoredBar,
    Ungrounded,
    faults,
    grounds_of,
)
from domains.finance.paper_account.orders import Hedge, Order, Reduce

QUERIES: Final = load_queries(__package__)
DAY: Final = timedelta(days=1)


class Claims(ActionSchema):
    """What a proposal says of its evidence; each is recomputed."""

    return_ppm: Ppm
    is_market_wide: bool
    expected_shortfall_micros: Micros
    severity: Annotated[int, Field(ge=0, le=4)]


@dataclass(frozen=True, slots=True)
class Release:
    """One that was executed lately, or may still be."""

    source: str
    entity_id: str
    occurred_at: datetime
    is_executed: bool
    context: Mapping[str, Any]
    """Of the policy request that it was released by."""


@dataclass(frozen=True, slots=True)
class Holding:
    """What an account has of one entity, in millionths of a unit."""

    held_micros: int
    being_sold_micros: int
    """By orders that are not filled yet."""


class FinanceGate:
    """See :class:`~control_plane.model.deciding.Gate`."""

    action_types: Mapping[str, type[ActionSchema]] = {"HEDGE": Hedge, "REDUCE": Reduce}
    claims_type: type[ActionSchema] = Claims
    expires_after = timedelta(minutes=10)
    approval_within = timedelta(minutes=15)

    @property
    def policies(self) -> str:
        """Cedar policies, as text."""
        return _read("policies.cedar")

    @property
    def schema(self) -> str:
        """Their Cedar schema."""
        return _read("policies.cedarschema")

    def check_evidence(self, connection: Connection[Any], judged: Judged) -> Sequence[str]:
        """Recomputes what the proposal cites, and asks whether what it was decided on still stands."""
        try:
            grounds = grounds_of(judged)
            event_id = UUID(grounds.evidence.bar.event_id)
        except (Ungrounded, ValueError) as error:
            return [str(error)]
        present = Present(
            self.stored_bar(connection, event_id),
            self.stored_actions(connection, event_id),
            self.is_market_wide(connection, judged),
        )
        return [
            *faults(judged, grounds, present),
            *account_faults(grounds.evidence.portfolio, self.account(connection, judged)),
        ]

    def policy_request(self, connection: Connection[Any], judged: Judged) -> JsonObject:
        """Returns what the policies are asked, with the account as it is under its lock."""
        # Releases first: one that is executed meanwhile is counted twice then. The other way round it was not at all.
        releases = self.releases(connection, judged)
        holding, account = self.holding(connection, judged), self.account(connection, judged)
        assert account is not None, "the evidence was checked"
        return request_of(judged, grounds_of(judged), releases, holding, account.value_micros)

    def render(self, judged: Judged) -> str:
        """What an approver is shown."""
        return render(judged, grounds_of(judged))

    # What is read, apart so that a test can hold the rest against a market of its own.

    def stored_bar(self, connection: Connection[Any], event_id: UUID) -> StoredBar | None:
        """Returns a bar's event as it is now; None where there is none."""
        with connection.cursor(row_factory=class_row(StoredBar)) as cursor:
            return cursor.execute(QUERIES["judged_bar"].sql, {"event_id": event_id}).fetchone()

    def stored_actions(self, connection: Connection[Any], event_id: UUID) -> Sequence[StoredAction]:
        """Returns the splits and dividends of a bar, whether or not the detector has seen them."""
        with connection.cursor(row_factory=class_row(StoredAction)) as cursor:
            return cursor.execute(QUERIES["judged_actions"].sql, {"event_id": event_id}).fetchall()

    def is_market_wide(self, connection: Connection[Any], judged: Judged) -> bool:
        """Returns whether the market fell with a decision's bar, by all bars of that instant that there are now."""
        return is_market_wide_now(connection, judged.decision)

    def holding(self, connection: Connection[Any], judged: Judged) -> Holding:
        """Returns what the account has of the decision's entity."""
        row = connection.execute(
            QUERIES["held_quantity"].sql,
            {
                "account": judged.account,
                "source": judged.decision.source,
                "entity_id": judged.decision.entity_id,
            },
        ).fetchone()
        assert row is not None
        return Holding(*row)

    def account(self, connection: Connection[Any], judged: Judged) -> Account | None:
        """Returns the account as it is now, at the prices of the decision's bar; None where there is none."""
        with connection.cursor(row_factory=class_row(AccountRow)) as cursor:
            rows = cursor.execute(
                QUERIES["judged_account"].sql,
                {
                    "account": judged.account,
                    "source": judged.decision.source,
                    "series": judged.decision.series,
                    "at": judged.decision.occurred_at,
                },
            ).fetchall()
        return account_of(rows)

    def releases(self, connection: Connection[Any], judged: Judged) -> Sequence[Release]:
        """Returns what the account was released and has executed lately, and what it may still execute.

        A decision in shadow is judged as if the enforced one on its anomaly had released nothing.
        """
        with connection.cursor(row_factory=class_row(Release)) as cursor:
            return cursor.execute(
                QUERIES["live_releases"].sql,
                {
                    "domain": judged.decision.domain,
                    "account": judged.account,
                    "at": judged.decision.occurred_at,
                    "left_out": enforced_id(judged.decision) if judged.decision.is_shadow else None,
                },
            ).fetchall()


def request_of(
    judged: Judged, grounds: Grounds, releases: Sequence[Release], holding: Holding, value: int
) -> JsonObject:
    """Returns the policy request; ``value`` is what the account is worth.

    Distances in time are between bars, so that a replay is judged like its day.
    """
    decision, action, evidence = judged.decision, judged.action, grounds.evidence
    assert isinstance(action, Order)
    chosen, nothing = grounds.simulation.named(judged.proposal.option), grounds.simulation.nothing
    assert chosen is not None, "the evidence was checked"
    assert nothing is not None, "the evidence was checked"
    of_day = [
        release
        for release in releases
        if not release.is_executed or abs(release.occurred_at - decision.occurred_at) < DAY
    ]
    joint = action.notional_micros + sum(release.context["notional_micros"] for release in of_day)
    of_entity = [
        release for release in releases if (release.source, release.entity_id) == (decision.source, decision.entity_id)
    ]
    being_sold = holding.being_sold_micros + sum(
        release.context["quantity_micros"]
        for release in of_entity
        if not release.is_executed and release.context["side"] == "sell"
    )
    context = {
        "action_type": judged.action_type,
        "side": action.side,
        "hypothesis": judged.proposal.hypothesis,
        "severity": grounds.severity,
        "adjusted_return_ppm": evidence.bar.adjusted_return_ppm,
        "is_market_wide": grounds.is_market_wide,
        "has_split": evidence.has_split,
        "quantity_micros": action.quantity_micros,
        "held_micros": holding.held_micros,
        "available_micros": holding.held_micros - being_sold,
        "notional_micros": action.notional_micros,
        "notional_ppm": _share_ppm(action.notional_micros, value),
        "portfolio_micros": value,
        "expected_shortfall_micros": chosen.expected_shortfall_micros,
        "shortfall_of_nothing_micros": nothing.expected_shortfall_micros,
        "joint_micros": joint,
        "joint_ppm": _share_ppm(joint, value),
        "releases_of_day": len(of_day),
    }
    context |= _nearest("seconds_from_entity_release", decision.occurred_at, of_entity)
    wide = [release for release in releases if release.context["is_market_wide"]]
    context |= _nearest("seconds_from_market_wide_release", decision.occurred_at, wide)
    return {
        "principal": {"type": "Playbook", "id": f"{decision.domain}.{decision.playbook}"},
        "resource": {"type": "Account", "id": judged.account},
        "context": context,
        "entities": [],
    }


def _nearest(name: str, at: datetime, releases: Sequence[Release]) -> dict[str, int]:
    """Returns how far the nearest of some releases is, under a name; nothing where there is none."""
    if not releases:
        return {}
    return {name: min(int(abs(release.occurred_at - at).total_seconds()) for release in releases)}


def _share_ppm(part: int, whole: int) -> int:
    """Returns a share rounded up: a limit that is exceeded by any amount is exceeded."""
    return -(-part * measures.MILLION // whole)


@cache
def _read(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def policies_in_shadow() -> ReadPolicies | None:
    """Returns what reads the policies in shadow, which are in shadow.cedar; None where there is no such file."""
    file = resources.files(__package__).joinpath("shadow.cedar")
    return partial(file.read_text, encoding="utf-8") if file.is_file() else None


GATE: Final[Gate] = FinanceGate()
