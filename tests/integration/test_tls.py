"""What a connection to Postgres demands of TLS, and how it explains a failure, over real TLS."""

import hashlib
import json
import logging
import socket
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import certifi
import psycopg
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from psycopg import sql
from tests.integration.tls import Authority, Certificate, TlsFront

from control_plane.model.errors import ConfigurationError, DatabaseUnavailable
from control_plane.platform import conninfo
from control_plane.platform import database as module
from control_plane.platform.conninfo import database_url
from control_plane.platform.database import Database, connect
from control_plane.platform.settings import DatabaseSettings
from local_cloud.postgres import PostgresServer

PASSWORD = "test-password"
HOST = "db.example.com"
RDS = "prices.c9akciq32.eu-west-1.rds.amazonaws.com"
RDS_PROXY = "prices.proxy-c9akciq32.eu-west-1.rds.amazonaws.com"
ROOT = Path(__file__).parents[2]
SHA256 = "e5bb2084ccf45087bda1c9bffdea0eb15ee67f0b91646106e466714f9de3c7e3"
ARN = "arn:aws:secretsmanager:us-east-1:123456789012:secret:database-AbCdEf"


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


type Url = Callable[..., str]


@pytest.fixture
def front(postgres: PostgresServer, database: Any) -> Iterator[Callable[[Certificate], Url]]:
    """Puts TLS with a certificate before the test's database; returns a function that makes URLs to it."""
    fronts = []

    def start(certificate: Certificate) -> Url:
        server = TlsFront(postgres.port, certificate).__enter__()
        fronts.append(server)

        def url(host: str = HOST, *, password: str = PASSWORD, **parameters: str) -> str:
            query = "".join(f"&{name}={value}" for name, value in parameters.items())
            # The name is verified; the address is where it leads in this test.
            return f"postgresql://acp_test:{password}@{host}:{server.port}/{database.name}?hostaddr=127.0.0.1{query}"

        return url

    yield start
    for server in fronts:
        server.__exit__()


def uses_tls(url: str) -> bool:
    with connect(url, application_name="test") as connection:
        assert connection.execute("SELECT current_user").fetchone() == ("acp_test",)
        return bool(connection.pgconn.ssl_in_use)


def refused(url: str, *texts: str, origin: str = "the database URL") -> str:
    with pytest.raises(DatabaseUnavailable) as caught:
        connect(url, application_name="test", origin=origin)
    message = str(caught.value)
    for text in texts:
        assert text in message
    assert "\n" not in message
    assert PASSWORD not in message
    return message


def with_public_root(monkeypatch: pytest.MonkeyPatch, authority: Authority) -> None:
    monkeypatch.setattr(certifi, "where", lambda: str(authority.file))


