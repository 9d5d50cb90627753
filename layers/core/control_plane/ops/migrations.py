"""Applies the numbered SQL files of db/migrations; docs/decisions/0003 says why this uses no library."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, LiteralString

from psycopg import Connection

from control_plane.model.errors import ControlPlaneError
from control_plane.platform.database import OLDER_LAYOUT, REFUSED_LAYOUT

_FILE_NAME = re.compile(r"^(\d{4})_([a-z0-9_]+)\.sql$")
_LOCK_KEY = 0x6163_705F_6462  # "acp_db" in ASCII; all that matters is that every runner uses the same number


class MigrationError(ControlPlaneError):
    """Raised when the files on disk, or the release's playbooks, and the database's history contradict each other."""


@dataclass(frozen=True, slots=True)
class Migration:
    """One file: ``0001_name.sql``."""

    version: int
    name: str
    sql: LiteralString
    """The file's text. It is trusted like a literal, because the file belongs to this repository."""

    @property
    def checksum(self) -> str:
        """SHA-256 of the text, hexadecimal."""
        return hashlib.sha256(self.sql.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class MigrationReport:
    """What a run did: the versions it applied, in order, and the version the database is at now."""

    applied: tuple[int, ...]
    version: int


def read_migrations(directory: Path) -> Sequence[Migration]:
    """Returns a folder's migrations in order. Raises MigrationError for a foreign file, a gap or a repeated number."""
    migrations = []
    for path in sorted(path for path in directory.iterdir() if not path.name.startswith(".")):
        match = _FILE_NAME.match(path.name)
        if match is None:
            raise MigrationError(f"{path.name} is no migration: name it like 0001_what_it_does.sql")
        migrations.append(Migration(int(match[1]), match[2], path.read_text(encoding="utf-8")))
    if [migration.version for migration in migrations] != list(range(1, len(migrations) + 1)):
        raise MigrationError(f"the numbers in {directory.name}/ must run from 0001 without a gap, each used once")
    return migrations


def migrate(connection: Connection[Any], migrations: Sequence[Migration]) -> MigrationReport:
    """Applies the missing migrations, each in a transaction of its own; a second run changes nothing.

    ``connection`` is the owner's, in autocommit mode. Concurrent runs wait for each other. Raises MigrationError if the
    database has an older layout or if an applied file was edited. Raises psycopg.Error if a file fails; that file is
    rolled back.
    """
    applied = []
    for migration in migrations:
        with connection.transaction():
            connection.execute("SELECT pg_advisory_xact_lock(%s)", [_LOCK_KEY])
            name, checksum = _applied(connection, migration.version) or (None, None)
            if (migration.version, name) == (1, OLDER_LAYOUT):
                raise MigrationError(REFUSED_LAYOUT)
            if checksum is None:
                connection.execute(migration.sql)
                connection.execute(
                    "INSERT INTO schema_migrations (version, name, checksum) VALUES (%s, %s, %s)",
                    [migration.version, migration.name, migration.checksum],
                )
                # Every function reads this table to compare the schema's version with its own, even before the
                # migration of the roles.
                connection.execute("GRANT SELECT ON schema_migrations TO PUBLIC")
                applied.append(migration.version)
            elif checksum != migration.checksum:
                raise MigrationError(
                    f"migration {migration.version:04} ({migration.name}) was edited after it was applied: "
                    "restore the file and put the change into a new one"
                )
    row = connection.execute("SELECT coalesce(max(version), 0) FROM schema_migrations").fetchone()
    assert row is not None
    return MigrationReport(tuple(applied), row[0])


def _applied(connection: Connection[Any], version: int) -> tuple[str, str] | None:
    """Returns the name and checksum of an applied migration, or None if it is not applied."""
    connection.execute(
        """
        CREATE TABLE IF NOT EXISTS schema_migrations (
            version    integer     PRIMARY KEY,
            name       text        NOT NULL,
            checksum   text        NOT NULL,
            applied_at timestamptz NOT NULL DEFAULT now()
        )
        """
    )
    return connection.execute("SELECT name, checksum FROM schema_migrations WHERE version = %s", [version]).fetchone()
