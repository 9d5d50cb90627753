"""The page in a real browser, before the real functions and a real Postgres."""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode
from uuid import UUID

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, Request, sync_playwright
from tests.browser.page.lives import live_decisions, live_event
from tests.browser.page.seeding import Seeded, operate, seed
from tests.conftest import TEMPLATE, TestDatabase, _database
from tests.integration.ops_api.server import ApiServer

from local_cloud.postgres import PostgresServer

ROOT = "the-token-of-these-tests-is-long-enough"
WIDTHS = {"phone": (390, 844), "wide": (1280, 800)}
THEMES = ("light", "dark")
WATCH = """
window.reports = [];
document.addEventListener('securitypolicyviolation', (event) =>
  window.reports.push(`${event.violatedDirective} ${event.blockedURI} ${event.sample}`));
"""


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert path, "These tests need a Chromium: on Debian and Ubuntu, apt-get install chromium"
    with sync_playwright() as playwright:
        # Root cannot use the sandbox; the pages are our own.
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@dataclass
class Site:
    """A deployment that the page is opened on."""

    api: ApiServer
    seeded: Seeded
    database: TestDatabase
    token: str = ROOT

    def url(self, view: str | None = None, *, token: str | None = None, **query: str) -> str:
        """Returns the page's address, with a token in its fragment."""
        given = ({} if view is None else {"view": view}) | query
        return f"{self.api.url}/ui{'?' if given else ''}{urlencode(given)}#token={token or self.token}"

    def make_token(self, name: str, *scopes: str) -> str:
        made = self.api.ask("POST", "/tokens", {"name": name, "scopes": list(scopes), "reason": "a test"})
        token: str = made["token"]
        return token


@dataclass
class LiveSite(Site):
    """A deployment with whole lives in it; lives.py says which."""

    event_id: UUID | None = None
    decisions: list[UUID] = field(default_factory=list)


def _site(database: TestDatabase, seeded: Seeded) -> Iterator[Site]:
    api = ApiServer(database, ROOT)
    try:
        yield Site(api, seeded, database)
    finally:
        api.close()


@pytest.fixture(scope="session")
def seeded_database(postgres: PostgresServer) -> Iterator[tuple[TestDatabase, Seeded]]:
    """The database that all tests read, and that new ones are cloned from. Nobody stays connected to it."""
    for database in _database(postgres, template=TEMPLATE):
        seeded = seed(database)
        api = ApiServer(database, ROOT)
        try:
            operate(api)
        finally:
            api.close()
        yield database, seeded


@pytest.fixture
def site(postgres: PostgresServer, seeded_database: tuple[TestDatabase, Seeded]) -> Iterator[Site]:
    """A deployment of the test's own, filled as seeding.py says."""
    template, seeded = seeded_database
    for database in _database(postgres, template=template.name):
        yield from _site(database, seeded)


@pytest.fixture(scope="session")
def live_site(postgres: PostgresServer, seeded_database: tuple[TestDatabase, Seeded]) -> Iterator[LiveSite]:
    """A deployment with an event and decisions to which everything happened; tests only read it."""
    template, seeded = seeded_database
    for database in _database(postgres, template=template.name):
        for site in _site(database, seeded):
            site.api.ask("PUT", "/switches/action:HEDGE", {"is_off": False, "reason": "a decision is to be executed"})
            event_id, decisions = live_event(database, site.api), live_decisions(database)
            yield LiveSite(site.api, seeded, database, event_id=event_id, decisions=decisions)


@pytest.fixture
def empty_site(database: TestDatabase) -> Iterator[Site]:
    """A deployment in which nothing has happened."""
    yield from _site(database, Seeded())


@dataclass
class Tab:
    """A page in the browser, with all that it asked for."""

    page: Page
    requests: list[Request] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def reports(self) -> list[str]:
        """Returns what the Content Security Policy refused."""
        found: list[str] = self.page.evaluate("window.reports")
        return found

    def violations(self) -> list[str]:
        """Returns what axe finds, each with the elements."""
        found = Axe().run(self.page, options={"resultTypes": ["violations"]}).response["violations"]
        return [f"{one['id']}: {json.dumps([node['html'][:200] for node in one['nodes']])}" for one in found]

    def overflows(self) -> bool:
        """Tells whether the page is wider than its window."""
        wide: bool = self.page.evaluate("document.documentElement.scrollWidth > innerWidth")
        return wide


type OpenTab = Callable[..., Tab]


@pytest.fixture
def open_tab(browser: Browser) -> Iterator[OpenTab]:
    """Opens a URL in a browser of its own, which must report no violated policy and no error in the end."""
    tabs: list[Tab] = []

    def open_tab(
        url: str, *, theme: str = "light", width: str = "wide", options: Mapping[str, Any] | None = None
    ) -> Tab:
        size = dict(zip(("width", "height"), WIDTHS[width], strict=True))
        context = browser.new_context(color_scheme=theme, viewport=size, **(options or {}))  # type: ignore[arg-type]
        context.add_init_script(WATCH)
        tab = Tab(context.new_page())
        tab.page.on("request", lambda request: tab.requests.append(request))  # noqa: PLW0108 - it must take attributes
        tab.page.on("pageerror", lambda error: tab.errors.append(str(error)))
        tabs.append(tab)
        tab.page.goto(url)
        return tab

    yield open_tab
    found = [(tab.page.url, tab.reports(), tab.errors) for tab in tabs if not tab.page.is_closed()]
    for tab in tabs:
        tab.page.context.close()
    assert [one for one in found if one[1] or one[2]] == []