def test_another_host_s_certificate_is_verified_by_the_public_authorities(
    front: Callable[[Certificate], Url], authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = front(authority.issue(HOST))
    refused(url(), "unable to get local issuer certificate")
    with_public_root(monkeypatch, authority)
    assert uses_tls(url())
    assert uses_tls(url(sslmode="verify-full"))
    assert uses_tls(url(sslrootcert="system"))


def test_rds_s_certificate_is_verified_by_the_authorities_of_rds(
    front: Callable[[Certificate], Url], authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = front(authority.issue(RDS, RDS_PROXY))
    refused(url(RDS), RDS, "unable to get local issuer certificate")
    monkeypatch.setattr(conninfo, "RDS_BUNDLE", authority.file)
    assert uses_tls(url(RDS))
    # RDS Proxy has its certificates from a public authority.
    refused(url(RDS_PROXY), "unable to get local issuer certificate")
    with_public_root(monkeypatch, authority)
    assert uses_tls(url(RDS_PROXY))


def test_tls_settings_of_the_url_are_kept(
    front: Callable[[Certificate], Url], authority: Authority, tmp_path: Path
) -> None:
    url = front(authority.issue("elsewhere.example.com"))
    assert not uses_tls(url(sslmode="disable"))
    assert uses_tls(url(sslmode="require"))
    assert uses_tls(url(sslmode="verify-ca", sslrootcert=str(authority.file)))
    for other in (Authority(tmp_path, "another"), Authority(tmp_path)):
        refused(url(sslmode="verify-ca", sslrootcert=str(other.file)), "put its authority's PEM as `ca`")


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    monkeypatch.setattr(logging.getLogger("control_plane"), "propagate", True)
    return caplog


@pytest.mark.parametrize("mode", ["require", "verify-ca", "prefer", "disable"])
@pytest.mark.parametrize("host", [RDS, RDS_PROXY])
def test_unverified_tls_with_rds_is_allowed_with_a_warning(
    front: Callable[[Certificate], Url], authority: Authority, warnings: pytest.LogCaptureFixture, mode: str, host: str
) -> None:
    url = front(authority.issue("elsewhere.example.com"))
    more = {"sslrootcert": str(authority.file)} if mode == "verify-ca" else {}
    assert uses_tls(url(host, sslmode=mode, **more)) == (mode != "disable")
    assert f"sslmode={mode} in the database URL" in warnings.text
    assert PASSWORD not in warnings.text


def test_no_warning_without_a_reason(
    front: Callable[[Certificate], Url],
    authority: Authority,
    warnings: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url = front(authority.issue(RDS, HOST))
    monkeypatch.setattr(conninfo, "RDS_BUNDLE", authority.file)
    for text in (url(RDS), url(RDS, sslmode="verify-full"), url(sslmode="disable"), url(sslmode="require")):
        uses_tls(text)
    assert warnings.text == ""


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "host.docker.internal"])
def test_this_machine_s_own_postgres_needs_no_tls(postgres: PostgresServer, database: Any, host: str) -> None:
    url = f"postgresql://acp_test:{PASSWORD}@{host}:{postgres.port}/{database.name}?hostaddr=127.0.0.1"
    assert not uses_tls(url)


# What goes wrong, and what to change


def test_an_expired_certificate(front: Callable[[Certificate], Url], authority: Authority) -> None:
    url = front(authority.issue(HOST, days=(-3, -1)))
    refused(url(sslrootcert=str(authority.file)), HOST, "certificate has expired", "Renew it at the server")


def test_a_certificate_of_tomorrow(front: Callable[[Certificate], Url], authority: Authority) -> None:
    url = front(authority.issue(HOST, days=(1, 3)))
    refused(url(sslrootcert=str(authority.file)), "not yet valid", "Is the clock right")


def test_an_unknown_authority(front: Callable[[Certificate], Url], authority: Authority) -> None:
    refused(front(authority.issue(HOST))(), "unable to get local issuer certificate", "put its authority's PEM as `ca`")


def test_a_certificate_for_another_name(front: Callable[[Certificate], Url], authority: Authority) -> None:
    url = front(authority.issue("elsewhere.example.com"))
    refused(
        url(sslrootcert=str(authority.file)), '"elsewhere.example.com" does not match host name', "as its certificate"
    )


def test_a_file_of_authorities_that_is_not_there(front: Callable[[Certificate], Url], authority: Authority) -> None:
    url = front(authority.issue(HOST))
    refused(url(sslrootcert="/nowhere.pem"), '"/nowhere.pem" does not exist', "must name a PEM file")


def test_a_server_without_tls_where_tls_is_needed(postgres: PostgresServer) -> None:
    url = f"postgresql://acp_test:{PASSWORD}@{HOST}:{postgres.port}/postgres?hostaddr=127.0.0.1"
    refused(url, "server does not support SSL", "Turn TLS on at the server", "sslmode=disable")


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[PostgresServer, Authority, bool]]:
    """A server that lets acp_test in with TLS alone. Its build decides whether it speaks TLS: Debian's does."""
    folder = tmp_path_factory.mktemp("strict")
    authority = Authority(folder)
    certificate = authority.issue(HOST)
    server = PostgresServer(folder / "data", password=PASSWORD, fsync=False)
    with server, psycopg.connect(server.url()) as connection:
        connection.execute("CREATE ROLE acp_test LOGIN PASSWORD 'test-password'")
        row = connection.execute("SHOW ssl_library").fetchone()
    has_tls = row != ("",)
    (server.data_dir / "pg_hba.conf").write_text(
        "host all postgres samehost scram-sha-256\nhostssl all acp_test samehost scram-sha-256\n"
    )
    files = {"ssl_cert_file": str(certificate.certificate), "ssl_key_file": str(certificate.key)}
    settings = {"ssl": "on", **files} if has_tls else {}
    with PostgresServer(folder / "data", password=PASSWORD, fsync=False, settings=settings) as server:
        yield server, authority, has_tls


def test_a_server_demanding_tls_refuses_a_url_without_it(strict: tuple[PostgresServer, Authority, bool]) -> None:
    server, authority, has_tls = strict
    url = f"postgresql://acp_test:{PASSWORD}@{HOST}:{server.port}/postgres?hostaddr=127.0.0.1"
    refused(f"{url}&sslmode=disable", "no pg_hba.conf entry", "nobody in without TLS", "take its sslmode out")
    if has_tls:
        assert uses_tls(f"{url}&sslrootcert={authority.file}")


@pytest.fixture
def admin(postgres: PostgresServer, database: Any) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(postgres.url(), autocommit=True) as connection:
        yield connection


