"""Runs each peer once with few messages, where `acp bench peers` has installed them; it takes the network to do so."""

from collections.abc import Iterator

import psycopg
import pytest

from bench.peering import FUNCTION, SIDES, Peers, _install, _measured
from bench.rig import Rig, Seed, open_rig
from local_cloud.workspace import CHECKOUT, Workspace

WORKSPACE = Workspace(CHECKOUT, CHECKOUT / ".acp", CHECKOUT / ".acp" / "state")
pytestmark = pytest.mark.skipif(
    not (WORKSPACE.venvs / "peers" / "npm" / ".lock").exists(),
    reason="the peers are not installed: scripts/acp bench peers --quick does it",
)
PEERS = [name for name, side in SIDES.items() if side.to == FUNCTION]
TABLES = {"graphile_worker": "graphile_worker.jobs", "pgqueuer": "pgqueuer", "faststream_outbox": "peer_outbox"}
"""Where a peer's messages are until they are handled."""


@pytest.fixture(scope="module")
def installed() -> Peers:
    return _install(WORKSPACE, lambda _: None)


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    home = tmp_path_factory.mktemp("bench")
    with open_rig(Workspace(CHECKOUT, home, home / "state")) as rig:
        yield rig


@pytest.mark.parametrize("name", PEERS)
def test_a_peer_has_handled_every_message_when_it_says_so(rig: Rig, installed: Peers, name: str) -> None:
    with rig.fresh(Seed(700)) as database:
        report = _measured(rig, installed, name, database, 700)
        assert report["result"] == {"published": 700}
        assert report["cpu_seconds"] > 0
        with psycopg.connect(database.admin_url) as connection:
            assert connection.execute(f"SELECT count(*) FROM {TABLES[name]}").fetchone() == (0,)
