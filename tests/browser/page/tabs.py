"""Tabs of a real browser, each with all that it asked for and all that its policy refused."""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, Request, sync_playwright

WIDTHS = {"phone": (390, 844), "wide": (1280, 800)}
THEMES = ("light", "dark")
VIEWS = ("flow", "events", "decisions", "approvals", "letters", "operations", "switches", "audit")
"""The views of the menu, by name."""
_WATCH = """
window.reports = [];
document.addEventListener('securitypolicyviolation', (event) =>
  window.reports.push(`${event.violatedDirective} ${event.blockedURI} ${event.sample}`));
"""


@dataclass
class Tab:
    """A page in the browser, with all that it asked for."""

    page: Page
    requests: list[Request] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def show(self, *, theme: str, width: str) -> None:
        """Shows the page in another theme and width, as it is."""
        scheme: Any = theme
        size: Any = dict(zip(("width", "height"), WIDTHS[width], strict=True))
        self.page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
        self.page.set_viewport_size(size)

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

    def settle(self) -> None:
        """Waits until the view is there and has what it asked for."""
        self.page.wait_for_selector("main h1", state="attached")
        self.page.wait_for_load_state("networkidle")


@contextmanager
def running_browser() -> Iterator[Browser]:
    """Runs a headless Chromium until the block ends."""
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert path, "These tests need a Chromium: on Debian and Ubuntu, apt-get install chromium"
    with sync_playwright() as playwright:
        # Root cannot use the sandbox; the pages are our own.
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


def new_tab(browser: Browser, *, theme: str = "light", width: str = "wide", **options: Any) -> Tab:
    """Returns an empty tab in a browser profile of its own."""
    size: Any = dict(zip(("width", "height"), WIDTHS[width], strict=True))
    scheme: Any = theme
    context = browser.new_context(color_scheme=scheme, viewport=size, **options)
    context.add_init_script(_WATCH)
    tab = Tab(context.new_page())
    tab.page.on("request", lambda request: tab.requests.append(request))  # noqa: PLW0108 - it must take attributes
    tab.page.on("pageerror", lambda error: tab.errors.append(str(error)))
    return tab


def answer_flow(tab: Tab, flow: Mapping[str, Any]) -> None:
    """Lets this stand in for the answer of GET /flow."""
    tab.page.context.route("**/flow", lambda route: route.fulfill(json=flow))
