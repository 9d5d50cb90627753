"""scripts/audit with databases of the test's own, and with none."""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager
from datetime import UTC, date, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest

from local_cloud.net import free_port
from local_cloud.workspace import CHECKOUT
from supply_chain import audit
from supply_chain.npm_advisories import REGISTRY, registry
from supply_chain.vendored import read_vendor_lock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

TODAY = date(2026, 1, 2)
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


PATH = "/-/npm/v1/security/advisories/bulk"
ELSEWHERE = "npm_config_registry can name another"
ADVISORY = {
    "id": 1,
    "url": "https://github.com/advisories/GHSA-0000-0000-0001",
    "title": "made for a test",
    "severity": "high",
    "vulnerable_versions": "<99",
}


@contextmanager
def serving(answers: Callable[[str, Any], Any], *, status: int = 200) -> Iterator[str]:
    """Serves JSON: what ``answers`` gives for a request's path and body."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            body = json.dumps(answers(self.path, asked)).encode()
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
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def osv(*, vulnerable: str | None = None, status: int = 200) -> Iterator[str]:
    """Serves a database that knows at most one vulnerable package."""

    def answer(_path: str, asked: Any) -> Any:
        return {"vulns": [VULNERABLE]} if asked["package"]["name"] == vulnerable else {}

    with serving(answer, status=status) as url:
        yield f"{url}/v1/query"


@pytest.fixture(autouse=True)
def asked_of_npm(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, Any]]]:
    """Serves a registry that knows of no vulnerability; yields what it is asked."""
    asked: list[tuple[str, Any]] = []

    def answer(path: str, body: Any) -> Any:
        asked.append((path, body))
        return {}

    with serving(answer) as url:
        monkeypatch.setenv("npm_config_registry", url)
        yield asked


@pytest.fixture(autouse=True)
def the_market_layer_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "locks", lambda checkout: [checkout / "layers" / "market_data" / "requirements.txt"])


def test_a_finding_fails_and_names_package_and_lock(capsys: pytest.CaptureFixture[str]) -> None:
    with osv(vulnerable="peewee") as url:
        assert audit.main(["--if-reachable", "--osv-url", url]) == 1
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("peewee ")
    assert line.endswith(": PYSEC-0000-1, mended in 99 (layers/market_data/requirements.txt)")


@pytest.fixture
def accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of acceptances, of the test's own."""
    monkeypatch.setattr(audit, "ACCEPTED", tmp_path / "accepted.toml")
    return tmp_path / "accepted.toml"


def acceptance(*, id_: str = "PYSEC-0000-1", package: str = "peewee", until: str = "2026-02-01") -> str:
    return f'[[accepted]]\nid = "{id_}"\npackage = "{package}"\nreason = "it is not called"\nuntil = {until}\n'


@pytest.mark.parametrize(
    ("text", "fails", "said"),
    [
        (acceptance(), False, "peewee 3: X; accepted until 2026-02-01: it is not called"),
        (acceptance(id_="CVE-0"), False, "peewee 3: X; accepted until 2026-02-01: it is not called"),
        (acceptance(until="2026-01-02"), False, "peewee 3: X; accepted until 2026-01-02: it is not called"),
        (acceptance(until="2026-01-01"), True, "peewee 3: X; was accepted until 2026-01-01"),
        (acceptance(id_="PYSEC-0000-2"), True, "peewee: PYSEC-0000-2 is accepted, and not found: take it out"),
        (acceptance(package="other"), True, "other: PYSEC-0000-1 is accepted, and not found: take it out"),
        ("", True, "peewee 3: X"),
    ],
    ids=["for a while", "by an alias", "its last day", "over", "another id", "another package", "not at all"],
)
def test_a_finding_may_be_accepted_until_a_day(text: str, fails: bool, said: str) -> None:
    found = [audit.Finding("peewee 3: X", "peewee", frozenset({"PYSEC-0000-1", "CVE-0"}))]
    lived_with, problems = audit.judge(found, audit.read_accepted(text, today=TODAY), today=TODAY)
    assert said in (problems if fails else lived_with)
    assert bool(problems) == fails


def test_an_accepted_finding_is_told_and_passes(accepted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    accepted.write_text(acceptance(until=str(datetime.now(UTC).date())))
    with osv(vulnerable="peewee") as url:
        assert audit.main(["--osv-url", url]) == 0
    finding, summary = capsys.readouterr().out.splitlines()
    assert finding.endswith(": it is not called")
    assert summary == "No other known vulnerability. Locks scanned: 2."


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (acceptance(until="2999-01-01"), "are the most"),
        (acceptance().replace("until = ", "until = '").rstrip() + "'\n", "until must be a day"),
        (acceptance().replace("it is not called", " "), "has an id, a package, a reason and a day"),
        (acceptance().replace('package = "peewee"\n', ""), "has an id, a package, a reason and a day"),
        ("[[accepted", "accepted.toml: "),
    ],
    ids=["too long", "a text", "no reason", "no package", "no TOML"],
)
def test_an_acceptance_that_is_not_whole_is_refused(
    accepted: Path, capsys: pytest.CaptureFixture[str], text: str, said: str
) -> None:
    accepted.write_text(text)
    assert audit.main(["--if-reachable", "--osv-url", f"http://127.0.0.1:{free_port()}/"]) == 1
    assert said in capsys.readouterr().err


