"""Prepares every named query on a real Postgres."""

import ast
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from psycopg import Connection
from tests.conftest import TEMPLATE
from tests.conftest import _database as new_database
from tests.integration import seeds

import control_plane
import domains
from control_plane.platform.database import connect
from control_plane.platform.queries import load_queries
from local_cloud.postgres import PostgresServer

CORE = Path(control_plane.__path__[0]).parent
CODE = (CORE / "control_plane", Path(domains.__path__[0]))
PACKAGES = sorted(
    path.parent.relative_to(CORE).as_posix().replace("/", ".") for root in CODE for path in root.rglob("queries.sql")
)
QUERIES = {f"{package}.{name}": query for package in PACKAGES for name, query in load_queries(package).items()}


def sources() -> Iterator[Path]:
    for root in CODE:
        yield from root.rglob("*.py")


def test_the_packages_with_statements_are_found() -> None:
    wanted = {"control_plane.consumers", "control_plane.ingestion", "control_plane.ops", "control_plane.outbox"}
    assert wanted | {"domains.finance"} <= set(PACKAGES)


@pytest.fixture(scope="module")
def connection(postgres: PostgresServer) -> Iterator[Connection[Any]]:
    """The owner's, to a database that all tests here share: none changes anything."""
    with (
        contextmanager(new_database)(postgres, template=TEMPLATE) as database,
        connect(database.owner_url, application_name="test") as connection,
    ):
        yield connection


@pytest.mark.parametrize("name", QUERIES)
def test_postgres_can_prepare_each_query(connection: Connection[Any], name: str) -> None:
    if QUERIES[name].sql.startswith("LOCK "):  # This statement cannot be prepared.
        with connection.transaction():
            connection.execute(QUERIES[name].sql)
    else:
        seeds.prepare(connection, QUERIES[name])
        connection.execute("DEALLOCATE checked")


@pytest.mark.parametrize("name", QUERIES)
def test_each_query_says_what_it_is_for(name: str) -> None:
    assert re.match(r"[A-Z].{20,}[.:]", QUERIES[name].description), QUERIES[name].description


@pytest.mark.parametrize("name", QUERIES)
def test_the_code_uses_each_query(name: str) -> None:
    quoted = f'"{name.rpartition(".")[2]}"'
    assert any(quoted in path.read_text(encoding="utf-8") for path in sources())


def test_a_name_given_twice_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "twice"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "queries.sql").write_text("-- name: one\nSELECT 1\n\n-- name: one\nSELECT 2\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match="names one twice"):
        load_queries("twice")


def test_no_statement_hides_in_python() -> None:
    # The connection and the migrations must work on a database that has no schema yet.
    allowed = {"control_plane/ops/migrations.py", "control_plane/platform/database.py"}
    hidden = {
        path.relative_to(CORE).as_posix()
        for path in sources()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and re.match(r"\s*(SELECT|INSERT|UPDATE|DELETE|WITH)\s", str(node.value))
    }
    assert hidden <= allowed
