"""db/schema.sql is what the migrations add up to, as the wheel's PostgreSQL 18 writes it."""

from pathlib import Path

import psycopg
import pytest

from local_cloud import generated

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def dumped() -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACP_POSTGRES_BIN", "/nonexistent")  # The server of the other tests is not used.
        return generated.schema_sql()


def test_the_checked_in_schema_equals_all_migrations_applied(dumped: str) -> None:
    assert (ROOT / generated.SCHEMA_SQL).read_text(encoding="utf-8") == dumped, "run `scripts/generate`"


def test_the_schema_holds_nothing_that_differs_from_dump_to_dump(dumped: str) -> None:
    comments = [line for line in dumped.splitlines() if line.startswith("--")]
    assert comments == [dumped.splitlines()[0]]
    assert "\n\\" not in dumped  # psql's own commands
    assert "\nSET " not in dumped


def test_check_names_the_stale_file_and_its_remedy(
    dumped: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(generated, "schema_sql", lambda: dumped)
    (tmp_path / "docs").mkdir()
    for path in ("template.yaml", generated.DEPLOY_DOC):  # The table of parameters is made of this.
        (tmp_path / path).write_bytes((ROOT / path).read_bytes())

    assert generated.main([], tmp_path) == 0
    assert "db/schema.sql written" in capsys.readouterr().out
    assert generated.main(["--check"], tmp_path) == 0

    (tmp_path / generated.SCHEMA_SQL).write_text("-- edited by hand\n")
    assert generated.main(["--check"], tmp_path) == 1
    complaint = capsys.readouterr().err
    assert complaint.startswith("db/schema.sql is out of date")
    assert "scripts/generate" in complaint


def test_a_new_parameter_makes_the_table_stale(
    dumped: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(generated, "schema_sql", lambda: dumped)
    (tmp_path / "docs").mkdir()
    for path in ("template.yaml", generated.DEPLOY_DOC):
        (tmp_path / path).write_bytes((ROOT / path).read_bytes())
    assert generated.main([], tmp_path) == 0
    assert generated.main(["--check"], tmp_path) == 0
    template = (tmp_path / "template.yaml").read_text(encoding="utf-8")
    added = "\nParameters:\n  Colour:\n    Type: String\n    Default: red\n    Description: Of the page.\n"
    (tmp_path / "template.yaml").write_text(template.replace("\nParameters:\n", added), encoding="utf-8")
    assert generated.main(["--check"], tmp_path) == 1
    assert capsys.readouterr().err.startswith("docs/deploy.md is out of date")
    assert generated.main([], tmp_path) == 0
    assert "| Colour | `red` | a text | Of the page. |" in (tmp_path / generated.DEPLOY_DOC).read_text("utf-8")


def test_the_schema_can_be_read_into_an_empty_database(dumped: str, empty_database: object) -> None:
    with psycopg.connect(empty_database.admin_url, autocommit=True) as connection:  # type: ignore[attr-defined]  # conftest's TestDatabase
        connection.execute(dumped.encode())
        tables = connection.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'").fetchone()
    assert tables is not None
    assert tables[0] >= 8
