"""The settings that our SQL relies on: requested when a session opens, and checked before each use.

docs/deploy.md lists every setting with what is done about it; docs/decisions/0021 says why it is done this way.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import psycopg
from psycopg import Connection, ConnectionInfo

from control_plane.model.errors import DatabaseUnavailable, UnsuitableDatabase
from control_plane.platform.queries import load_queries

OLDEST_SERVER: Final = 15

SESSION_LOST: Final = (
    psycopg.OperationalError,
    psycopg.errors.ReadOnlySqlTransaction,
    psycopg.errors.IdleInTransactionSessionTimeout,
    psycopg.errors.TransactionTimeout,
)
"""Errors after which a session is unusable; what was not committed may be repeated on a new one."""

TRACKED: Final = {"PGDATESTYLE": "ISO", "PGTZ": "UTC"}
"""Environment variables that libpq sends as startup parameters of their own: poolers keep them for each client."""

STARTUP: Final = {
    "intervalstyle": "postgres",
    "extra_float_digits": "1",
    "standard_conforming_strings": "on",
    "array_nulls": "on",
    "search_path": "public",
    "default_transaction_isolation": "read committed",
    "statement_timeout": "0",
    "lock_timeout": "0",
    # The locks of a function that vanished in a transaction must not last until TCP notices that, hours later.
    "idle_in_transaction_session_timeout": "60s",
    "idle_session_timeout": "0",
    "exit_on_error": "off",
    "jit": "off",
    "control_plane.retention": "off",
    # If the check finds this name, the options have arrived; then no pooler shares the session with other clients.
    "control_plane.session": "own",
}
"""Sent as ``options`` when a session is opened, which costs no round trip and outlives RESET and DISCARD."""

MENDED: Final = {"transaction_timeout": "0", "synchronous_commit": "on", "restrict_nonsystem_relation_kind": ""}
"""Settings that the check sets if they are unsuitable.

They cannot be startup parameters: an older server refuses a session that asks for the first or the last, and a stronger
value of the second must stay."""

_LEAST_TIMEOUT_SECONDS: Final = 60
_QUERIES: Final = load_queries(__package__)
_OPTIONS_REFUSED: Final = re.compile("unsupported startup parameter|command-line options")
_SECONDS: Final = {"us": 1e-6, "ms": 1e-3, "s": 1, "min": 60, "h": 3600, "d": 86400}
_READS_ONLY: Final = frozenset({"any", "read-only", "standby", "prefer-standby"})


@dataclass(frozen=True, slots=True)
class Need:
    """The requirement on one setting, whoever has set it."""

    wanted: str
    """The value that an administrator is told to set."""
    suits: Callable[[str], bool]


def _is(*values: str) -> Callable[[str], bool]:
    return values.__contains__


def _leaves_time(timeout: str) -> bool:
    """Whether a timeout, as Postgres shows it, is off (0) or so long that it interrupts no healthy work."""
    match = re.fullmatch(r"(\d+)(us|ms|s|min|h|d)?", timeout)
    return match is not None and (
        match[1] == "0" or int(match[1]) * _SECONDS[match[2] or "ms"] >= _LEAST_TIMEOUT_SECONDS
    )


NEEDS: Final = {
    "datestyle": Need("ISO", lambda style: style.startswith("ISO")),
    "timezone": Need("UTC", _is("UTC", "Etc/UTC", "GMT", "Etc/GMT")),
    "client_encoding": Need("UTF8", _is("UTF8")),
    "intervalstyle": Need("postgres", _is("postgres")),
    "extra_float_digits": Need("1", _is("1", "2", "3")),
    "standard_conforming_strings": Need("on", _is("on")),
    "array_nulls": Need("on", _is("on")),
    "default_transaction_isolation": Need("'read committed'", _is("read committed", "read uncommitted")),
    "statement_timeout": Need("0", _leaves_time),
    "lock_timeout": Need("0", _leaves_time),
    "transaction_timeout": Need("0", _leaves_time),
    "idle_in_transaction_session_timeout": Need("'60s'", _leaves_time),
    "synchronous_commit": Need("on", _is("on", "local", "remote_write", "remote_apply")),
    "session_replication_role": Need("origin", _is("origin", "local")),
    "exit_on_error": Need("off", _is("off")),
    "restrict_nonsystem_relation_kind": Need("''", _is("")),
    "control_plane.retention": Need("off", _is("off", "")),
}
"""The requirements that are checked. A setting that the server does not know counts as suitable."""


def startup_options(given: str | None) -> str:
    """Returns the connection's ``options``: those of the URL, then ours, which win because they come last."""
    ours = (f"-c {name}={value.replace(' ', '\\ ')}" for name, value in STARTUP.items())
    return " ".join([given, *ours] if given else ours)