def test_a_wrong_password(database: Any) -> None:
    url = database.app_url.replace(PASSWORD, "not-the-word")
    message = refused(
        url, "acp_test@127.0.0.1:", "Put the password of role acp_test into the secret x", origin="the secret x"
    )
    assert "not-the-word" not in message


def test_a_role_that_does_not_exist(database: Any) -> None:
    refused(
        database.app_url.replace("acp_test", "nobody"), "nobody@", "a role that does not exist is refused in the same"
    )


def test_a_role_that_may_not_log_in(admin: psycopg.Connection[Any], database: Any) -> None:
    admin.execute("CREATE ROLE guest NOLOGIN PASSWORD 'test-password'")
    try:
        refused(database.app_url.replace("acp_test", "guest"), "not permitted to log in", "ALTER ROLE guest LOGIN")
    finally:
        admin.execute("DROP ROLE guest")


def test_a_database_that_does_not_exist(database: Any) -> None:
    refused(database.app_url.replace(database.name, "nowhere"), '"nowhere" does not exist', "CREATE DATABASE nowhere")


def test_a_database_that_the_role_may_not_enter(admin: psycopg.Connection[Any], database: Any) -> None:
    name = sql.Identifier(database.name)
    admin.execute(sql.SQL("REVOKE CONNECT ON DATABASE {} FROM PUBLIC").format(name))
    refused(
        database.app_url, "permission denied for database", f"GRANT CONNECT ON DATABASE {database.name} TO acp_test"
    )


def test_too_many_connections(admin: psycopg.Connection[Any], database: Any) -> None:
    admin.execute(sql.SQL("ALTER DATABASE {} CONNECTION LIMIT 1").format(sql.Identifier(database.name)))
    with connect(database.app_url, application_name="test"):
        refused(database.app_url, "too many connections for database", "max_connections", "pooler")


def test_a_replica(admin: psycopg.Connection[Any], database: Any) -> None:
    # A hot standby announces this, and so does RDS when its disk is full; a second server would announce the same.
    name = sql.Identifier(database.name)
    admin.execute(sql.SQL("ALTER DATABASE {} SET default_transaction_read_only = on").format(name))
    refused(database.app_url, "session is read-only", "name the writer's endpoint in the database URL")
    with connect(f"{database.app_url}?target_session_attrs=any", application_name="test") as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_a_port_where_nothing_listens() -> None:
    refused(f"postgresql://acp_test:{PASSWORD}@127.0.0.1:1/x", "acp_test@127.0.0.1:1/x", "refused", "is the port")


def test_a_host_that_does_not_exist() -> None:
    refused(
        f"postgresql://acp_test:{PASSWORD}@nowhere.invalid/x", "nowhere.invalid:5432/x", "Mend the host", "SubnetIds"
    )


