"""The page on the deployed stack, behind the emulator's gateway and its guard: each view, theme and width."""

import json
import sys
from collections.abc import Iterator
from itertools import product

import pytest
from playwright.sync_api import Browser, expect
from tests.browser.page.tabs import THEMES, VIEWS, WIDTHS, first_flow, new_tab, running_browser, told
from tests.e2e.conftest import LocalCloud

SLOW = 120_000
"""Milliseconds; a first request waits for the function's start."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with running_browser() as browser:
        yield browser


@pytest.mark.parametrize("view", VIEWS)
def test_every_view_opens_and_is_accessible(local_cloud: LocalCloud, browser: Browser, view: str) -> None:
    url, token = local_cloud.environ["API_URL"], local_cloud.environ["API_TOKEN"]
    tab = new_tab(browser)
    tab.page.set_default_timeout(SLOW)
    try:
        tab.page.goto(f"{url}/ui?view={view}#token={token}")
        tab.settle()
        alerts = tab.page.locator("[role=alert]")
        assert alerts.count() == 0, alerts.all_inner_texts()
        for theme, width in product(THEMES, WIDTHS):
            tab.show(theme=theme, width=width)
            assert tab.violations() == [], (theme, width)
            assert not tab.overflows(), (theme, width)
        assert tab.reports() == tab.errors == []
        assert [one.url for one in tab.requests if not one.url.startswith((url, "data:"))] == []
        assert token not in json.dumps([one.url for one in tab.requests])
    finally:
        tab.page.context.close()


def test_what_the_first_flow_takes_is_told(
    local_cloud: LocalCloud, browser: Browser, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is not asserted: on an emulator, each environment of a function is a process of this machine."""
    url = f"{local_cloud.environ['API_URL']}/ui#token={local_cloud.environ['API_TOKEN']}"
    first_flow(browser, url)  # the functions start
    visits = [first_flow(browser, url, reloads=3) for _ in range(3)]
    later = [one for visit in visits for one in visit.reloads]
    with capsys.disabled():
        sys.stdout.write(f"\n{told('first visit', visits)}\n{told('later visit', later)}\n")
    assert all(len(one.requests) <= 2 for one in later)


def test_the_flow_is_drawn_and_opened(local_cloud: LocalCloud, browser: Browser) -> None:
    tab = new_tab(browser)
    tab.page.set_default_timeout(SLOW)
    try:
        tab.page.goto(f"{local_cloud.environ['API_URL']}/ui#token={local_cloud.environ['API_TOKEN']}")
        expect(tab.page.locator(".stage")).to_have_count(7, timeout=SLOW)
        tab.page.locator(".stage a", has_text="outbox").click()
        tab.page.wait_for_selector(".chart canvas")
        assert tab.reports() == tab.errors == []
    finally:
        tab.page.context.close()
