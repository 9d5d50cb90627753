"""Makes the next migration: an empty file with its number, and the version that the code needs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

from control_plane.ops.migrations import read_migrations
from local_cloud.errors import AcpError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

_MIGRATIONS: Final = Path("db/migrations")
_CODE: Final = Path("layers/core/control_plane/platform/database.py")
NAME: Final = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")


def new_migration(checkout: Path, name: str) -> Mapping[Path, str]:
    """Returns the new and changed files: text by path in the checkout.

    Raises UsageError for a bad name or one that is taken.
    """
    if NAME.fullmatch(name) is None:
        msg = f"A migration cannot be called {name!r}."
        raise UsageError(msg, remedy="Use lower-case words with underscores between them, such as source_watch.")
    migrations = read_migrations(checkout / _MIGRATIONS)
    taken = list((checkout / _MIGRATIONS).glob(f"[0-9][0-9][0-9][0-9]_{name}.sql"))
    if taken:
        msg = f"There is a migration {name} already: {taken[0].relative_to(checkout)}."
        raise UsageError(msg, remedy="Choose another name.")
    version = migrations[-1].version + 1
    code, changes = re.subn(
        r"^(SCHEMA_VERSION\b.*= )\d+$",
        rf"\g<1>{version}",
        (checkout / _CODE).read_text(encoding="utf-8"),
        flags=re.MULTILINE,
    )
    if changes != 1:
        msg = f"{_CODE} has no line SCHEMA_VERSION = …, which tells the code what schema it needs."
        raise AcpError(msg, remedy="Make the migration by hand, and raise the version where it is now.")
    title = name.replace("_", " ").capitalize()
    return {
        _MIGRATIONS / f"{version:04}_{name}.sql": f"-- {title}: say here what it is for.\n",
        _CODE: code,
    }
