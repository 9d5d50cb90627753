"""What a function meets at its role's bounds: another role's URL, and a batch of retention without a size."""

from contextlib import closing

import pytest
from psycopg import errors
from tests.conftest import PASSWORD, ROLES, TestDatabase

from control_plane.model.errors import ConfigurationError
from control_plane.platform.database import Database, connect


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


@pytest.mark.parametrize("function", ["delete_expired_events", "delete_expired_raw_payloads", "delete_repeated_looks"])
@pytest.mark.parametrize("size", ["NULL", "0", "-1"])
def test_a_batch_without_a_size_is_refused(database: TestDatabase, function: str, size: str) -> None:
    with connect(database.url("acp_maintain"), application_name="test") as connection:
        with pytest.raises(errors.InvalidParameterValue, match="a batch of"):
            connection.execute(f"SELECT {function}(30, {size})".encode())
        connection.execute(f"SELECT {function}(30, 1)".encode())
