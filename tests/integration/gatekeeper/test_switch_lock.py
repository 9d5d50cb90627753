"""How long a person waits for a switch: no stream of releases starves it, and what froze holds it up but briefly."""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from psycopg import Connection, errors
from tests.checkout import ROOT
from tests.conftest import ROLES
from tests.integration import seeds
from tests.integration.gatekeeper.world import World

from control_plane.decisions.switches import set_switch
from control_plane.platform.database import connect
from control_plane.platform.session import SESSION_LOST


@contextmanager
def switching(world: World) -> Iterator[threading.Thread]:
    """A person who switches all off, and waits until the lock is theirs."""
    with connect(world.database.owner_url, application_name="person") as person:
        thread = threading.Thread(target=lambda: set_switch(person, "all", off=True))
        thread.start()
        try:
            seeds.wait_until_waiting(world.database, "person")
            yield thread
        finally:
            thread.join(timeout=60)


def share(connection: Connection[Any]) -> list[str]:
    """What is off, as the gatekeeper asks for it in the transaction of a release."""
    connection.execute("SET LOCAL lock_timeout = '200ms'")
    row = connection.execute("SELECT switched_off(%s, 'HEDGE')", [uuid4()]).fetchone()
    assert row is not None
    return list(row[0])


def test_a_switch_is_not_starved_by_overlapping_releases(world: World) -> None:
    with world.as_role("acp_gatekeeper") as first, world.as_role("acp_gatekeeper") as second:
        with first.transaction():
            share(first)
            with switching(world) as person:
                first.execute("SET LOCAL idle_in_transaction_session_timeout = '60s'")
                with pytest.raises(errors.LockNotAvailable), second.transaction():
                    share(second)
                assert person.is_alive()
                first.execute("COMMIT")
        with second.transaction():
            share(second)
    assert world.owner.execute("SELECT is_off FROM switches").fetchone() == (True,)


def test_a_frozen_release_holds_a_switch_up_briefly(world: World) -> None:
    with world.as_role("acp_gatekeeper") as frozen:
        frozen.execute("BEGIN")
        share(frozen)
        with switching(world) as person:
            person.join(timeout=20)
            assert not person.is_alive()
        with pytest.raises(SESSION_LOST):
            frozen.execute("SELECT 1")
    assert world.owner.execute("SELECT is_off FROM switches").fetchone() == (True,)


def test_no_role_can_hold_a_switch_up_by_itself(world: World) -> None:
    for role in ROLES:
        with world.as_role(role) as connection:
            for mode in ("ACCESS SHARE", "ROW SHARE", "EXCLUSIVE"):
                with pytest.raises(errors.InsufficientPrivilege), connection.transaction():
                    connection.execute(f"LOCK TABLE switch_lock IN {mode} MODE".encode())


def test_a_switch_that_waits_too_long_is_not_set(world: World) -> None:
    with world.as_role("acp_gatekeeper") as other, other.transaction():
        share(other)
        with pytest.raises(psycopg.errors.LockNotAvailable):
            set_switch(world.owner, "all", off=True, most_seconds=0.05)
    assert world.owner.execute("SELECT FROM switches").fetchall() == []


def test_the_documented_statements_switch_all_off(world: World) -> None:
    page = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    [off, holders] = re.findall(r"```sql\n([^`]*switch_lock[^`]*)```", page)
    world.owner.execute(off.encode())
    assert world.propose().judge().reasons == ("switch: all is switched off",)
    with world.gatekeeper.transaction():
        share(world.gatekeeper)
        [(pid, role, *_)] = world.owner.execute(holders.encode()).fetchall()
    assert (pid, role) == (world.gatekeeper.info.backend_pid, "acp_gatekeeper")
    set_switch(world.owner, "all", off=False)
    assert world.propose(entity="MSFT").judge().is_released
