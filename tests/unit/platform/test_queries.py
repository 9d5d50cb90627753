"""The loader of ``queries.sql`` files, and a check that every such file can be loaded."""

from pathlib import Path

import pytest

import control_plane
from control_plane.platform.queries import load_queries


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """The name of a package whose queries.sql holds the test's parameter."""
    name = f"queries_of_{request.node.name.split('[')[0]}"
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").touch()
    (tmp_path / name / "queries.sql").write_text(request.param, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    return name


TWO = """\
-- What is before the first name belongs to no query.

-- name: first
-- Says what it does,
-- on two lines.
SELECT 1
-- a comment inside
FROM numbers
WHERE n = %(n)s

-- name: second
SELECT 2
"""


@pytest.mark.parametrize("package", [TWO], indirect=True)
def test_queries_are_loaded_by_name_with_their_description(package: str) -> None:
    queries = load_queries(package)
    assert list(queries) == ["first", "second"]
    assert queries["first"].name == "first"
    assert queries["first"].description == "Says what it does, on two lines."
    assert queries["first"].sql == "SELECT 1\n-- a comment inside\nFROM numbers\nWHERE n = %(n)s"
    assert queries["second"].description == ""
    assert queries["second"].sql == "SELECT 2"


@pytest.mark.parametrize("package", ["-- name: one\nSELECT 1\n\n-- name: one\nSELECT 2\n"], indirect=True)
def test_a_name_given_twice_is_refused(package: str) -> None:
    with pytest.raises(ValueError, match=r"/queries.sql names one twice"):
        load_queries(package)


@pytest.mark.parametrize(
    "package", ["-- name: empty\n-- Says much, does nothing.\n\n-- name: next\nSELECT 1\n"], indirect=True
)
def test_a_name_without_a_statement_is_refused(package: str) -> None:
    with pytest.raises(ValueError, match=r"/queries.sql: empty has no statement"):
        load_queries(package)


FILES = sorted(Path(control_plane.__path__[0]).rglob("queries.sql"))


def test_there_are_query_files() -> None:
    assert FILES


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.parent.name)
def test_every_query_of_the_layer_is_described(path: Path) -> None:
    package = path.parent.relative_to(control_plane.__path__[0])
    queries = load_queries(".".join(("control_plane", *package.parts)))
    assert queries
    assert [name for name, query in queries.items() if not query.description] == []
