"""A real browser opens a hostile page beside a running local cloud: the page makes nothing and reads nothing."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.browser.attacker import ATTEMPTS, HOME, Site, site
from tests.browser.conftest import SECRET, RunningEmulator

SECONDS = 90
EVIL, REBOUND = "evil.example", "rebound.example"


@pytest.fixture(scope="session")
def chromium() -> str:
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert found, "These tests need a Chromium: on Debian and Ubuntu, apt-get install chromium"
    return found


def command(chromium: str, profile: Path, *rest: str) -> list[str]:
    return [
        chromium,
        "--headless",
        "--no-sandbox",  # Root cannot use the sandbox; the pages are our own.
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        # Newer versions ask a person before a page may reach loopback; no other browser does.
        "--disable-features=LocalNetworkAccessChecks,BlockInsecurePrivateNetworkRequests",
        "--proxy-server=direct://",
        f"--host-resolver-rules=MAP {EVIL} 127.0.0.1, MAP {REBOUND} 127.0.0.2",
        f"--user-data-dir={profile}",
        *rest,
    ]


@contextmanager
def browsing(chromium: str, profile: Path, url: str) -> Iterator[None]:
    """Makes the browser show the page during the block."""
    with (profile.parent / "chromium.log").open("wb") as log:
        process = subprocess.Popen(
            command(chromium, profile, "--remote-debugging-port=0", url),
            stdout=log,
            stderr=log,
            env={**os.environ, "HOME": str(profile.parent)},
            start_new_session=True,
        )
        try:
            yield
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def attacked(chromium: str, profile: Path, page: str, attacker: Site) -> dict[str, list[str]]:
    with browsing(chromium, profile, page):
        assert attacker.finished.wait(SECONDS), (profile.parent / "chromium.log").read_text()[-2000:]
    assert len(attacker.results["done"]) == ATTEMPTS
    return attacker.results


@pytest.mark.parametrize(
    ("page_host", "target_host"),
    [
        pytest.param(EVIL, "localhost", id="another site"),
        pytest.param(EVIL, "127.0.0.1", id="another site, by address"),
        pytest.param("localhost", "localhost", id="another port of this machine"),
        pytest.param(EVIL, EVIL, id="another site, by a name of its own"),
    ],
)
def test_a_web_page_of_another_origin_makes_and_reads_nothing(
    emulator: RunningEmulator, chromium: str, tmp_path: Path, page_host: str, target_host: str
) -> None:
    with site() as attacker:
        attacker.set_page(f"http://{target_host}:{emulator.port}", emulator.health)
        page = f"http://{page_host}:{attacker.port}{HOME}/page"
        results = attacked(chromium, tmp_path / "profile", page, attacker)
    assert results["read"] == []
    assert emulator.made() == []


def test_a_rebound_name_makes_and_reads_nothing(emulator: RunningEmulator, chromium: str, tmp_path: Path) -> None:
    # For the browser, page and emulator have one origin: the name first pointed to the site, and now to loopback.
    with site("127.0.0.2", emulator.port, relay_to=emulator.port) as attacker:
        origin = f"http://{REBOUND}:{emulator.port}"
        attacker.set_page(origin, emulator.health)
        results = attacked(chromium, tmp_path / "profile", f"{origin}{HOME}/page", attacker)
        assert attacker.relayed > ATTEMPTS / 2
    assert results["read"] == []
    assert emulator.made() == []


@pytest.fixture
def dump(chromium: str, tmp_path: Path) -> Callable[[str], str]:
    """Returns what the browser shows of an address that a person typed."""

    def dump(url: str) -> str:
        return subprocess.run(
            command(chromium, tmp_path / "profile", "--dump-dom", url),
            env={**os.environ, "HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        ).stdout

    return dump


def test_an_address_typed_by_hand_shows_the_health(emulator: RunningEmulator, dump: Callable[[str], str]) -> None:
    shown = dump(emulator.endpoint + emulator.health)
    assert "services" in shown
    assert SECRET not in shown


def test_a_foreign_name_typed_by_hand_is_told_the_remedy(emulator: RunningEmulator, dump: Callable[[str], str]) -> None:
    shown = dump(f"http://{EVIL}:{emulator.port}{emulator.health}")
    assert "Use http://localhost" in shown
