"""Explains why Postgres was not reached or refused the login, and what to change."""

import re
import socket
import ssl
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import psycopg

from control_plane.model.text import readable

_SSL_REQUEST: Final = struct.pack("!II", 8, 80_877_103)
_LOOK_SECONDS: Final = 5.0
_PASSWORD_REFUSED: Final = re.compile("password authentication failed|no password supplied")


@dataclass(frozen=True, slots=True)
class Attempt:
    """A connection that was tried: its parameters, and what they were read from."""

    parameters: Mapping[str, Any]
    origin: str

    def __repr__(self) -> str:
        return f"Attempt({self.target}, origin={self.origin!r})"

    @property
    def target(self) -> str:
        """The connection's target: ``user@host:port/database``."""
        return f"{self.of('user')}@{self.of('host')}:{self.of('port')}/{self.of('dbname')}"

    def of(self, name: str) -> str:
        """Returns a parameter's effective value; ``?`` if only libpq knows it."""
        given = dict(self.parameters)
        defaults = {
            "host": given.get("hostaddr"),
            "hostaddr": given.get("host"),
            "port": "5432",
            "dbname": given.get("user"),
        }
        return str(given.get(name) or defaults.get(name) or "?")


# Messages of libpq and the server with their explanations; the first match counts. They match English, and the language
# of the server's part follows its lc_messages.
_REMEDIES: Final = [
    (
        _PASSWORD_REFUSED,
        "Put the password of role {user} into {origin}; a role that does not exist is refused in the same words",
    ),
    (re.compile(r'role ".*" does not exist'), "Create it, or name the right one in {origin}"),
    (re.compile("is not permitted to log in"), "ALTER ROLE {user} LOGIN PASSWORD '…'"),
    (
        re.compile(r'database ".*" does not exist'),
        "CREATE DATABASE {dbname} OWNER acp_owner, or name the right one in {origin}",
    ),
    (re.compile("permission denied for database"), "GRANT CONNECT ON DATABASE {dbname} TO {user}"),
    (
        re.compile(r"pg_hba\.conf.*(no encryption|SSL off)"),
        "The server lets nobody in without TLS, and {origin} asks for none: take its sslmode out, and TLS is used",
    ),
    (re.compile(r"pg_hba\.conf"), "The server's pg_hba.conf must let role {user} in from where the function runs"),
    (
        re.compile("server does not support SSL"),
        "Turn TLS on at the server (ssl = on). If nobody else can listen on the way, say sslmode=disable in the URL",
    ),
    (
        re.compile("does not match host name"),
        "Name the server in {origin} as its certificate does: an alias or an address of it cannot be verified",
    ),
    (re.compile("root certificate file"), "sslrootcert in {origin} must name a PEM file that the function can read"),
    (
        re.compile("timeout expired|timed out"),
        "Do the security groups let the function in, and do its subnets (SubnetIds) lead to the server?",
    ),
    (
        re.compile("failed to resolve|could not translate host name"),
        "Mend the host in {origin}; a private name is known in its own VPC alone (SubnetIds)",
    ),
    (re.compile("Connection refused"), "Does Postgres run there, and is the port in {origin} the right one?"),
    (
        re.compile("too many clients|too many connections|connection slots are reserved"),
        "Raise max_connections (or the role's or database's limit), or put a pooler in front: docs/deploy.md",
    ),
    (
        re.compile("session is read-only|in hot standby"),
        "This is a replica, or read-only for another reason: name the writer's endpoint in {origin}",
    ),
    (
        re.compile("due to (statement|lock|transaction|idle-in-transaction) timeout"),
        "ALTER ROLE {user} IN DATABASE {dbname} SET the timeout = 0: a pooler keeps the connection from asking for it",
    ),
    (
        re.compile("starting up|shutting down|in recovery mode|not yet accepting connections"),
        "It passes by itself, and the next invocation tries again",
    ),
]

_CERTIFICATE_REMEDIES: Final = [
    (re.compile("has expired"), "Renew it at the server (RDS: rotate the instance's certificate)"),
    (re.compile("not yet valid"), "Is the clock right, here and where it was issued?"),
    (
        re.compile("self-signed|issuer|signature"),
        "No authority trusted here signed it: put its authority's PEM as `ca` into the secret's JSON (docs/deploy.md)",
    ),
]


def explain(error: Exception, attempt: Attempt) -> str:
    """Returns an error's text: which connection failed, why, and what to change."""
    reason = _reason(error)
    remedies = _REMEDIES
    if "SSL error" in reason and (found := _look_at_certificate(attempt)):
        reason, remedies = f"{reason}: {found}", _CERTIFICATE_REMEDIES
    remedy = next((text for pattern, text in remedies if pattern.search(reason)), "Look at the server's log")
    fields = {name: attempt.of(name) for name in ("user", "host", "port", "dbname")}
    return f"Postgres at {attempt.target} cannot be used: {reason}. {remedy.format(**fields, origin=attempt.origin)}"


def refuses_password(error: psycopg.Error | UnicodeError) -> bool:
    """Whether another password might help.

    That is so if the message says it in English, or if a password was sent and the message is in words not known here.
    Libpq gives no SQLSTATE for a refused connection.
    """
    text = str(error)
    if _PASSWORD_REFUSED.search(text):
        return True
    sent = isinstance(error, psycopg.Error) and error.pgconn is not None and error.pgconn.used_password
    return bool(sent) and not any(pattern.search(text) for pattern, _ in _REMEDIES)


def _reason(error: Exception) -> str:
    """Returns libpq's message in one line: a part for each address that was tried, without libpq's guesses."""
    lines = [" ".join(line.split()) for line in str(error).splitlines() if line.strip() and not line.startswith("\t")]
    said = "; ".join(dict.fromkeys(lines)).removeprefix("connection failed: ").rstrip(".")
    return readable(said or type(error).__name__)


def _look_at_certificate(attempt: Attempt) -> str | None:
    """Returns what is wrong with the server's certificate, found by a second look, since libpq does not say it."""
    host, address = (attempt.of(name).partition(",")[0] for name in ("host", "hostaddr"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_verify_locations(attempt.of("sslrootcert"))
        with socket.create_connection((address, int(attempt.of("port").partition(",")[0])), _LOOK_SECONDS) as plain:
            plain.sendall(_SSL_REQUEST)
            if plain.recv(1) == b"S":
                context.wrap_socket(plain, server_hostname=host).close()
    except ssl.SSLCertVerificationError as error:
        return error.verify_message
    except (OSError, ValueError):
        return None
    return None
