"""The domains of this deployment. A new one is a package beside ``finance`` and one entry in ``DOMAINS``."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from control_plane.model.contract import PLATFORM_PAYLOADS, EventTypes
from control_plane.model.decision_events import DECISION_PAYLOADS
from control_plane.model.domain import Domain
from control_plane.model.errors import ControlPlaneError
from domains import finance

if TYPE_CHECKING:
    from uuid import UUID

    from control_plane.decisions.audit import Finding
    from control_plane.model.deciding import Deciding
    from control_plane.operations.backfill.kind import Ask
    from control_plane.operations.kind import Kind

DOMAINS: Final[tuple[Domain, ...]] = (finance.DOMAIN,)

EVENT_TYPES: Final = EventTypes(
    [*PLATFORM_PAYLOADS, *DECISION_PAYLOADS, *(payload for domain in DOMAINS for payload in domain.payloads)]
)
"""Every event type that this deployment knows."""


def load_deciding(domains: Iterable[Domain] = DOMAINS) -> "Mapping[str, Deciding]":
    """Imports what each domain plugs into the decision engine, and returns it by the domain's name."""
    return {domain.name: import_module(domain.deciding).DECIDING for domain in domains if domain.deciding is not None}


def load_reconciling(domains: Iterable[Domain] = DOMAINS) -> "Sequence[Callable[[Any], Sequence[Finding]]]":
    """Imports what holds each domain's accounts against the record, where a domain has any."""
    return [import_module(domain.reconciling).reconcile for domain in domains if domain.reconciling is not None]


def load_forgetting(domains: Iterable[Domain] = DOMAINS) -> "Sequence[Callable[[Any, UUID, Sequence[UUID]], int]]":
    """Imports each domain's part in an erasure, where it has any."""
    return [import_module(domain.forgetting).forget for domain in domains if domain.forgetting is not None]


def load_kinds(domains: Iterable[Domain] = DOMAINS, *, ask: "Ask | None" = None) -> "Sequence[Kind]":
    """Imports the kinds of operation that there are, and returns them; a replay asks the domains what it means.

    ``ask`` runs IngestionFunction for a piece of a backfill; whoever only plans and starts operations needs none.
    """
    redrive, replay, backfill, retention, erasure, rebuild = (
        import_module(f"control_plane.operations.{name}")
        for name in ("redrive", "replay", "backfill.kind", "history.retention", "history.erasure", "history.rebuild")
    )
    consumers = [consumer for domain in domains for consumer in domain.consumers]
    on_replay = {consumer.name: consumer.on_replay for consumer in consumers}
    histories = [history for domain in domains for history in domain.histories]
    return [
        redrive.Redrive(),
        replay.Replay(on_replay),
        backfill.Backfill(histories, ask or _nobody),
        retention.Retention(),
        erasure.Erasure(load_forgetting(domains)),
        rebuild.Rebuild(consumers, EVENT_TYPES),
    ]


def _nobody(_piece: Mapping[str, Any]) -> Mapping[str, Any]:
    raise ControlPlaneError("a piece of a backfill is for OperationsFunction to do: it asks IngestionFunction for it")
