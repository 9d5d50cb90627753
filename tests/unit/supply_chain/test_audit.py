"""scripts/audit with a database of the test's own, and with none."""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest

from local_cloud.net import free_port
from local_cloud.workspace import CHECKOUT
from supply_chain import audit

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

VULNERABLE = {
    "id": "PYSEC-0000-1",
    "summary": "made for a test",
    "affected": [
        {
            "package": {"name": "peewee", "ecosystem": "PyPI"},
            "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "99"}]}],
        }
    ],
}


@contextmanager
def osv(*, vulnerable: str | None = None, status: int = 200) -> Iterator[str]:
    """Serves a database that knows at most one vulnerable package."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            answer: dict[str, Any] = {"vulns": [VULNERABLE]} if asked["package"]["name"] == vulnerable else {}
            body = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1/query"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(autouse=True)
def the_market_layer_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "locks", lambda checkout: [checkout / "layers" / "market_data" / "requirements.txt"])


def test_a_finding_fails_and_names_package_and_lock(capsys: pytest.CaptureFixture[str]) -> None:
    with osv(vulnerable="peewee") as url:
        assert audit.main(["--if-reachable", "--osv-url", url]) == 1
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("peewee ")
    assert line.endswith(": PYSEC-0000-1, mended in 99 (layers/market_data/requirements.txt)")


def test_no_finding_passes(capsys: pytest.CaptureFixture[str]) -> None:
    with osv() as url:
        assert audit.main(["--osv-url", url]) == 0
    assert capsys.readouterr().out == "No known vulnerability. Locks scanned: 1.\n"


@pytest.mark.parametrize(("options", "code"), [([], 1), (["--if-reachable"], 0)])
def test_without_a_database_it_says_not_scanned(
    capsys: pytest.CaptureFixture[str], options: list[str], code: int
) -> None:
    assert audit.main([*options, "--osv-url", f"http://127.0.0.1:{free_port()}/"]) == code
    with osv(status=403) as url:
        assert audit.main([*options, "--osv-url", url]) == code
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in lines] == ["not scanned", "not scanned"]
    assert lines[1].endswith("does not answer (403)")


def test_a_lock_that_cannot_be_read_fails_always(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(audit, "locks", lambda _: [tmp_path / "missing.txt"])
    with osv() as url:
        assert audit.main(["--if-reachable", "--osv-url", url]) == 1
    assert "missing.txt" in capsys.readouterr().err


def test_shipped_and_tool_locks_are_scanned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    names = [str(path.relative_to(CHECKOUT)) for path in audit.locks(CHECKOUT)]
    assert {"layers/core/requirements.txt", "layers/market_data/requirements.txt", "requirements/dev.txt"} <= set(names)
