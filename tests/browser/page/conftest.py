"""The page in a real browser, before the real functions and a real Postgres."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode
from uuid import UUID

import pytest
from playwright.sync_api import Browser
from tests.browser.page.lives import live_decisions, live_event
from tests.browser.page.seeding import Seeded, operate, seed
from tests.browser.page.tabs import THEMES, VIEWS, WIDTHS, Tab, answer_flow, new_tab, running_browser
from tests.conftest import TEMPLATE, TestDatabase, _database
from tests.integration.ops_api.server import ApiServer

from local_cloud.postgres import PostgresServer

__all__ = ["THEMES", "VIEWS", "WIDTHS", "LiveSite", "OpenTab", "Site", "Tab"]

ROOT = "the-token-of-these-tests-is-long-enough"


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with running_browser() as browser:
        yield browser


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
        """Makes a token, and returns it."""
        return self.api.make_token(name, *scopes)


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


type OpenTab = Callable[..., Tab]


@pytest.fixture
def open_tab(browser: Browser) -> Iterator[OpenTab]:
    """Opens a URL in a browser profile of its own, which must report no violated policy, no error and no lost focus.

    ``flow`` stands in for the answer of GET /flow.
    """
    tabs: list[Tab] = []

    def open_tab(
        url: str,
        *,
        theme: str = "light",
        width: str = "wide",
        flow: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> Tab:
        tab = new_tab(browser, theme=theme, width=width, **(options or {}))
        if flow is not None:
            answer_flow(tab, flow)
        tabs.append(tab)
        tab.page.goto(url)
        return tab

    yield open_tab
    there = [tab for tab in tabs if not tab.page.is_closed()]
    found = [(tab.page.url, tab.reports() + tab.errors + tab.lost()) for tab in there]
    for tab in tabs:
        tab.page.context.close()
    assert [one for one in found if one[1]] == []
