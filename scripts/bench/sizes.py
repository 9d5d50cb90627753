"""How much each scenario measures."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much each scenario measures; durations are in seconds."""

    rounds: int = 5
    events: int = 20_000
    emulated_events: int = 10_000
    small_backlog: int = 10_000
    large_backlog: int = 1_000_000
    """The large backlog: so many deliveries are pending, and as many are delivered already."""
    backlog_seconds: float = 5
    latency_seconds: float = 10
    latency_rate: int = 50
    neighbour_seconds: float = 8
    """How long each case of a neighbour takes."""
    cold_starts: int = 4
    """Processes started per round and side."""
    large_bodies: int = 200
    idle_seconds: float = 10
    single_decisions: int = 100
    """Decisions of a round that are made one after the other."""
    decisions: int = 300
    """Decisions of a round that workers make side by side."""
    consumed: int = 3_000
    """Messages that a consumer takes one batch after the other."""
    burst: int = 500
    """Messages that are committed together where a simulation is checked."""
    bursts: int = 4
    simulated_minutes: int = 20
    rebuilt_events: int = 2_000_000
    """Events that the one rebuild folds."""
    replayed: int = 50_000
    """Messages that a replay sends again beside the live flow."""
    alone_seconds: float = 30
    """How long the live flow is measured without a replay, at most."""
    looks: int = 50_000
    """Looks that are stored in a turn of ingest."""
    stored_before: int = 10_000
    stored_before_large: int = 2_000_000
    read_messages: int = 200_000
    """Messages in the outbox of the large database that is read."""
    reads: int = 300
    not_folded: int = 50_000
    """Rows of an hour in which nothing was folded, that a scrape adds up."""
    scrapes: int = 200


QUICK = Sizes(
    rounds=1,
    events=1_000,
    emulated_events=100,
    small_backlog=1_000,
    large_backlog=5_000,
    latency_seconds=1,
    neighbour_seconds=1,
    cold_starts=1,
    large_bodies=20,
    idle_seconds=1,
    single_decisions=10,
    decisions=10,
    consumed=100,
    burst=50,
    bursts=2,
    simulated_minutes=2,
    rebuilt_events=2_000,
    replayed=500,
    alone_seconds=2,
    looks=1_000,
    stored_before=100,
    stored_before_large=1_000,
    read_messages=1_000,
    reads=5,
    not_folded=1_000,
    scrapes=10,
)
"""Sizes that only show whether everything works; the figures mean nothing."""
