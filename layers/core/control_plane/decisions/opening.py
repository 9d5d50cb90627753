"""Opening a decision for an anomaly, once; and joining what is known of the same instant later."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from psycopg import Connection

from control_plane.decisions import announcements
from control_plane.decisions.record import load_record, sha256, store_artifacts
from control_plane.model.contract import Event
from control_plane.model.deciding import Agent, Deciding, Decision, Gate, ModelBacked, Playbook, decision_id
from control_plane.model.errors import PlaybookFault
from control_plane.model.ids import canonical_instant, canonical_json
from control_plane.platform.messages import as_json
from control_plane.platform.queries import load_queries

QUERIES: Final = load_queries(__package__)


@dataclass(frozen=True, slots=True)
class Opened:
    """What an anomaly led to."""

    decision_id: UUID
    is_new: bool
    supersedes: bool = False
    """It says that what its decision was opened for is not so."""
    state: str = "opened"
    fence: int | None = None
    """Of the claim under which it was opened, which its opener still has."""
    is_shadow: bool = False


def find_playbook(deciding: Mapping[str, Deciding], anomaly: Mapping[str, Any]) -> tuple[str, Playbook] | None:
    """Returns the playbook that handles an anomaly, with its domain's name; None where no one does.

    Whose an anomaly is does not change where it is withdrawn: playbooks are not told. Raises PlaybookFault where two
    would take it: which of them decides must not depend on an order.
    """
    asked = {**anomaly, "is_withdrawn": False}
    named = anomaly.get("domain")
    takers = [
        (domain, playbook)
        for domain, plug_ins in deciding.items()
        if named in (None, domain)
        for playbook in plug_ins.playbooks
        if playbook.handles(asked)
    ]
    # Versions of one playbook live side by side; the first of them is the one that opens decisions.
    names = {(domain, playbook.name) for domain, playbook in takers}
    if len(names) > 1:
        listed = " and ".join(sorted(f"{domain}.{name}" for domain, name in names))
        raise PlaybookFault(
            f"an anomaly of kind {anomaly['kind']} by {anomaly['detector']} is handled by {listed}: let its detector "
            "name its domain, and one playbook alone handle it"
        )
    return takers[0] if takers else None


def find_shadows(deciding: Mapping[str, Deciding], anomaly: Mapping[str, Any]) -> Sequence[tuple[str, Playbook]]:
    """Returns the versions in shadow that decide on an anomaly, with their domains. Raises what a playbook raises."""
    asked, named = {**anomaly, "is_withdrawn": False}, anomaly.get("domain")
    return [
        (domain, playbook)
        for domain, plug_ins in deciding.items()
        if named in (None, domain)
        for playbook in plug_ins.shadow_playbooks
        if playbook.handles(asked)
    ]


def join_decided(connection: Connection[Any], event: Event) -> Sequence[Opened]:
    """Puts an ANOMALY_DETECTED on the record of whatever was decided on at its instant; returns what that led to.

    No playbook is asked: one that would not take it up, as it is told now, has to know of it all the same. Raises
    psycopg.Error.
    """
    rows = connection.execute(QUERIES["decisions_of_anomaly"].sql, _key(event)).fetchall()
    found = [_join(connection, decision, event) for (decision,) in rows]
    return [joined for joined in found if joined is not None]


def open_or_join(
    connection: Connection[Any],
    event: Event,
    domain: str,
    playbook: Playbook,
    *,
    is_shadow: bool,
    now: datetime,
    agents: Sequence[Agent] = (),
    gate: Gate | None = None,
    claimant: str,
    lease_seconds: float,
    is_beside: bool = False,
) -> Opened | None:
    """Opens the decision of an ANOMALY_DETECTED, or, where its instant has one, puts the event on that one's record.

    ``agents`` are those that the decision may call, ``gate`` is its domain's: their versions, models' settings and the
    policies are pinned. A decision that was opened is held by ``claimant``. ``is_beside``: it is a version in shadow,
    whose decision is another than that of the enforced one, and may cost nothing. None: the anomaly is withdrawn, and
    no decision was opened for it. That counts from when the withdrawal is stored, whichever of the two messages comes
    first. Raises psycopg.Error.
    """
    found = decision_id(
        source=event.payload["observed_source"],
        entity_id=event.entity_id or "",
        series=event.payload["series"],
        occurred_at=canonical_instant(event.occurred_at),
        kind=event.payload["kind"],
        playbook=f"{playbook.name}@{playbook.version}" if is_beside else playbook.name,
    )
    with connection.transaction():
        # A withdrawal waits here until all can see the decision that is being opened, and then joins it.
        connection.execute(QUERIES["lock_anomaly"].sql, {"decision_id": found})
        fence = None
        if not _is_withdrawn(connection, event):
            fence = _open(
                connection,
                found,
                event,
                domain,
                playbook,
                pins=_pin(connection, playbook, agents, gate),
                is_shadow=is_shadow,
                now=now,
                budget_micros=0 if is_beside else playbook.limits.budget_micros,
                claim={"decision_id": found, "claimant": claimant, "lease_seconds": lease_seconds},
            )
    # Where it is not opened: it is open already, or its anomaly is withdrawn.
    if fence is None:
        return _join(connection, found, event)
    return Opened(found, is_new=True, fence=fence, is_shadow=is_shadow)


def anomaly_body(event: Event) -> dict[str, Any]:
    """What the record says of an anomaly."""
    return {
        "event_id": str(event.event_id),
        "entity_id": event.entity_id,
        "occurred_at": canonical_instant(event.occurred_at),
        "revision": event.revision,
        "payload": dict(event.payload),
    }


def _key(event: Event) -> dict[str, Any]:
    """What the tellings of one anomaly have in common."""
    return {
        "source": event.payload["observed_source"],
        "entity_id": event.entity_id,
        "series": event.payload["series"],
        "occurred_at": event.occurred_at,
        "kind": event.payload["kind"],
        "domain": event.payload.get("domain"),
    }


def _is_withdrawn(connection: Connection[Any], event: Event) -> bool:
    """Whether an anomaly is taken back, by this event or by another that is not older."""
    if event.payload["is_withdrawn"]:
        return True
    about = {"event_id": event.event_id, "revision": event.revision, "bar_revision": event.payload["bar_revision"]}
    row = connection.execute(QUERIES["is_withdrawn"].sql, _key(event) | about).fetchone()
    return row is not None and bool(row[0])


def _supersedes(event: Event, trigger: Mapping[str, Any]) -> bool:
    """Whether an event says that what a decision was opened for is not so: it is no older, and tells it differently."""
    told = trigger["payload"]
    is_older = (event.payload["bar_revision"], event.revision) < (told["bar_revision"], trigger["revision"])
    return not is_older and (event.payload["is_withdrawn"] or dict(event.payload) != told)


def _open(
    connection: Connection[Any],
    found: UUID,
    event: Event,
    domain: str,
    playbook: Playbook,
    *,
    pins: bytes,
    is_shadow: bool,
    now: datetime,
    budget_micros: int,
    claim: Mapping[str, Any],
) -> int | None:
    """Opens a decision, claims it, and says what it was opened for; None where it is open already."""
    decision = Decision(
        decision_id=found,
        domain=domain,
        playbook=playbook.name,
        playbook_version=playbook.version,
        pins_sha256=pins,
        anomaly_kind=event.payload["kind"],
        source=event.payload["observed_source"],
        entity_id=event.entity_id or "",
        series=event.payload["series"],
        occurred_at=event.occurred_at,
        trigger_event_id=event.event_id,
        trace_id=event.trace_id,
        is_shadow=is_shadow,
        state="opened",
        deadline=now + playbook.limits.deadline,
        budget_micros=budget_micros,
        opened_at=now,
    )
    columns = {name: getattr(decision, name) for name in Decision.__slots__}
    row = connection.execute(QUERIES["open_decision"].sql, columns).fetchone()
    if row is None or not row[0]:
        return None
    claimed = connection.execute(QUERIES["claim_decision"].sql, claim).fetchone()
    assert claimed is not None, "nobody else can see it yet"
    connection.execute(
        QUERIES["advance_decision"].sql,
        {
            "decision_id": found,
            "fence": claimed[0],
            "kind": "anomaly",
            "parent": 0,
            "body": canonical_json(anomaly_body(event)),
            "hashes": [],
            "kinds": [],
            "contents": [],
            "output_sha256": None,
            "state": None,
            "lease_seconds": claim["lease_seconds"],
            "seen_seq": None,
            "events": as_json([announcements.opened(decision, now)]),
            "awaits_disk": True,
        },
    )
    return int(claimed[0])


def _pin(connection: Connection[Any], playbook: Playbook, agents: Sequence[Agent], gate: Gate | None) -> bytes:
    """Stores what is decided with, each piece once by its hash: the playbook, policies, agents' versions and models."""
    sources, policies = playbook.sources(), _policies(gate)
    pinned = {name: sha256(content).hex() for name, content in sources.items()}
    pins = canonical_json(
        {
            "playbook": playbook.name,
            "version": playbook.version,
            "sources": pinned,
            "agents": {agent.name: agent.version for agent in agents},
            "models": _models(agents),
            "policy": {kind: sha256(content).hex() for kind, content in policies.items()},
        }
    )
    name = sha256(pins)
    # The list is stored with what it lists, in one transaction: where it is, so are they.
    if connection.execute(QUERIES["artifacts"].sql, {"hashes": [name]}).fetchone() is None:
        pieces = [*(("source", content) for content in sources.values()), *policies.items(), ("pins", pins)]
        store_artifacts(connection, pieces)
    return name


