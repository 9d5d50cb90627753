"""All scenarios by name. A scenario is a function that gets a rig, the sizes and a way to show progress, and measures.

A scenario compares two or more sides. They take turns (A B A B …), each turn in new processes, on a database that
starts in the same state.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from bench import (
    counters,
    deciding,
    footprint,
    ingesting,
    latency,
    peering,
    reading,
    rebuilding,
    replaying,
    scaling,
    storage,
    throughput,
)
from bench.figures import Measured
from bench.rig import Rig
from bench.sizes import QUICK, Sizes

__all__ = ["ON_DEMAND", "QUICK", "SCENARIOS", "Scenario", "Sizes"]

type Scenario = Callable[[Rig, Sizes, Callable[[str], object]], Measured]

SCENARIOS: Mapping[str, Scenario] = {
    "publishing": throughput.publishing,
    "publishing-localstack": throughput.publishing_localstack,
    "claiming": throughput.claiming,
    "layouts": storage.layouts,
    "subscriptions": storage.subscriptions,
    "backlog": throughput.backlog,
    "pinned-horizon": throughput.pinned,
    "latency": latency.latency,
    "neighbours": latency.neighbours,
    "cold-start": footprint.cold_start,
    "cold-start-deciding": footprint.cold_start_deciding,
    "memory": footprint.memory,
    "idle": footprint.idle,
    "relays": throughput.relays,
    "deciding": deciding.deciding,
    "decisions": deciding.decisions,
    "ingest": ingesting.ingest,
    "scaling": scaling.scaling,
    "reading": reading.reading,
    "replay": replaying.replaying,
    "rebuild": rebuilding.rebuild,
    "counters": counters.counters,
    "peers": peering.peers,
}

ON_DEMAND = frozenset({"peers"})
"""Scenarios that are measured only where they are named, because they install other software."""
