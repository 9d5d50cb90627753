"""What a function meets at its role's bounds: another role's URL, and a batch of retention without a size."""

import json
from contextlib import closing
from typing import Any

import pytest
from psycopg import Connection, errors
from tests.conftest import PASSWORD, ROLES, TestDatabase

from control_plane.model.decision_events import DECISION_PAYLOADS
from control_plane.model.errors import ConfigurationError
from control_plane.platform.database import Database, connect
from control_plane.platform.expiry import EXPIRING


def of_function(database: TestDatabase, role: str, given: str) -> closing[Database]:
    """The database of a function that works as ``role``, with the URL of ``given``."""
    return closing(Database(lambda: database.url(given), application_name="test", role=role))


@pytest.mark.parametrize("role", ROLES)
def test_another_roles_url_is_refused_naming_both(database: TestDatabase, role: str) -> None:
    with of_function(database, role, role) as right:
        assert right.connection().info.user == role
    for given in set(ROLES) - {role}:
        with of_function(database, role, given) as wrong, pytest.raises(ConfigurationError) as refused:
            wrong.connection()
        assert f"this function works as {role}, and was given {given}" in str(refused.value)
        assert PASSWORD not in str(refused.value)


def test_a_role_of_another_name_may_be_a_member(database: TestDatabase) -> None:
    for role in ROLES:
        with of_function(database, role, "acp_test") as member:
            assert member.connection().info.user == "acp_test"


def test_a_role_that_does_not_exist_is_named(database: TestDatabase) -> None:
    with of_function(database, "acp_unknown", "acp_test") as unknown, pytest.raises(ConfigurationError) as refused:
        unknown.connection()
    assert "works as acp_unknown, and was given acp_test" in str(refused.value)


@pytest.mark.parametrize("what", [*EXPIRING, "repeated_looks"])
@pytest.mark.parametrize("size", ["NULL", "0", "-1", "10001"])
def test_a_batch_without_a_size_or_of_too_many_rows_is_refused(database: TestDatabase, what: str, size: str) -> None:
    with connect(database.url("acp_maintain"), application_name="test") as connection:
        with pytest.raises(errors.InvalidParameterValue, match="a batch of"):
            connection.execute(f"SELECT delete_expired('{what}', now() - interval '30 days', {size})".encode())
        connection.execute(f"SELECT delete_expired('{what}', now() - interval '30 days', 1)".encode())


def test_an_operation_that_is_none_deletes_nothing(database: TestDatabase) -> None:
    with (
        connect(database.url("acp_maintain"), application_name="test") as connection,
        pytest.raises(errors.ObjectNotInPrerequisiteState, match="no retention"),
    ):
        connection.execute("SELECT delete_expired('audit', now() - interval '30 days', 1, gen_random_uuid())")


TOLD_BY = {
    "acp_detect": {"ANOMALY_DETECTED"},
    "acp_decide": {
        "DECISION_OPENED", "AGENT_CALL_REQUESTED", "HYPOTHESIS_PROPOSED", "IMPACT_SIMULATED", "DECISION_PROPOSED",
        "VERDICT_REQUESTED", "APPROVAL_EXPIRED", "OUTCOME_OBSERVED", "DECISION_ABANDONED", "DECISION_WOKEN",
        "ANOMALY_OVERLOOKED",
    },
    "acp_gatekeeper": {"ACTION_REFUSED", "APPROVAL_REQUESTED", "ACTION_RELEASED"},
}  # fmt: skip


@pytest.mark.parametrize("role", TOLD_BY)
def test_a_role_tells_its_own_events_alone(database: TestDatabase, role: str) -> None:
    """APPROVAL_GIVEN, SWITCH_SET and the like are told by the owner's functions, which do what they say."""
    types = ["", "MARKET_TICK", *(payload.event_type for payload in DECISION_PAYLOADS)]
    with connect(database.url(role), application_name="test") as connection:
        said = {event_type: refusal(connection, event_type) for event_type in types}
    assert {one for one, reason in said.items() if "not those of an event" in reason} == TOLD_BY[role]
    others = set(types) - TOLD_BY[role]
    assert all(f"is not for {role} to tell" in said[one] for one in others)


def refusal(connection: Connection[Any], event_type: str) -> str:
    """Why the database refuses an event of this type that is not whole."""
    given = [{"topic": "decisions.events", "message": {"event_type": event_type, "source": "decisions"}}]
    with pytest.raises((errors.InsufficientPrivilege, errors.CheckViolation)) as refused:
        connection.execute("SELECT * FROM insert_decision_events(%s::json)", [json.dumps(given)])
    return str(refused.value)
