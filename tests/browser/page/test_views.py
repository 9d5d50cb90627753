"""Every view opens in both themes and at both widths: axe finds nothing, no policy is violated, nothing overflows."""

import pytest
from tests.browser.page.conftest import THEMES, WIDTHS, OpenTab, Site

VIEWS = ("flow", "events", "decisions")


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("view", VIEWS)
def test_a_view_is_accessible(site: Site, open_tab: OpenTab, view: str, theme: str, width: str) -> None:
    tab = open_tab(site.url(view), theme=theme, width=width)
    tab.page.wait_for_selector("main h1", state="attached")
    tab.page.wait_for_load_state("networkidle")
    assert tab.violations() == []
    assert not tab.overflows()
