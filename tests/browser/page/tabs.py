"""Tabs of a real browser, each with all that it asked for and all that its policy refused."""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
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
_WATCH_THE_FLOW = """
window.drawn = new Promise((done) => new MutationObserver((_, watching) => {
  if (!document.querySelector('.strip')) return;
  watching.disconnect();
  requestAnimationFrame(() => setTimeout(() => done(performance.now())));
}).observe(document, { childList: true, subtree: true }));
"""
_REQUESTS = """performance.getEntriesByType('resource')
  .filter((one) => one.name.startsWith('http') && one.transferSize > 0)
  .map((one) => [new URL(one.name).pathname, one.startTime, one.responseEnd])"""


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

    def lost(self) -> list[str]:
        """Returns where a keyboard's focus was lost or could not be seen, if somebody had a keyboard."""
        found: list[str] = self.page.evaluate("window.lost ?? []")
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


@dataclass(frozen=True, slots=True)
class FirstFlow:
    """What it took until the flow was drawn."""

    drawn: float
    """Milliseconds from the beginning of the navigation."""
    requests: list[tuple[str, float, float]]
    """What was asked for besides the HTML and not found in the cache, with its beginning and end in milliseconds."""
    reloads: list["FirstFlow"] = field(default_factory=list)
    """What it took when the page was loaded again, with its files in the cache."""


def first_flow(browser: Browser, url: str, *, reloads: int = 0) -> FirstFlow:
    """Opens the flow in a profile of its own, and loads it again so many times."""
    context = browser.new_context()
    try:
        context.add_init_script(_WATCH_THE_FLOW)
        page = context.new_page()
        page.set_default_timeout(120_000)
        page.goto(url)
        first = _drawn(page)
        for _ in range(reloads):
            page.reload()
            first.reloads.append(_drawn(page))
        return first
    finally:
        context.close()


def told(name: str, taken: Sequence[FirstFlow]) -> str:
    """Returns what it took: the median and the longest, and the median's requests."""
    drawn = sorted(taken, key=lambda one: one.drawn)
    middle = drawn[len(drawn) // 2]
    asked = "; ".join(f"{path} {start:.0f} to {end:.0f}" for path, start, end in middle.requests)
    return f"{name}: median {middle.drawn:.0f} ms, at most {drawn[-1].drawn:.0f} ms, of {len(drawn)} ({asked})"


def _drawn(page: Page) -> FirstFlow:
    drawn: float = page.evaluate("window.drawn")
    asked: list[tuple[str, float, float]] = page.evaluate(_REQUESTS)
    return FirstFlow(drawn, [one for one in asked if one[1] < drawn])
