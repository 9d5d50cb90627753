"""The pictures of the page in README.md: made here, so that they show the page as it is.

ACP_WRITE_PICTURES=1 writes them anew: scripts/test browser, or pytest tests/browser/page/test_pictures.py.
"""

import os
import struct

import pytest
from tests.browser.page.conftest import THEMES, OpenTab, Site
from tests.browser.page.flow_sample import busy_flow
from tests.checkout import ROOT

HEIGHT = 714


@pytest.mark.parametrize("theme", THEMES)
def test_readme_shows_the_flow(empty_site: Site, open_tab: OpenTab, theme: str) -> None:
    tab = open_tab(empty_site.url("flow"), theme=theme, flow=busy_flow())
    tab.page.wait_for_selector(".strip")
    tab.settle()
    tab.page.set_viewport_size({"width": 1280, "height": HEIGHT})
    taken = tab.page.screenshot(animations="disabled", caret="hide")
    picture = ROOT / "docs" / f"page-{theme}.png"
    if os.environ.get("ACP_WRITE_PICTURES"):
        picture.write_bytes(taken)
    assert size(picture.read_bytes()) == size(taken) == (1280, HEIGHT)
    assert f'"docs/{picture.name}"' in (ROOT / "README.md").read_text(encoding="utf-8")


def size(png: bytes) -> tuple[int, int]:
    """Returns a PNG's width and height."""
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", png[16:24])
    return width, height
