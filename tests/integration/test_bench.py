"""Each scenario once with small numbers: that it measures what it says, and leaves nothing behind."""

from __future__ import annotations

import math
import os
import re
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import psutil
import psycopg
import pytest
from moto.server import ThreadedMotoServer

from bench.rig import BenchError, Database, Rig, Seed, open_rig
from bench.scenarios import QUICK, SCENARIOS, _latencies, _relay, _snapshot, _timed
from local_cloud.workspace import CHECKOUT, Workspace

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    home = tmp_path_factory.mktemp("bench")
    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    try:
        host, port = moto.get_host_and_port()
        with open_rig(Workspace(CHECKOUT, home, home / "state"), endpoint_url=f"http://{host}:{port}") as rig:
            yield rig
    finally:
        moto.stop()
    assert not list(home.iterdir()), "its folder is left"


@pytest.mark.parametrize("name", SCENARIOS)
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
        with rig.fresh(seed) as database, psycopg.connect(database.app_url) as connection:
            rows = connection.execute(
                "SELECT state, count(*), min(octet_length(promise.payload_json::text)) > 1000,"
                " count(DISTINCT event.event_id), count(DISTINCT promise.next_attempt_at)"
                " FROM outbox_states AS promise JOIN events AS event USING (event_id) GROUP BY state ORDER BY state"
            ).fetchall()
            assert rows == [("delivered", 20, True, 20, 1), ("pending", 30, True, 30, 2)]
            connection.execute("UPDATE outbox SET delivery_attempts = 7")
            connection.commit()


def test_a_pinned_horizon_keeps_what_is_dead(rig: Rig) -> None:
    with rig.fresh(Seed(10)) as database:
        with _snapshot(database), psycopg.connect(database.admin_url, autocommit=True) as connection:
            connection.execute("UPDATE outbox SET delivery_attempts = 1")
            assert _kept_dead_rows(connection) == 10
        with psycopg.connect(database.admin_url, autocommit=True) as connection:
            assert _kept_dead_rows(connection) == 0


def _kept_dead_rows(connection: psycopg.Connection[tuple[object, ...]]) -> int:
    """Dead row versions that VACUUM has to leave."""
    said: list[str] = []
    connection.add_notice_handler(lambda notice: said.append(notice.message_primary or ""))
    connection.execute("VACUUM (VERBOSE) outbox")
    return sum(map(int, re.findall(r"(\d+) are dead but not yet removable", "\n".join(said))))


def test_a_latency_is_from_the_commit_to_the_arrival(rig: Rig) -> None:
    latencies = _latencies(rig, QUICK)
    assert len(latencies) == QUICK.latency_rate * QUICK.latency_seconds
    assert all(0 <= latency < 60_000 for latency in latencies)
    assert max(latencies) > 0


def test_a_relay_that_fails_is_quoted(rig: Rig) -> None:
    nowhere = Database("postgresql://acp_app:x@127.0.0.1:1/none", "")
    with pytest.raises(BenchError, match="DatabaseUnavailable"):
        _timed(rig, rig.child("measured_relay", nowhere, options=_relay(60)), 1)


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