def test_what_is_accepted_in_the_checkout_is_whole() -> None:
    audit.read_accepted(audit.ACCEPTED.read_text(encoding="utf-8"), today=datetime.now(UTC).date())


def test_no_finding_passes(capsys: pytest.CaptureFixture[str]) -> None:
    with osv() as url:
        assert audit.main(["--osv-url", url]) == 0
    assert capsys.readouterr().out == "No known vulnerability. Locks scanned: 2.\n"


@pytest.mark.parametrize(("options", "code"), [([], 1), (["--if-reachable"], 0)])
def test_without_a_database_it_says_not_scanned(
    capsys: pytest.CaptureFixture[str], options: list[str], code: int
) -> None:
    assert audit.main([*options, "--osv-url", f"http://127.0.0.1:{free_port()}/"]) == code
    with osv(status=403) as url:
        assert audit.main([*options, "--osv-url", url]) == code
    said = capsys.readouterr()
    lines = said.err.splitlines()
    assert [line.split(":")[0] for line in lines] == ["not scanned", "not scanned"]
    assert lines[1].endswith("does not answer (403)")
    assert said.out.splitlines() == ["No known vulnerability. Locks scanned: 1."] * 2, "npm's registry was asked"


@pytest.mark.parametrize(("options", "code"), [([], 1), (["--if-reachable"], 0)])
@pytest.mark.parametrize(("status", "why"), [(405, "(405)"), (200, "as npm's does")])
def test_a_registry_without_advisories_leaves_the_pages_packages_unscanned(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    *,
    status: int,
    why: str,
    options: list[str],
    code: int,
) -> None:
    with osv() as database, serving(lambda *_: {"error": "no such route"}, status=status) as url:
        monkeypatch.setenv("npm_config_registry", url)
        assert audit.main([*options, "--osv-url", database]) == code
    told = capsys.readouterr()
    assert told.err == f"not scanned: npm's registry at {url}/ does not answer {PATH[1:]} {why}; {ELSEWHERE}\n"
    assert told.out == "No known vulnerability. Locks scanned: 1.\n"


def test_every_package_that_the_page_ships_is_asked_for(asked_of_npm: list[tuple[str, Any]]) -> None:
    with osv() as url:
        audit.main(["--osv-url", url])
    assert asked_of_npm == [(PATH, {package.name: [package.version] for package in read_vendor_lock()})]


def test_a_finding_in_what_the_page_ships_fails_unless_it_is_accepted(
    monkeypatch: pytest.MonkeyPatch, accepted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    package = read_vendor_lock()[0]
    with osv() as database, serving(lambda *_: {package.name: [ADVISORY]}) as url:
        monkeypatch.setenv("npm_config_registry", url)
        accepted.write_text("")
        assert audit.main(["--if-reachable", "--osv-url", database]) == 1
        line = f"{package.name} {package.version}: GHSA-0000-0000-0001, made for a test, of versions <99"
        assert capsys.readouterr().out == f"{line} (functions/ops_api/ui/vendor.lock)\n"
        today = str(datetime.now(UTC).date())
        accepted.write_text(acceptance(id_="GHSA-0000-0000-0001", package=package.name, until=today))
        assert audit.main(["--osv-url", database]) == 0


def test_an_acceptance_is_not_missed_where_its_database_was_not_asked(
    monkeypatch: pytest.MonkeyPatch, accepted: Path
) -> None:
    today = str(datetime.now(UTC).date())
    accepted.write_text(acceptance(until=today))
    assert audit.main(["--if-reachable", "--osv-url", f"http://127.0.0.1:{free_port()}/"]) == 0
    accepted.write_text(acceptance(package=read_vendor_lock()[0].name, until=today))
    monkeypatch.setenv("npm_config_registry", f"http://127.0.0.1:{free_port()}")
    with osv() as url:
        assert audit.main(["--if-reachable", "--osv-url", url]) == 0


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"NPM_CONFIG_REGISTRY": "https://npm.example/a"}, "https://npm.example/a/"),
        ({"npm_config_registry": "https://npm.example/"}, "https://npm.example/"),
        ({}, REGISTRY),
    ],
)
def test_the_registry_is_the_one_that_npm_would_ask(
    monkeypatch: pytest.MonkeyPatch, environ: Mapping[str, str], expected: str
) -> None:
    monkeypatch.setattr("shutil.which", lambda _: None)
    assert registry(environ) == expected


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
