from __future__ import annotations

import os
import signal
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import psycopg
import pytest

from local_cloud.net import free_port
from local_cloud.postgres import PostgresError, PostgresServer, default_binaries

if TYPE_CHECKING:
    from collections.abc import Iterator

PASSWORD = "s3cret/@:ü"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[PostgresServer]:
    server = PostgresServer(tmp_path / "data", password=PASSWORD, fsync=False)
    yield server
    server.stop("immediate")


def ask(server: PostgresServer, query: str) -> object:
    with psycopg.connect(server.url()) as connection:
        row = connection.execute(query.encode()).fetchone()
        assert row is not None
        return row[0]


def postgres_processes(data_dir: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.status() != psutil.STATUS_ZOMBIE and Path(process.cwd()) == data_dir:
                found.append(process)
        except psutil.Error:
            continue
    return found


def test_a_started_server_answers_in_utc_and_utf8(server: PostgresServer) -> None:
    server.start()
    assert server.running
    assert ask(server, "SELECT current_setting('timezone') || ' ' || current_setting('server_encoding')") == "UTC UTF8"
    assert f":{server.port}/" in server.url()


def test_starting_twice_keeps_the_running_server(server: PostgresServer) -> None:
    server.start()
    first = server.process
    server.start()
    assert server.process == first


def test_data_survives_a_stop_and_a_start(server: PostgresServer) -> None:
    server.start()
    with psycopg.connect(server.url()) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")
    server.stop()
    assert not server.running
    server.start()
    assert ask(server, "SELECT answer FROM kept") == 42


def test_no_process_is_left_after_a_stop(server: PostgresServer) -> None:
    server.start()
    assert postgres_processes(server.data_dir)
    server.stop()
    assert not postgres_processes(server.data_dir)


def test_stopping_twice_or_before_a_start_is_harmless(server: PostgresServer) -> None:
    server.stop()
    server.start()
    server.stop()
    server.stop("immediate")
    assert not server.running


def test_another_object_sees_and_stops_the_same_server(server: PostgresServer) -> None:
    server.start()
    other = PostgresServer(server.data_dir, password=PASSWORD)
    assert other.running
    assert other.url() == server.url()
    other.stop()
    assert not server.running


def test_a_wrong_password_is_refused(server: PostgresServer) -> None:
    server.start()
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(server.url(password="wrong"))


def test_a_cluster_made_with_another_password_is_named(server: PostgresServer) -> None:
    server.start()
    server.stop()
    with pytest.raises(PostgresError, match="another password"):
        PostgresServer(server.data_dir, password="another").start()
    assert not server.running


def test_no_unix_socket_is_opened(server: PostgresServer) -> None:
    server.start()
    assert ask(server, "SHOW unix_socket_directories") == ""


def test_a_requested_port_is_replaced_only_when_in_use(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with PostgresServer(tmp_path / "data", password=PASSWORD, port=port, fsync=False) as server:
            assert server.port != port
            assert ask(server, "SELECT 1") == 1
    with PostgresServer(tmp_path / "data", password=PASSWORD, port=port, fsync=False) as server:
        assert server.port == port


def test_a_port_lost_between_choosing_and_binding_is_replaced(
    server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        lost = taken.getsockname()[1]
        choices = iter([lost])
        monkeypatch.setattr("local_cloud.postgres.free_port", lambda host: next(choices, None) or free_port(host))
        server.start()
        assert server.port != lost


def test_a_killed_server_starts_again_with_its_data(server: PostgresServer) -> None:
    server.start()
    with psycopg.connect(server.url()) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")
    assert server.process is not None
    server.process.send_signal(signal.SIGKILL)
    server.start()
    assert ask(server, "SELECT answer FROM kept") == 42


@pytest.mark.parametrize("stranger", [os.getpid(), os.getppid()], ids=["ourselves", "our parent"])
def test_a_lock_file_with_a_reused_pid_is_stale(server: PostgresServer, stranger: int) -> None:
    server.start()
    lock_file = server.data_dir / "postmaster.pid"
    lines = lock_file.read_text().splitlines()
    server.stop("immediate")
    lock_file.write_text("\n".join([str(stranger), *lines[1:]]))
    assert not server.running
    server.stop()
    assert psutil.pid_exists(stranger)
    lock_file.write_text("\n".join([str(stranger), *lines[1:]]))
    server.start()
    assert server.running


def test_an_interrupted_initdb_is_made_again(server: PostgresServer) -> None:
    unfinished = server.data_dir.with_name("data.unfinished")
    unfinished.mkdir(parents=True)
    (unfinished / "PG_VERSION").write_text("18\n")
    server.start()
    assert ask(server, "SELECT 1") == 1
    assert not unfinished.exists()


def test_a_folder_with_somebody_elses_files_is_refused_and_kept(server: PostgresServer) -> None:
    server.data_dir.mkdir(parents=True)
    (server.data_dir / "precious.txt").write_text("mine")
    with pytest.raises(PostgresError, match="neither empty nor a PostgreSQL cluster"):
        server.start()
    assert (server.data_dir / "precious.txt").read_text() == "mine"


def test_a_failed_start_quotes_the_end_of_the_log(tmp_path: Path) -> None:
    server = PostgresServer(tmp_path / "data", password=PASSWORD, fsync=False, settings={"shared_buffers": "nonsense"})
    with pytest.raises(PostgresError) as caught:
        server.start()
    assert "did not start" in str(caught.value)
    assert 'invalid value for parameter "shared_buffers"' in caught.value.details


def test_the_users_own_postgres_variables_change_nothing(
    server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGPORT", "1")
    monkeypatch.setenv("PGDATA", "/nonexistent")
    server.start()
    assert server.port != 1


def test_an_argument_or_the_environment_can_name_the_binaries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ACP_POSTGRES_BIN", raising=False)
    assert (default_binaries() / "initdb").exists()
    monkeypatch.setenv("ACP_POSTGRES_BIN", "/somewhere/bin")
    assert PostgresServer(tmp_path, password=PASSWORD).binaries == Path("/somewhere/bin")
    assert PostgresServer(tmp_path, password=PASSWORD, binaries=tmp_path).binaries == tmp_path


def test_missing_binaries_are_named(tmp_path: Path) -> None:
    with pytest.raises(PostgresError, match="missing/bin"):
        PostgresServer(tmp_path / "data", password=PASSWORD, binaries=tmp_path / "missing/bin").start()
