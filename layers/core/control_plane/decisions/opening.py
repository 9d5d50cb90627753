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
from control_plane.model.deciding import Agent, Deciding, Decision, Playbook, decision_id
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


def find_playbook(deciding: Mapping[str, Deciding], anomaly: Mapping[str, Any]) -> tuple[str, Playbook] | None:
    """Returns the first playbook that handles an anomaly, with its domain's name; None where no one does."""
    return next(
        (
            (domain, playbook)
            for domain, plug_ins in deciding.items()
            for playbook in plug_ins.playbooks
            if playbook.handles(anomaly)
        ),
        None,
    )


def open_or_join(
    connection: Connection[Any],
    event: Event,
    domain: str,
    playbook: Playbook,
    *,
    is_shadow: bool,
    now: datetime,
    agents: Sequence[Agent] = (),
) -> Opened | None:
    """Opens the decision of an ANOMALY_DETECTED, or, where its instant has one, puts the event on that one's record.

    ``agents`` are those that the decision may call: their versions are pinned.
    None: an anomaly was withdrawn that no decision was opened for. Raises psycopg.Error.
    """
    found = decision_id(
        source=event.payload["observed_source"],
        entity_id=event.entity_id or "",
        series=event.payload["series"],
        occurred_at=canonical_instant(event.occurred_at),
        kind=event.payload["kind"],
        playbook=playbook.name,
    )
    if (joined := _join(connection, found, event)) is not None:
        return joined
    if event.payload["is_withdrawn"]:
        return None
    with connection.transaction():
        pins = _pin(connection, playbook, agents)
        if _open(connection, found, event, domain, playbook, pins=pins, is_shadow=is_shadow, now=now):
            return Opened(found, is_new=True)
    return _join(connection, found, event)  # another opened it meanwhile


def anomaly_body(event: Event) -> dict[str, Any]:
    """What the record says of an anomaly."""
    return {
        "event_id": str(event.event_id),
        "entity_id": event.entity_id,
        "occurred_at": canonical_instant(event.occurred_at),
        "payload": dict(event.payload),
    }


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
) -> bool:
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
        budget_micros=playbook.limits.budget_micros,
        opened_at=now,
    )
    columns = {name: getattr(decision, name) for name in Decision.__slots__}
    row = connection.execute(QUERIES["open_decision"].sql, columns).fetchone()
    if row is None or not row[0]:
        return False
    # Held for the rest of this transaction: nobody else can see it before.
    claim = connection.execute(
        QUERIES["claim_decision"].sql, {"decision_id": found, "claimant": "opening", "lease_seconds": 60}
    ).fetchone()
    assert claim is not None
    held = {"decision_id": found, "fence": claim[0]}
    connection.execute(
        QUERIES["advance_decision"].sql,
        {
            **held,
            "kind": "anomaly",
            "parent": 0,
            "body": canonical_json(anomaly_body(event)),
            "hashes": [],
            "kinds": [],
            "contents": [],
            "output_sha256": None,
            "state": None,
            "lease_seconds": 60,
            "seen_seq": None,
            "events": as_json([announcements.opened(decision, now)]),
        },
    )
    connection.execute(QUERIES["leave_decision"].sql, {**held, "wake_seq": 0})
    return True


def _pin(connection: Connection[Any], playbook: Playbook, agents: Sequence[Agent]) -> bytes:
    """Stores what the playbook decides with, each piece once by its hash; agents' versions too."""
    sources = playbook.sources()
    pinned = {name: sha256(content).hex() for name, content in sources.items()}
    versions = {agent.name: agent.version for agent in agents}
    pins = canonical_json(
        {"playbook": playbook.name, "version": playbook.version, "sources": pinned, "agents": versions}
    )
    name = sha256(pins)
    # The list is stored with what it lists, in one transaction: where it is, so are they.
    if connection.execute(QUERIES["artifacts"].sql, {"hashes": [name]}).fetchone() is None:
        store_artifacts(connection, [*(("source", content) for content in sources.values()), ("pins", pins)])
    return name


def _join(connection: Connection[Any], found: UUID, event: Event) -> Opened | None:
    record = load_record(connection, found)
    if record is None:
        return None
    trigger = record.last("anomaly")
    if trigger is None or trigger.body["event_id"] == str(event.event_id):
        return Opened(found, is_new=False, state=record.decision.state)
    payload = event.payload
    supersedes = payload["is_withdrawn"] or payload["bar_revision"] > trigger.body["payload"]["bar_revision"]
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
    return Opened(found, is_new=False, supersedes=supersedes and is_joined, state=record.decision.state)
