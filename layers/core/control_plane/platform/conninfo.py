"""Finds out where Postgres is and how its certificate is verified, from a URL or from a secret."""

import atexit
import json
import re
import ssl
import tempfile
from collections.abc import Callable, Mapping
from functools import cache
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final

import certifi
import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from control_plane.model.errors import ConfigurationError
from control_plane.platform.settings import DatabaseSettings

RDS_BUNDLE: Final = Path(__file__).with_name("rds-global-bundle.pem")
"""The certificate authorities of RDS, as AWS publishes them; docs/decisions/0016 says where the file comes from."""

_RDS_HOST: Final = re.compile(r"\.rds\.(amazonaws\.com|([a-z0-9-]+\.)?amazonaws\.com\.cn)$")
_CONTAINERS_HOST: Final = frozenset({"host.docker.internal", "gateway.docker.internal", "host.containers.internal"})
_VERIFIES_THE_AUTHORITY: Final = frozenset({"verify-ca", "verify-full"})


def parse_url(url: str, *, name: str = "the database URL") -> dict[str, Any]:
    """Returns the connection's parameters.

    Raises ConfigurationError, which calls the URL ``name`` and shows none of it.
    """
    try:
        parameters = conninfo_to_dict(url)
    except psycopg.ProgrammingError:
        parameters = None
    # If an @ or / in the password is not percent-encoded, the rest of the password is parsed as the host or the
    # database.
    if parameters is None or any("@" in str(parameters.get(part, "")) for part in ("host", "dbname")):
        raise ConfigurationError(
            [
                (
                    f"{name} cannot be read: it must look like postgresql://user:password@host:5432/database, "
                    "with %40, %2F and %25 for @, / and % in the password"
                )
            ]
        )
    if not parameters.get("host") and not parameters.get("hostaddr"):
        raise ConfigurationError([f"{name} names no host: it must look like postgresql://user:password@host/database"])
    return parameters


def database_url(settings: DatabaseSettings, read_secret: Callable[[str], str]) -> str:
    """Returns the URL itself, or the one that the secret holds. Raises ConfigurationError, which shows nothing of
    either.

    A secret is a URL as plain text, or JSON. JSON has a ``url``, or RDS's own fields ``username``, ``password``,
    ``host``, ``port`` and ``dbname``. It may add a ``ca``: the PEM of the authority that verifies the server's
    certificate.
    """
    if settings.url is not None:
        parse_url(settings.url, name="DATABASE_URL")
        return settings.url
    assert settings.secret_arn is not None
    secret = read_secret(settings.secret_arn).strip()
    name = f"the secret {settings.secret_arn}"
    if not secret.startswith("{"):
        parse_url(secret, name=f"the URL in {name}")
        return secret
    try:
        fields = json.loads(secret)
    except ValueError:
        fields = None  # The caught error holds the secret, so it must not become the context of ours.
    if fields is None:
        raise ConfigurationError([f"{name} begins like JSON and is none: store a postgresql:// URL or a JSON object"])
    conninfo = _url_of(fields, name) if "url" in fields else _rds_shape(fields, name)
    if "ca" in fields:
        conninfo = make_conninfo(conninfo, sslrootcert=_file_of(_checked_ca(fields["ca"], name)))
    return conninfo


def tls_defaults(parameters: Mapping[str, Any]) -> dict[str, str]:
    """Returns the TLS parameters that a URL leaves open: full verification, except on this very machine.

    Parameters that the URL sets are kept.
    """
    hosts = _hosts(parameters)
    mode = parameters.get("sslmode") or (None if all(map(_is_this_machine, hosts)) else "verify-full")
    if mode is None:
        return {}
    defaults = {"sslmode": str(mode)}
    # The OpenSSL in psycopg's wheel has no certificates of its own: the folder that libpq calls `system` does not exist
    # there.
    if mode in _VERIFIES_THE_AUTHORITY and parameters.get("sslrootcert") in {None, "", "system"}:
        defaults["sslrootcert"] = str(RDS_BUNDLE) if all(map(_has_rds_certificate, hosts)) else certifi.where()
    return defaults


def weakens_rds(parameters: Mapping[str, Any]) -> bool:
    """Whether the URL asks for less verification than RDS offers."""
    mode = parameters.get("sslmode")
    return bool(mode) and mode != "verify-full" and any(_RDS_HOST.search(host) for host in _hosts(parameters))


def _hosts(parameters: Mapping[str, Any]) -> list[str]:
    hosts = str(parameters.get("host") or parameters.get("hostaddr") or "")
    return [host.strip().rstrip(".").lower() for host in hosts.split(",")]


def _is_this_machine(host: str) -> bool:
    """Whether the host is a socket, loopback, or the name by which containers call their host."""
    if host.startswith(("/", "@")) or host == "localhost" or host.endswith(".localhost") or host in _CONTAINERS_HOST:
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _has_rds_certificate(host: str) -> bool:
    """Whether RDS's own authorities sign the host's certificate, as for RDS and Aurora.

    RDS Proxy's certificates come from a public authority (AWS Certificate Manager).
    """
    labels = host.split(".")
    return bool(_RDS_HOST.search(host)) and not any(label.startswith("proxy-") for label in labels[1:])


def _url_of(fields: Mapping[str, Any], name: str) -> str:
    url = fields["url"]
    if not isinstance(url, str):
        raise ConfigurationError([f"the url of {name} is no text: it must be a postgresql:// URL"])
    parse_url(url, name=f"the URL in {name}")
    return url


def _rds_shape(fields: Mapping[str, Any], name: str) -> str:
    engine = fields.get("engine", "postgres")
    if "postgres" not in str(engine):
        raise ConfigurationError([f"{name} is for the engine {engine!r}: it must be for Postgres"])
    missing = [
        key
        for key in ("username", "password", "host", "dbname")
        if not (fields.get(key) and isinstance(fields[key], str))
    ]
    if missing:
        raise ConfigurationError(
            [
                (
                    f"{name} lacks {', '.join(missing)}: store a postgresql:// URL, JSON with a url, or JSON with "
                    "username, password, host, port and dbname, of the role that the function has. What RDS manages by "
                    "itself is the master user's and holds no host: make secrets of your own (docs/deploy.md)"
                )
            ]
        )
    port = fields.get("port", 5432)
    if not str(port).isdecimal():
        raise ConfigurationError([f"the port of {name} is no number"])
    conninfo = make_conninfo(
        user=fields["username"],
        password=fields["password"],
        host=fields["host"],
        port=port,
        dbname=fields["dbname"],
    )
    parse_url(conninfo, name=name)
    return conninfo


def _checked_ca(pem: object, name: str) -> str:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=str(pem))
    except (ValueError, ssl.SSLError):
        raise ConfigurationError(
            [f"the ca of {name} is no certificate in PEM: -----BEGIN CERTIFICATE-----, with \\n for each line's end"]
        ) from None
    return str(pem)


@cache
def _file_of(pem: str) -> str:
    """Returns a file with this text, since libpq reads certificates only from files; it is deleted at exit."""
    with tempfile.NamedTemporaryFile("w", prefix="postgres-ca-", suffix=".pem", delete=False) as file:
        atexit.register(Path(file.name).unlink, missing_ok=True)
        file.write(pem)
    return file.name