@pytest.fixture
def black_hole() -> Iterator[int]:
    """A port that never answers, as in a network without a route: its queue of connections is full."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        port: int = listener.getsockname()[1]
        waiting = [socket.socket() for _ in range(8)]
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(("127.0.0.1", port))
        yield port
        for one in waiting:
            one.close()


def test_a_server_that_never_answers(black_hole: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CONNECT_TIMEOUT_SECONDS", 2)
    began = time.monotonic()
    refused(f"postgresql://acp_test:{PASSWORD}@127.0.0.1:{black_hole}/x", "timeout", "security groups", "SubnetIds")
    assert time.monotonic() - began < 30


# Secrets


def secret(text: str) -> str:
    return database_url(DatabaseSettings(url=None, secret_arn=ARN), lambda _arn: text)


def rds_shape(url: str, **fields: Any) -> dict[str, Any]:
    """Returns the secret as Secrets Manager writes it for a role of an RDS instance."""
    parts = conninfo.parse_url(url)
    return {
        "username": parts["user"],
        "password": parts["password"],
        "engine": "postgres",
        "host": parts["host"],
        "port": int(parts["port"]),
        "dbname": parts["dbname"],
        "dbInstanceIdentifier": "prices",
    } | fields


def test_a_secret_may_have_rds_own_shape(admin: psycopg.Connection[Any], database: Any) -> None:
    assert not uses_tls(secret(json.dumps(rds_shape(database.app_url))))
    assert not uses_tls(
        secret(json.dumps(rds_shape(database.app_url, port=str(conninfo.parse_url(database.app_url)["port"]))))
    )
    # Passwords that a rotation may make, without a URL's escapes.
    password = "p@ss/w:rd %'\\\" é"
    admin.execute(sql.SQL("CREATE ROLE odd LOGIN PASSWORD {}").format(sql.Literal(password)))
    try:
        text = secret(json.dumps(rds_shape(database.app_url, username="odd", password=password)))
        with connect(text, application_name="test") as connection:
            assert connection.execute("SELECT current_user").fetchone() == ("odd",)
    finally:
        admin.execute("DROP ROLE odd")


def test_a_secret_brings_the_authority_of_its_server(
    front: Callable[[Certificate], Url], authority: Authority, tmp_path: Path
) -> None:
    url = front(authority.issue(HOST, RDS))
    assert uses_tls(secret(json.dumps({"url": url(), "ca": authority.pem})))
    assert uses_tls(secret(json.dumps({"url": url(RDS), "ca": authority.pem})))
    refused(secret(json.dumps({"url": url(), "ca": Authority(tmp_path, "another").pem})), "unable to get local issuer")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"username": "acp_test", "password": "test-password"}', ["lacks host, dbname", "the master user's"]),
        ('{"password": "test-password"}', ["lacks username, host, dbname", "postgresql:// URL"]),
        ('{"apiKey": "test-password"}', ["lacks username, password"]),
        ('{"username": "a", "password": "test-password", "host": "h", "dbname": "d", "port": "x"}', ["port"]),
        ('{"username": "a", "password": "test-password", "host": "h", "dbname": "", "port": 1}', ["lacks dbname"]),
        ('{"username": "a", "password": ["test-password"], "host": "h", "dbname": "d"}', ["lacks password"]),
        ('{"engine": "mysql", "username": "a", "password": "test-password"}', ["the engine 'mysql'", "Postgres"]),
        ('{"url": "postgresql://a:test-password@h/d"', ["begins like JSON and is none"]),
        ('{"url": 7, "password": "test-password"}', ["the url of", "no text"]),
        ('{"url": "test-password"}', ["cannot be read", "postgresql://user:password@"]),
        ('{"url": "postgresql:///d?password=test-password"}', ["names no host"]),
        ('{"url": "postgresql://a:test-password@h/d", "ca": "test-password"}', ["the ca of", "PEM"]),
        ('{"url": "postgresql://a:test-password@h/d", "ca": ""}', ["the ca of", "PEM"]),
        ("test-password", ["cannot be read", "postgresql://user:password@"]),
        ("postgresql:///d?password=test-password", ["names no host"]),
    ],
)
def test_a_misshapen_secret_is_named_with_what_it_lacks(text: str, words: list[str]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        secret(text)
    assert ARN in str(caught.value)
    for word in words:
        assert word in str(caught.value)
    chain: BaseException | None = caught.value
    while chain is not None:  # This is what a traceback would show.
        assert PASSWORD not in repr(chain)
        assert PASSWORD not in repr(vars(chain))
        chain = None if chain.__suppress_context__ else chain.__context__


# Rotation


def opened(texts: list[str]) -> tuple[Database, list[str]]:
    read: list[str] = []

    def url() -> str:
        read.append(texts[min(len(read), len(texts) - 1)])
        return read[-1]

    return Database(url, application_name="test", origin="the secret x"), read


def test_a_secret_rotated_during_use_is_read_again_once(database: Any) -> None:
    old = database.app_url.replace(PASSWORD, "yesterday-s")
    warm, read = opened([old, database.app_url])
    assert warm.connection().execute("SELECT 1").fetchone() == (1,)
    assert read == [old, database.app_url]
    warm.close()


def test_a_password_that_stays_wrong_is_tried_once(database: Any) -> None:
    old, other = (database.app_url.replace(PASSWORD, word) for word in ("yesterday-s", "tomorrow-s"))
    for texts, readings in (([old], 2), ([old, other], 2)):
        warm, read = opened(texts)
        with pytest.raises(DatabaseUnavailable, match="password authentication failed"):
            warm.connection()
        assert len(read) == readings


def test_another_refusal_is_no_reason_to_read_the_secret_again(database: Any) -> None:
    warm, read = opened([database.app_url.replace(database.name, "nowhere"), database.app_url])
    with pytest.raises(DatabaseUnavailable, match="does not exist"):
        warm.connection()
    assert len(read) == 1


# What is shipped


def test_the_rds_bundle_holds_amazon_roots_valid_for_years() -> None:
    pem = conninfo.RDS_BUNDLE.read_bytes()
    assert hashlib.sha256(pem).hexdigest() == SHA256
    assert SHA256 in (ROOT / "docs" / "decisions" / "0016-tls-to-postgres.md").read_text(encoding="utf-8")
    roots = x509.load_pem_x509_certificates(pem)
    assert len({root.fingerprint(hashes.SHA256()) for root in roots}) == len(roots) == 108
    for root in roots:
        name = root.subject.rfc4514_string()
        assert root.subject == root.issuer, name
        root.verify_directly_issued_by(root)
        assert root.extensions.get_extension_for_class(x509.BasicConstraints).value.ca, name
        assert "Amazon RDS" in name
        assert root.not_valid_after_utc > datetime.now(UTC) + timedelta(days=365), name