def refuses_options(error: Exception) -> bool:
    """Whether the error is a pooler's refusal of ``options``, as from RDS Proxy, or PgBouncer by default."""
    return bool(_OPTIONS_REFUSED.search(str(error)))


def check_session(connection: Connection[Any]) -> bool:
    """Checks in one round trip that the session takes writes and has the settings that our SQL relies on.

    Returns whether the session is ours alone: no pooler shares it with other clients. A second round trip then sets
    MENDED, if that is needed. Raises DatabaseUnavailable for a
    read-only session, UnsuitableDatabase for a setting that an administrator must change, and psycopg.Error where the
    server does not answer.
    """
    values: dict[str, str | None] = dict(connection.execute(_QUERIES["session"].sql).fetchall())
    is_own = values["control_plane.session"] == "own"
    if is_own and (names := MENDED.keys() & _unsuitable(values)):
        mended = {"names": list(names), "values": [MENDED[name] for name in names]}
        values.update(connection.execute(_QUERIES["mend_session"].sql, mended).fetchall())
    info = connection.info
    problems = _problems(values, info)
    if not problems and values["transaction_read_only"] == "off":
        return is_own
    target = f"{info.user}@{info.host}:{info.port}/{info.dbname}"
    if problems:
        raise UnsuitableDatabase(target, problems)
    if info.get_parameters().get("target_session_attrs", "any") not in _READS_ONLY:
        raise DatabaseUnavailable(
            f"Postgres at {target} takes no writes any more: has it become a replica, or is its disk full?"
        )
    return is_own


def _unsuitable(values: Mapping[str, str | None]) -> dict[str, tuple[str, str]]:
    """Returns the unsuitable settings, each with its value and the wanted one."""
    unsuitable = {
        name: (value or "empty", need.wanted)
        for name, need in NEEDS.items()
        if (value := values[name]) is not None and not need.suits(value)
    }
    # The value is null if the role may use no schema of the search_path yet, as before the first migration.
    if (schema := values["current_schema"]) not in {"public", None}:
        unsuitable["search_path"] = (f"one that leads to schema {schema}", "public")
    return unsuitable


def _problems(values: Mapping[str, str | None], info: ConnectionInfo) -> list[str]:
    """Returns all that is wrong with a session, each with its remedy."""
    problems = []
    if info.server_version < OLDEST_SERVER * 10_000:
        version = info.server_version // 10_000
        problems.append(f"it is version {version}, and {OLDEST_SERVER} is the oldest that will do: upgrade it")
    if (encoding := values["server_encoding"]) != "UTF8":
        problems.append(
            f"the database's encoding is {encoding}: make another by CREATE DATABASE … ENCODING 'UTF8' "
            "TEMPLATE template0, and name it in the URL"
        )
    if unsuitable := _unsuitable(values):
        problems += [f"{name} is {value}" for name, (value, _) in unsuitable.items()]
        statements = "; ".join(
            f'ALTER ROLE "{info.user}" IN DATABASE "{info.dbname}" SET {name} = {wanted}'
            for name, (_, wanted) in unsuitable.items()
        )
        problems.append(f"as an administrator, {statements}; then let a pooler on the way there reconnect")
    return problems