def _models(agents: Sequence[Agent]) -> Mapping[str, Any]:
    backed = (agent for agent in agents if agent.model is not None)
    return {agent.name: dict(agent.settings) for agent in backed if isinstance(agent, ModelBacked)}


def _policies(gate: Gate | None) -> Mapping[str, bytes]:
    """Returns the policies and their schema; nothing where they cannot be read: the gatekeeper then refuses."""
    try:
        return {} if gate is None else {"policy": gate.policies.encode(), "policy_schema": gate.schema.encode()}
    except OSError:
        return {}


def _join(connection: Connection[Any], found: UUID, event: Event) -> Opened | None:
    record = load_record(connection, found)
    if record is None:
        return None
    trigger = record.last("anomaly")
    if trigger is None or trigger.body["event_id"] == str(event.event_id):
        return Opened(found, is_new=False, state=record.decision.state, is_shadow=record.decision.is_shadow)
    supersedes = _supersedes(event, trigger.body)
    row = connection.execute(
        QUERIES["join_decision"].sql,
        {
            "decision_id": found,
            "event_id": event.event_id,
            "supersedes": supersedes,
            "body": canonical_json({**anomaly_body(event), "supersedes": supersedes}),
        },
    ).fetchone()
    is_joined = row is not None and row[0]
    return Opened(
        found,
        is_new=False,
        supersedes=supersedes and is_joined,
        state=record.decision.state,
        is_shadow=record.decision.is_shadow,
    )
