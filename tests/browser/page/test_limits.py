"""The page stays within its limits: its size, its requests, what it tells, and what the gateway lets through."""

import gzip
import time
from collections import defaultdict
from collections.abc import Sequence
from statistics import median
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser
from tests.browser.page.conftest import OpenTab, Site
from tests.browser.page.flow_sample import busy_flow
from tests.template import RESOURCES

from control_plane.api.flow import KEEP_SECONDS

MOST_REQUESTS = 8
MOST_BYTES = 60_000
TABS = 10


def path_of(url: str) -> str:
    return urlsplit(url).path


def test_the_shell_is_small(empty_site: Site, open_tab: OpenTab) -> None:
    """Its requests and bytes until the flow is drawn, compressed as the gateway does."""
    tab = open_tab(empty_site.url(), flow=busy_flow())
    tab.page.wait_for_selector(".strip")
    asked = [request for request in tab.requests if not request.url.startswith("data:")]
    drawn = next(n for n, request in enumerate(asked) if path_of(request.url) == "/flow") + 1
    assert drawn <= MOST_REQUESTS, [request.url for request in asked]
    sizes = {path_of(one.url): len(gzip.compress(one.response().body())) for one in asked[:drawn]}  # type: ignore[union-attr]
    assert sum(sizes.values()) <= MOST_BYTES, sizes


def test_the_token_is_sent_in_one_header_alone(site: Site, open_tab: OpenTab) -> None:
    tab = open_tab(site.url("flow"), flow=busy_flow())
    tab.page.wait_for_selector(".strip")
    tab.page.click("text=Events")
    tab.page.wait_for_timeout(500)
    assert site.token not in tab.page.url
    assert tab.page.context.cookies() == []
    for request in tab.requests:
        headers = request.all_headers()
        assert site.token not in request.url
        assert "referer" not in headers
        assert "cookie" not in headers
        carries = [name for name, value in headers.items() if site.token in value]
        assert carries in ([], ["authorization"])
        assert bool(carries) == ("/ui" not in path_of(request.url))


def limits() -> dict[str, tuple[float, int]]:
    """Returns the rate and the burst that the gateway allows each GET route; ``*`` for all others."""
    found = {}
    for one in RESOURCES["OpsApi"]["Properties"]["MethodSettings"]:
        if one["HttpMethod"] in {"GET", "*"}:
            path = one["ResourcePath"].replace("~1", "/").removeprefix("/")
            found[path] = (one["ThrottlingRateLimit"], one["ThrottlingBurstLimit"])
    return found


def refused(instants: Sequence[float], rate: float, burst: int) -> int:
    """Returns how many requests a token bucket refuses."""
    held, before, refusals = float(burst), instants[0], 0
    for instant in instants:
        held = min(burst, held + (instant - before) * rate)
        before = instant
        if held >= 1:
            held -= 1
        else:
            refusals += 1
    return refusals


def test_a_token_bucket_refuses_what_is_too_much() -> None:
    assert refused([0.0] * 10, rate=1, burst=10) == 0
    assert refused([0.0] * 12, rate=1, burst=10) == 2
    assert refused([0.0] * 10 + [1.0, 1.0], rate=1, burst=10) == 1


def at_work(asked: Sequence[tuple[float, float]], *, window: float = 1.0) -> float:
    """Returns how many environments of a function are at work in the busiest second, by Little's law.

    ``asked`` are requests, each with its instant and the seconds that it takes to answer it.
    """
    ordered = sorted(asked)
    return max(
        sum(takes for at, takes in ordered[first:] if at < start + window) / window
        for first, (start, _) in enumerate(ordered)
    )


def test_by_littles_law_as_many_are_at_work_as_are_asked_for_times_what_each_takes() -> None:
    assert at_work([(0.0, 0.5), (0.5, 0.5), (2.0, 0.5)]) == 1.0
    assert at_work([(n / 100, 0.25) for n in range(100)]) == pytest.approx(25)


def test_ten_tabs_fit_the_limits_of_the_gateway_and_the_function(empty_site: Site, browser: Browser) -> None:
    """Each tab has a profile of its own, so that none finds a file in a cache."""
    asked: dict[str, list[float]] = defaultdict(list)

    def route_of(path: str) -> str:
        path = path.removeprefix("/")
        return "ui/{asset}" if path.startswith("ui/") else path

    def note(request: Any) -> None:
        asked[route_of(path_of(request.url))].append(time.monotonic())

    contexts = [browser.new_context() for _ in range(TABS)]
    try:
        for context in contexts:
            context.on("request", note)
            context.new_page().evaluate(f"setTimeout(() => location.replace({empty_site.url()!r}))")
        for context in contexts:
            context.pages[0].wait_for_selector(".strip", timeout=60_000)
        contexts[0].pages[0].wait_for_timeout(8000)
    finally:
        for context in contexts:
            context.close()
    assert len(asked["ui"]) == len(asked["whoami"]) == TABS
    assert len(asked["flow"]) > 3 * TABS
    allowed = limits()
    seen = {path: refused(sorted(instants), *allowed.get(path, allowed["*"])) for path, instants in asked.items()}
    assert set(seen.values()) == {0}, seen
    takes: dict[str, list[float]] = defaultdict(list)
    for path, seconds in empty_site.api.served:
        takes[route_of(path)].append(seconds)
    # An environment shows a flow again for a second. Here is one environment; where there are several, each reads it.
    shortest = {route: min(each) for route, each in takes.items()} | {"flow": median(reads(empty_site))}
    reserved = RESOURCES["OpsApiFunction"]["Properties"]["ReservedConcurrentExecutions"]["Fn::If"][1]
    busiest = at_work([(instant, shortest[route]) for route, instants in asked.items() for instant in instants])
    assert busiest <= reserved, shortest


def reads(site: Site) -> list[float]:
    """Returns how many seconds it takes to read a flow, some times."""
    taken = []
    for _ in range(5):
        time.sleep(KEEP_SECONDS)
        site.api.ask("GET", "/flow")
        taken.append(site.api.served[-1][1])
    return taken
