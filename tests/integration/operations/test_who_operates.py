"""Who is on record for an operation, and that nobody starts one past its hash, its age or its state, even in SQL."""

from collections.abc import Iterator
from typing import Any
from uuid import UUID, uuid4

import pytest
from psycopg import Connection, errors
from tests.conftest import TestDatabase
from tests.integration.operations.world import World, make_letters

from control_plane.operations import service
from control_plane.operations.kind import Operation, State
from control_plane.platform.database import connect


@pytest.fixture
def person(database: TestDatabase) -> Iterator[Connection[Any]]:
    """A person's login: acp_test is a member of acp_command."""
    with connect(database.url("acp_test"), application_name="test") as connection:
        connection.execute("SET ROLE acp_command")
        yield connection


@pytest.fixture
def planned(world: World, owner: Connection[Any]) -> Operation:
    make_letters(owner, 1)
    return world.plan("redrive", everything=True)


def start(connection: Connection[Any], planned: Operation, plan_hash: str | None = None) -> Any:
    row = connection.execute(
        "SELECT start_operation(%s, %s, 'root', 'why', NULL)", [planned.operation_id, plan_hash or planned.plan_hash]
    ).fetchone()
    assert row is not None
    return row[0]


def request(connection: Connection[Any], kind: str, requester: str | None) -> UUID:
    operation_id = uuid4()
    connection.execute("SELECT request_operation(%s, %s, '', '{}', NULL, %s, 'why')", [operation_id, kind, requester])
    return operation_id


def test_a_person_is_on_record_by_the_login_whatever_name_is_given(
    world: World, person: Connection[Any], planned: Operation, owner: Connection[Any]
) -> None:
    assert world.read(request(person, "redrive", "root")).requested_by == "acp_test"
    assert start(person, planned)
    assert world.read(planned.operation_id).started_by == "acp_test"
    make_letters(owner, 1)
    person.execute("SELECT * FROM discard_dead_letters((SELECT array_agg(id) FROM dead_letters), 'why', 'root', '{}')")
    assert owner.execute("SELECT DISTINCT resolved_by FROM dead_letters").fetchall() == [("acp_test",)]
    assert owner.execute("SELECT requested_by FROM operations WHERE kind = 'discard'").fetchall() == [("acp_test",)]


@pytest.mark.parametrize(
    "forgery",
    [
        "UPDATE operations SET state = 'running', started_by = 'token:root', started_at = now()",
        "UPDATE operations SET planned_at = now()",
        "UPDATE operations SET progress = '{}', rate = 1",
        "INSERT INTO operations (operation_id, kind, filter, requested_by) VALUES (gen_random_uuid(), 'x', '{}', 'x')",
    ],
)
def test_a_person_writes_no_operation_past_the_owners_functions(
    person: Connection[Any], planned: Operation, forgery: str
) -> None:
    with pytest.raises(errors.InsufficientPrivilege):
        person.execute(forgery.encode())


def test_the_database_starts_no_other_plan_no_old_one_and_none_twice(
    world: World, person: Connection[Any], planned: Operation, owner: Connection[Any]
) -> None:
    with pytest.raises(errors.ObjectNotInPrerequisiteState, match="is another one"):
        start(person, planned, "0" * 64)
    owner.execute("UPDATE operations SET planned_at = now() - interval '61 minutes'")
    assert start(person, planned) is False
    assert world.read(planned.operation_id).state is State.PLANNED
    owner.execute("UPDATE operations SET planned_at = now()")
    assert start(person, planned)
    with pytest.raises(errors.ObjectNotInPrerequisiteState, match="is running, and not planned"):
        start(person, planned)


@pytest.mark.parametrize("kind", ["retention", "erasure"])
def test_what_asks_a_token_for_admin_is_not_a_persons_own_to_command(
    person: Connection[Any], owner: Connection[Any], kind: str
) -> None:
    with pytest.raises(errors.InsufficientPrivilege, match=f"may not command a {kind}"):
        request(person, kind, None)
    operation_id = request(owner, kind, "kim")
    for command in ("pause_operation(%s, 'root')", "cancel_operation(%s, 'root', 0)", "resume_operation(%s, 'root')"):
        with pytest.raises(errors.InsufficientPrivilege, match=f"may not command a {kind}"):
            person.execute(f"SELECT {command}".encode(), [operation_id])


def test_the_apis_login_commands_for_tokens_that_may(world: World, owner: Connection[Any]) -> None:
    for name, scopes in (
        ("reader", "{read}"),
        ("operator", "{read,operate}"),
        ("boss", "{read,operate,metrics,admin}"),
    ):
        owner.execute(
            "INSERT INTO api_tokens (name, sha256, scopes, created_by) VALUES (%s, sha256(%s), %s, 'root')",
            [name, name.encode(), scopes],
        )
    for name, kind in (("reader", "redrive"), ("nobody", "redrive"), ("operator", "retention"), ("", "redrive")):
        with pytest.raises(errors.InsufficientPrivilege):
            request(world.command, kind, name)
    assert world.read(request(world.command, "redrive", "operator")).requested_by == "token:operator"
    erasure = request(world.command, "erasure", "boss")
    assert world.read(erasure).requested_by == "token:boss"
    with pytest.raises(errors.InsufficientPrivilege):
        service.cancel_operation(world.command, world.kinds, erasure, by="operator")
    owner.execute("UPDATE api_tokens SET revoked_at = now(), revoked_by = 'root' WHERE name = 'boss'")
    with pytest.raises(errors.InsufficientPrivilege):
        service.cancel_operation(world.command, world.kinds, erasure, by="boss")


def test_no_more_is_taken_back_than_was_done(
    world: World, person: Connection[Any], planned: Operation, owner: Connection[Any]
) -> None:
    start(person, planned)
    person.execute("SELECT cancel_operation(%s, NULL, 7)", [planned.operation_id])
    cancelled = world.read(planned.operation_id)
    assert (cancelled.state, cancelled.done) == (State.CANCELLED, 0)
