"""Fills a test's database with what the page shows: events in every state, letters, decisions, switches, breakers."""

from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from uuid import UUID

import psycopg
from tests.conftest import TestDatabase
from tests.integration import seeds
from tests.integration.decisions import toy
from tests.integration.decisions.world import World, anomaly
from tests.integration.gatekeeper.world import HELD
from tests.integration.gatekeeper.world import World as GateWorld
from tests.integration.ops_api.server import ApiServer
from tests.judgements import AT, market_wide_case

from control_plane.model.lifecycle import Accepted, Failed
from control_plane.platform.database import connect

LONG = "W" * 10_000
HOSTILE = (
    "<img src=x onerror=alert(1)><script>alert(2)</script>",
    "\u202egnp.exe\u202c \u0007\u001b[31m red \u200b",
    "=HYPERLINK(0)",
    LONG,
)
"""What a source may say: markup, text that turns its direction, control characters, a formula, one long word."""


@dataclass
class Seeded:
    """What the database holds."""

    events: list[UUID] = field(default_factory=list)
    decisions: list[UUID] = field(default_factory=list)


def seed(database: TestDatabase) -> Seeded:
    """Stores it all, in the way that the pipeline does."""
    seeded = Seeded()
    with connect(database.app_url, application_name="test") as app:
        seeded.decisions += _decide(database)
        seeded.events += _flow(app)
        seeded.events += _hostile(app)
    return seeded


def _decide(database: TestDatabase) -> list[UUID]:
    """Makes one decision that was scored, and one that a person is asked about."""
    world = World(database, deciding=toy.deciding())
    try:
        world.detect(anomaly())
        world.run()
        scored = world.record().decision.decision_id
    finally:
        world.close()
    with (
        connect(database.owner_url, application_name="test") as owner,
        connect(database.app_url, application_name="test") as app,
        connect(database.url("acp_decide"), application_name="test") as decide,
        connect(database.url("acp_gatekeeper"), application_name="test") as gatekeeper,
    ):
        gate = GateWorld(database, owner, app, decide, gatekeeper)
        for entity in HELD:
            gate.store_bar(80.0, entity=entity, at=AT - timedelta(days=1))
        gate.open_account(entities=HELD)
        proposed = gate.propose(market_wide_case())
        proposed.judge()
    return [scored, proposed.decision_id]


def _flow(app: psycopg.Connection[Any]) -> list[UUID]:
    """Stores ticks: delivered ones, ones given up on, ones that failed once, pending ones."""
    delivered = seeds.store(app, [seeds.tick(minute) for minute in range(30)])
    seeds.settle(app, seeds.claim(app), Accepted("m1"))
    dead = seeds.store(app, [seeds.tick(minute) for minute in range(30, 33)])
    seeds.give_up(app, reason="the queue refused it: MessageTooLong")
    failed = seeds.store(app, [seeds.tick(minute) for minute in range(33, 35)])
    seeds.settle(app, seeds.claim(app), Failed("timed out"))
    return [*delivered, *dead, *failed, *seeds.store(app, [seeds.tick(minute) for minute in range(35, 39)])]


def _hostile(app: psycopg.Connection[Any]) -> list[UUID]:
    """Stores messages that hold each text, and that failed with it."""
    made = []
    for text in HOSTILE:
        made.append(
            seeds.store_body(
                app, {"reason": text, text[:80]: [text]}, topic="system.events", subscriptions=["system_events"]
            )
        )
        seeds.settle(app, seeds.claim(app, subscriptions=["system_events"]), Failed(text))
    return made


def operate(api: ApiServer) -> None:
    """Makes what people make: a token, a hold, a switch that is off, an operation that is planned."""
    api.ask("POST", "/tokens", {"name": "kim", "scopes": ["operate", "approve"], "reason": "kim joins"})
    api.ask("POST", "/subscriptions/system_events/hold", {"reason": "its queue is being moved"})
    api.ask("PUT", "/switches/action:HEDGE", {"is_off": True, "reason": HOSTILE[0]})
    chosen = {"kind": "redrive", "filter": {"subscription": "signal_lab"}, "reason": "the queue takes them again"}
    api.ask("POST", "/operations", chosen)
