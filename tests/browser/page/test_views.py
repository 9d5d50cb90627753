"""Every view opens in both themes and at both widths: axe finds nothing, no policy is violated, nothing overflows."""

import pytest
from tests.browser.page.conftest import THEMES, VIEWS, WIDTHS, OpenTab, Site
from tests.browser.page.flow_sample import busy_flow, quiet_flow
from tests.browser.page.seeding import HOSTILE


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("view", VIEWS)
def test_a_view_is_accessible(site: Site, open_tab: OpenTab, view: str, theme: str, width: str) -> None:
    tab = open_tab(site.url(view), theme=theme, width=width)
    tab.settle()
    assert tab.page.locator("[role=alert]").count() == 0
    assert tab.violations() == []
    assert not tab.overflows()


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("state", ["busy", "quiet", "hostile", "opened", "signed out", "help"])
def test_the_flow_is_accessible_in_every_state(
    empty_site: Site, open_tab: OpenTab, state: str, theme: str, width: str
) -> None:
    flow = {"quiet": quiet_flow(), "hostile": busy_flow(hostile="".join(HOSTILE))}.get(state, busy_flow())
    url = empty_site.url("flow", **({"stage": "outbox"} if state in {"opened", "hostile"} else {}))
    tab = open_tab(url.partition("#")[0] if state == "signed out" else url, theme=theme, width=width, flow=flow)
    if state == "signed out":
        tab.page.wait_for_selector("input[name=token]")
    else:
        tab.page.wait_for_selector(".strip")
        if "stage=" in url:
            tab.page.wait_for_selector(".chart canvas")
    if state == "help":
        tab.page.keyboard.press("?")
        tab.page.wait_for_selector("dialog[open]")
    assert tab.violations() == []
    assert not tab.overflows()
    assert tab.page.evaluate("document.documentElement.scrollHeight") < 3000
    assert tab.page.evaluate("document.images.length + document.querySelectorAll('main script').length") == 0
