"""Runs each scenario once with small numbers: it measures what it says, and leaves nothing behind."""

from __future__ import annotations

import math
import os
import re
import signal
import subprocess
import sys
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

import psutil
import psycopg
import pytest
from moto.server import ThreadedMotoServer
from tests.scratch import scratch_folder

from bench.latency import _latencies
from bench.layouts import LAYOUTS, OUTBOX_ID, claim, settle
from bench.rig import BenchError, Database, Rig, Seed, open_rig
from bench.scenarios import ON_DEMAND, QUICK, SCENARIOS
from bench.throughput import _snapshot
from bench.turns import relay_options, timed
from control_plane.outbox.claims import BEGINNING
from local_cloud.workspace import CHECKOUT, Workspace

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from bench.layouts import Row


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    with scratch_folder() as home:
        yield from _rig(home)


def _rig(home: Path) -> Iterator[Rig]:
    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    try:
        host, port = moto.get_host_and_port()
        with open_rig(Workspace(CHECKOUT, home, home / "state"), endpoint_url=f"http://{host}:{port}") as rig:
            yield rig
    finally:
        moto.stop()
    assert not list(home.iterdir()), "its folder is left"


@pytest.mark.parametrize("name", [name for name in SCENARIOS if name not in ON_DEMAND])
def test_a_scenario_comes_to_figures(rig: Rig, name: str) -> None:
    said: list[str] = []
    measured = SCENARIOS[name](rig, QUICK, said.append)
    assert len(measured.rounds) == 1
    assert said
    assert measured.figures
    assert all(math.isfinite(figure.value) and figure.value > 0 for figure in measured.figures), measured.figures
    with psycopg.connect(rig.server.url()) as connection:
        kept = {name for (name,) in connection.execute("SELECT datname FROM pg_database WHERE datname ~ '^bench'")}
    assert kept == set(rig._templates.values())


def test_a_fresh_database_holds_the_rows_asked_for_each_time(rig: Rig) -> None:
    seed = Seed(pending=30, delivered=20, padding=1_000)
    for _ in range(2):
        with rig.fresh(seed) as database, psycopg.connect(database.admin_url) as connection:
            rows = connection.execute(
                "SELECT state, count(*), min(octet_length(outbox.payload_json::text)) > 1000,"
                " count(DISTINCT event.event_id), count(DISTINCT delivery.next_attempt_at)"
                " FROM outbox_states AS delivery JOIN outbox USING (id)"
                " JOIN events AS event ON event.event_id = outbox.event_id GROUP BY state ORDER BY state"
            ).fetchall()
            assert rows == [("delivered", 20, True, 20, 0), ("pending", 30, True, 30, 2)]
            connection.execute("UPDATE pending_deliveries SET delivery_attempts = 7")
            connection.commit()


def test_a_database_holds_the_messages_of_every_seed_and_subscription(rig: Rig) -> None:
    seeds = (
        Seed(4, delivered=2, subscriptions=("signal_lab", "detector")),
        Seed(3, topic="system.events", subscriptions=("system_events",)),
    )
    with rig.fresh(*seeds) as database, psycopg.connect(database.reader_url) as connection:
        assert connection.execute(
            "SELECT topic, subscription, state, count(*) FROM outbox_states GROUP BY 1, 2, 3 ORDER BY 1, 2, 3"
        ).fetchall() == [
            ("market.ticks", "detector", "delivered", 2),
            ("market.ticks", "detector", "pending", 4),
            ("market.ticks", "signal_lab", "delivered", 2),
            ("market.ticks", "signal_lab", "pending", 4),
            ("system.events", "system_events", "pending", 3),
        ]


@pytest.mark.parametrize("name", LAYOUTS)
def test_only_the_holder_of_a_claim_settles_on_any_layout(rig: Rig, name: str) -> None:
    layout, seed = LAYOUTS[name], Seed(30)
    with rig.fresh(seed) as database:
        if layout.setup is not None:
            with psycopg.connect(database.admin_url, autocommit=True) as connection:
                connection.execute(layout.setup)
        with psycopg.connect(database.relay_url, autocommit=True) as connection:
            token = uuid4()

            def claimed(token: UUID) -> Sequence[Row]:
                return claim(
                    connection,
                    layout,
                    subscription=seed.subscriptions[0],
                    topic=seed.topic,
                    since=BEGINNING,
                    size=20,
                    token=token,
                )

            rows = claimed(token)
            assert len({row[OUTBOX_ID] for row in rows}) == 20
            assert settle(connection, layout, rows, subscription=seed.subscriptions[0], token=uuid4()) == 0
            assert settle(connection, layout, rows, subscription=seed.subscriptions[0], token=token) == 20
            # Settled messages do not come again; the others come next.
            assert {row[OUTBOX_ID] for row in claimed(uuid4())} == set(range(1, 31)) - {row[OUTBOX_ID] for row in rows}


def test_a_pinned_horizon_keeps_what_is_dead(rig: Rig) -> None:
    with rig.fresh(Seed(10)) as database:
        with _snapshot(database), psycopg.connect(database.admin_url, autocommit=True) as connection:
            connection.execute("UPDATE pending_deliveries SET delivery_attempts = 1")
            assert _kept_dead_rows(connection) == 10
        with psycopg.connect(database.admin_url, autocommit=True) as connection:
            assert _kept_dead_rows(connection) == 0


def _kept_dead_rows(connection: psycopg.Connection[tuple[object, ...]]) -> int:
    """Returns the number of dead row versions that VACUUM has to leave."""
    said: list[str] = []
    connection.add_notice_handler(lambda notice: said.append(notice.message_primary or ""))
    connection.execute("VACUUM (VERBOSE) pending_deliveries")
    return sum(map(int, re.findall(r"(\d+) are dead but not yet removable", "\n".join(said))))


def test_a_latency_is_from_the_commit_to_the_arrival(rig: Rig) -> None:
    latencies = _latencies(rig, rate=50, seconds=1)
    assert len(latencies) == 50
    assert all(0 <= latency < 60_000 for latency in latencies)
    assert max(latencies) > 0


def test_a_relay_that_fails_is_quoted(rig: Rig) -> None:
    nowhere = Database("postgresql://acp_relay:x@127.0.0.1:1/none", "", "")
    with pytest.raises(BenchError, match="DatabaseUnavailable"):
        timed(rig, rig.child("measured_relay", nowhere, options=relay_options(60)), 1)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_leaves_nothing_behind(tmp_path: Path, number: signal.Signals) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "acp_cli", "bench", "--scenario", "relays"],
        env={**os.environ, "ACP_HOME": str(tmp_path)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as bench:
        try:
            assert bench.stderr is not None
            assert any("round 1" in line for line in bench.stderr)
            children = psutil.Process(bench.pid).children(recursive=True)
            bench.send_signal(number)
            assert bench.wait(60) == 130, bench.stderr.read()
        finally:
            bench.kill()
    assert children
    assert not psutil.wait_procs(children, timeout=10)[1]
    assert not list(tmp_path.glob("bench-*"))
