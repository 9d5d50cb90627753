"""acp audit on a real Postgres, with a superuser who changes what is on record; the cloud around it is a stand-in."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import Connection
from tests.conftest import TestDatabase
from tests.integration.decisions.finance import SOURCE, tick
from tests.integration.decisions.released import release
from tests.integration.decisions.test_audit import history
from tests.integration.decisions.world import World, anomaly
from tests.integration.running_cloud import RunningCloud, run

from control_plane.ingestion.store import store_events
from control_plane.platform.database import connect
from domains.finance import paper_account, signal_lab


@pytest.fixture
def superuser(database: TestDatabase) -> Iterator[Connection[Any]]:
    with psycopg.connect(database.admin_url, autocommit=True) as connection:
        connection.execute("SET session_replication_role = replica")
        yield connection


@pytest.fixture
def log(world: World, tmp_path: Path) -> Path:
    """The log after decisions of every kind were anchored, with lines of another kind in it."""
    file = tmp_path / "timers.log"
    lines = [json.dumps({"message": "anchored", **line}) for line in history(world)]
    file.write_text("\n".join(["START RequestId: 1", *lines, '{"message": "timers fired"}']))
    return file


def test_a_record_as_it_was_is_clean(cloud: RunningCloud, world: World, log: Path) -> None:
    result = run(cloud, "audit", "verify", "--log", str(log))
    assert result.exit_code == 0, result.output
    assert "Nothing was changed in 3 decisions" in result.stderr
    assert f"Held against 1 anchors of {log}" in result.stderr
    assert "newer than the last anchor" not in result.stderr
    world.detect(anomaly(entity="D"))
    world.run()
    newer = run(cloud, "audit", "verify")
    assert newer.exit_code == 0
    assert "steps are newer than the last anchor: changes by one who may write" in newer.stderr
    assert "Not held against a log, for the stack has no TimersFunction" in newer.stderr


def test_a_changed_step_is_named(cloud: RunningCloud, log: Path, superuser: Connection[Any]) -> None:
    row = superuser.execute(
        "UPDATE decision_steps SET body = '{}' WHERE ctid ="
        " (SELECT ctid FROM decision_steps WHERE kind = 'proposal' LIMIT 1) RETURNING decision_id, seq"
    ).fetchone()
    assert row is not None
    result = run(cloud, "audit", "verify", "--log", str(log))
    assert result.exit_code == 1
    assert f"decision_steps  decision {row[0]}\n  step {row[1]} is not what was hashed" in result.stdout
    told = json.loads(run(cloud, "audit", "verify", "--json").stdout)
    assert not told["is_clean"]
    assert {finding["decision_id"] for finding in told["findings"]} == {str(row[0])}


def test_a_deleted_row_names_its_step(cloud: RunningCloud, log: Path, superuser: Connection[Any]) -> None:
    row = superuser.execute("DELETE FROM approvals RETURNING decision_id").fetchone()
    assert row is not None
    seq = superuser.execute(
        "SELECT seq FROM decision_steps WHERE decision_id = %s AND kind = 'approval'", row
    ).fetchone()
    assert seq is not None
    result = run(cloud, "audit", "verify", "--log", str(log))
    assert (result.exit_code, f"the row that step {seq[0]} tells of is gone" in result.stdout) == (1, True)


def test_rewritten_anchors_are_held_against_the_log(cloud: RunningCloud, log: Path, superuser: Connection[Any]) -> None:
    superuser.execute("DELETE FROM anchors")
    superuser.execute("UPDATE decisions SET anchored_seq = -1")
    assert run(cloud, "audit", "verify").exit_code == 0
    result = run(cloud, "audit", "verify", "--log", str(log))
    assert (result.exit_code, "is not what the log says, or is gone" in result.stdout) == (1, True)


def test_a_log_that_cannot_be_read_is_refused(cloud: RunningCloud, tmp_path: Path) -> None:
    result = run(cloud, "audit", "verify", "--log", str(tmp_path / "none"))
    assert (result.exit_code, "--log takes a file" in result.stderr) == (2, True)


@pytest.mark.parametrize(
    ("change", "finding"),
    [
        ("UPDATE paper_accounts SET cash_micros = cash_micros + 1", "paper_accounts"),
        ("UPDATE paper_positions SET quantity_micros = 0 WHERE entity_id = 'IBM'", "paper_positions"),
        ("UPDATE paper_orders SET fill_price_micros = fill_price_micros + 1", "and its bar opened at"),
        ("UPDATE paper_orders SET side = 'buy'", "is not what was released: side"),
        ("DELETE FROM paper_orders", "is gone"),
        ("DELETE FROM executions", "was not executed, and has an order"),
    ],
)
def test_the_paper_account_is_reconciled(
    cloud: RunningCloud, database: TestDatabase, superuser: Connection[Any], change: str, finding: str
) -> None:
    with connect(database.url("acp_ingest"), application_name="test") as ingest, ingest.transaction():
        looks = [tick(price, entity="AAPL", minute=minute) for minute, price in enumerate((100.0, 101.5))]
        first, second = (found.event for found in store_events(ingest, [], looks).looks)
    assert first is not None
    assert second is not None
    with connect(database.url("acp_consume"), application_name="test") as prices:
        signal_lab.consume(prices, first)
        released = release(database, {"source": SOURCE})
        with connect(database.url("acp_action"), application_name="test") as client:
            paper_account.consume(client, released.event)
        signal_lab.consume(prices, second)
    assert "Accounts: they add up" in run(cloud, "audit", "verify").stderr
    superuser.execute(change.encode())
    result = run(cloud, "audit", "verify")
    assert result.exit_code == 1
    assert finding in result.stdout
