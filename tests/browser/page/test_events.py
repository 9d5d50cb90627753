"""Events on the page: one is told as API and terminal tell it; the list is filtered, linked, live and exported."""

import csv
import io
import json
import re
import time
from collections import defaultdict
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from playwright.sync_api import Browser, Locator, Page, Request, Route, expect
from tests.browser.page.conftest import ROOT, THEMES, WIDTHS, LiveSite, OpenTab, Site
from tests.browser.page.seeding import HOSTILE
from tests.browser.page.test_limits import limits, refused
from tests.checkout import ROOT as CHECKOUT_FOLDER
from tests.integration import seeds
from tests.integration.running_cloud import run

from control_plane.platform.database import connect
from domains import EVENT_TYPES
from local_cloud.cloud import Cloud
from local_cloud.workspace import CHECKOUT, Workspace

type Told = list[tuple[str, str]]
"""What happened: an instant to the millisecond, and words."""


def milliseconds(at: str) -> str:
    return f"{datetime.fromisoformat(at):%H:%M:%S.%f}"[:12]


def rows(page: Page) -> list[str]:
    """Returns the first cells of a list's rows, once there are any."""
    expect(page.locator("a.row").first).to_be_visible()
    return page.locator("a.row").all_inner_texts()


def query_of(page: Page) -> dict[str, str]:
    return {name: value for name, [value] in parse_qs(urlsplit(page.url).query).items()}


def told_by_the_api(timeline: Any) -> Told:
    """Returns what the API says of an event, in order of time, in the words of the others."""
    told = [(timeline["event"]["ingested_at"], "stored with its messages, in one transaction")]
    for one in timeline["deliveries"]:
        told += [(each["failed_at"], f"attempt {each['attempt']} failed") for each in one["failures"]]
        if one["delivered_at"]:
            told.append((one["delivered_at"], f"delivered as message {one['message_id']}"))
        if one["dead_lettered_at"]:
            told.append((one["dead_lettered_at"], "dead-lettered"))
            told.append((one["resolved_at"], f"{one['resolution']} by {one['resolved_by']}"))
    told += [(one["failed_at"], f"failed, receive {one['attempt']}") for one in timeline["consume_failures"]]
    for one in timeline["consumer_dead_letters"]:
        told.append((one["dead_lettered_at"], "given up on"))
        told.append((one["resolved_at"], f"{one['resolution']} by {one['resolved_by']}"))
    told += [(one["processed_at"], "processed") for one in timeline["processing"]]
    return [(milliseconds(at), words) for at, words in sorted(told, key=lambda one: datetime.fromisoformat(one[0]))]


PROMISE = re.compile("promised |for signal_lab")


def told_by_the_page(page: Page) -> Told:
    """Returns the timeline's rows, without the promises, which the terminal tells as headings."""
    told = []
    for row in page.locator(".story li").all():
        at = milliseconds(row.locator("time").first.get_attribute("datetime") or "")
        words = row.locator("div > p").first.locator("bdi").last.inner_text()
        if not PROMISE.match(words):
            told.append((at, words))
    return told


def told_by_the_terminal(shown: str, known: Told) -> Told:
    """Returns the lines with an instant, in order of time, each as far as the others tell it."""
    found = re.findall(r"(\d\d:\d\d:\d\d\.\d{3})Z  (.*)", shown)
    words = {text for _, text in known}
    told = []
    for at, line in found:
        if not PROMISE.search(line.split(":")[0]):
            said = [text for text in words if re.sub(r"\bby signal_lab|signal_lab ", "", line).startswith(text)]
            told.append((at, max(said, key=len, default=line)))
    return sorted(told, key=lambda one: one[0])


def test_the_life_of_an_event_reads_the_same_everywhere(
    live_site: LiveSite, open_tab: OpenTab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timeline = live_site.api.ask("GET", f"/events/{live_site.event_id}")
    by_api = told_by_the_api(timeline)
    assert [words for _, words in by_api] == [
        "stored with its messages, in one transaction", "attempt 1 failed", "attempt 2 failed", "dead-lettered",
        "redriven by token:root", "delivered as message m-1", "failed, receive 1", "failed, receive 2", "given up on",
        "redriven by token:root", "delivered as message m-2", "processed",
    ]  # fmt: skip
    page = open_tab(live_site.url("event", id=str(live_site.event_id))).page
    expect(page.locator(".story li").first).to_be_visible()
    assert told_by_the_page(page) == by_api
    monkeypatch.setenv("COLUMNS", "500")
    nowhere = Cloud(Workspace(CHECKOUT, tmp_path, tmp_path / "state"))
    shown = run(nowhere, "--url", live_site.api.url, "--token", ROOT, "trace", str(live_site.event_id)).stdout
    assert told_by_the_terminal(shown, by_api) == by_api
    # What was redriven is promised again when it is redriven.
    letters = [*timeline["deliveries"], *timeline["consumer_dead_letters"]]
    redriven = sorted(milliseconds(one["resolved_at"]) for one in letters if one["resolved_at"])
    assert re.findall(r"(\d\d:\d\d:\d\d\.\d{3})Z  again for signal_lab", shown) == redriven
    again = page.locator(".story li", has_text="promised again").locator("time").all()
    assert [milliseconds(one.get_attribute("datetime") or "") for one in again] == redriven
    expect(page.locator(".stands li")).to_have_text(re.compile("processed.*signal_lab"))


def test_what_is_dead_comes_first_and_leads_to_where_it_is_sent_again(site: Site, open_tab: OpenTab) -> None:
    dead = site.seeded.events[30]
    page = open_tab(site.url("event", id=str(dead))).page
    first = page.locator(".detail .part").first
    expect(first.locator(".stands li")).to_contain_text("dead lettered")
    expect(first.locator(".said")).to_contain_text("the queue refused it: MessageTooLong")
    href = first.get_by_text("Send again").get_attribute("href") or ""
    [letter] = [one for one in site.api.ask("GET", "/dead-letters?limit=200")["items"] if one["event_id"] == str(dead)]
    assert parse_qs(urlsplit(href).query) == {"view": ["letters"], "id": [str(letter["id"])]}


def test_an_event_leads_to_its_decisions_and_its_run(live_site: LiveSite, open_tab: OpenTab) -> None:
    decision = live_site.api.ask("GET", f"/decisions/{live_site.decisions[0]}")["decision"]
    page = open_tab(live_site.url("event", id=decision["trigger_event_id"])).page
    page.get_by_role("region", name="Decisions on it").get_by_role("link").click()
    expect(page.locator(".about strong")).to_have_text(decision["entity_id"])
    assert query_of(page) == {"view": "decision", "id": decision["decision_id"]}
    page.get_by_role("link", name="all events of its run").click()
    assert query_of(page) == {"view": "events", "trace_id": decision["trace_id"]}
    assert len(rows(page)) > 10


def test_filters_are_the_address(site: Site, open_tab: OpenTab) -> None:
    page = open_tab(site.url("events")).page
    assert len(set(rows(page))) > 1
    page.locator(".filters select").select_option("MARKET_TICK_INGESTED")
    page.get_by_label("Entity").fill("AAPL")
    expect(page.locator("tbody tr", has_not_text="MARKET_TICK_INGESTED")).to_have_count(0)
    page.wait_for_url("**entity_id=AAPL**")
    assert query_of(page) == {"view": "events", "event_type": "MARKET_TICK_INGESTED", "entity_id": "AAPL"}
    shown = rows(page)
    again = open_tab(site.url(**query_of(page))).page
    assert rows(again) == shown
    again.get_by_role("button", name="Clear").click()
    expect(again.locator("tbody tr", has_text="SWITCH_SET").first).to_be_visible()
    assert query_of(again) == {"view": "events"}


def test_a_filter_that_no_index_serves_says_what_to_add(site: Site, open_tab: OpenTab) -> None:
    page = open_tab(site.url("events", source="fake")).page
    expect(page.get_by_role("alert")).to_contain_text("add event_type, entity_id or trace_id")


def test_pages_follow_one_another_without_a_gap(site: Site, open_tab: OpenTab) -> None:
    everything = site.api.ask("GET", "/events?limit=200")["items"]
    page = open_tab(site.url("events")).page
    assert len(rows(page)) == 50
    page.get_by_role("button", name="Show more").click()
    expect(page.locator("a.row")).to_have_count(min(100, len(everything)))
    assert rows(page) == [one["event_type"] for one in everything[:100]]


def test_what_is_new_is_counted_and_moves_no_row(site: Site, open_tab: OpenTab) -> None:
    page = open_tab(site.url("events", event_type="MARKET_TICK_INGESTED")).page
    before = rows(page)
    with connect(site.database.app_url, application_name="test") as app:
        seeds.store(app, seeds.ticks(3, entity_id="TSLA"))
    news = page.get_by_role("button", name="3 new: show")
    expect(news).to_be_visible(timeout=15_000)
    assert rows(page) == before
    expect(page.locator("tbody tr", has_text="TSLA")).to_have_count(0)
    news.click()
    expect(page.locator("tbody tr", has_text="TSLA")).to_have_count(3)


def test_by_keyboard_alone_an_event_is_found_opened_and_closed(site: Site, open_tab: OpenTab) -> None:
    page = open_tab(site.url("events")).page
    rows(page)
    page.keyboard.press("/")
    page.keyboard.press("Tab")
    page.keyboard.type("AAPL")
    page.wait_for_url("**entity_id=AAPL**")
    rows(page)
    page.keyboard.press("Escape")
    page.keyboard.press("j")
    page.keyboard.press("j")
    chosen = page.evaluate("document.activeElement.getAttribute('href')")
    page.keyboard.press("Enter")
    expect(page.locator(".pane .story li").first).to_be_visible()
    assert query_of(page) == {name: value for name, [value] in parse_qs(chosen.removeprefix("?")).items()}
    page.keyboard.press("Escape")
    expect(page.locator(".pane")).to_have_count(0)
    assert query_of(page) == {"view": "events", "entity_id": "AAPL"}


@pytest.mark.parametrize("number", range(len(HOSTILE)))
def test_hostile_text_is_shown_and_does_nothing(site: Site, open_tab: OpenTab, number: int) -> None:
    hostile = site.seeded.events[-len(HOSTILE) + number]
    tab = open_tab(site.url("events", id=str(hostile)), width="phone")
    expect(tab.page.locator(".story .said").first).to_be_visible()
    assert not tab.overflows()
    shown = tab.page.locator(".story .said").first.inner_text()
    # What controls a terminal, or turns a text's direction, is no part of an error on record.
    assert shown[:20] == ("gnp.exe [31m red" if number == 1 else HOSTILE[number])[: len(shown)][:20]
    assert tab.page.locator(".detail img, .detail script").count() == 0


def downloaded(page: Page, button: Locator) -> str:
    with page.expect_download() as download:
        button.click()
    return Path(download.value.path()).read_text(encoding="utf-8")


def test_what_is_filtered_is_exported(site: Site, open_tab: OpenTab) -> None:
    page = open_tab(site.url("events", entity_id="AAPL")).page
    rows(page)
    listed = site.api.ask("GET", "/events?entity_id=AAPL&limit=200")["items"]
    assert json.loads(downloaded(page, page.get_by_role("button", name="JSON"))) == listed
    table = list(csv.DictReader(io.StringIO(downloaded(page, page.get_by_role("button", name="CSV")))))
    assert [row["event_id"] for row in table] == [one["event_id"] for one in listed]


def span(name: str, number: int, start: int, seconds: float, **more: Any) -> dict[str, Any]:
    begun = 1_700_000_000 * 10**9 + start * 10**9
    times = {"startTimeUnixNano": str(begun), "endTimeUnixNano": str(begun + int(seconds * 1e9))}
    return {"traceId": "0" * 31 + "1", "spanId": f"{number:016x}", "name": name, **times, **more}


def test_spans_are_a_waterfall(live_site: LiveSite, open_tab: OpenTab) -> None:
    failed = {"status": {"code": 2}, "attributes": [{"key": "error.type", "value": {"stringValue": "<b>Timeout</b>"}}]}
    spans = [
        span("process signal_lab", 3, 2, 0.5, parentSpanId=f"{1:016x}"),
        span("create", 1, 0, 0.25),
        span("send", 2, 1, 3, parentSpanId=f"{1:016x}", **failed),
    ]

    def answer(route: Route) -> None:
        route.fulfill(json={"resourceSpans": [{"scopeSpans": [{"spans": spans}]}]})

    tab = open_tab("about:blank")
    tab.page.route("**/events/*?format=otlp", answer)
    tab.page.goto(live_site.url("event", id=str(live_site.event_id)))
    assert [one.url for one in tab.requests if "otlp" in one.url] == []
    tab.page.get_by_role("region", name="Spans").scroll_into_view_if_needed()
    shown = tab.page.locator(".waterfall li")
    expect(shown).to_have_count(3)
    names = tab.page.locator(".waterfall .name")
    assert names.all_inner_texts() == ["create", "send", "process signal_lab"]
    assert [one.get_attribute("data-depth") for one in names.all()] == ["0", "1", "1"]
    assert tab.page.locator(".waterfall summary > .number").all_inner_texts() == ["250 ms", "3.0 s", "500 ms"]
    shown.nth(1).locator("summary").click()
    expect(shown.nth(1)).to_contain_text("<b>Timeout</b>")
    assert tab.violations() == []


def test_ten_tabs_with_an_event_fit_the_gateways_limits(live_site: LiveSite, browser: Browser) -> None:
    asked: dict[str, list[float]] = defaultdict(list)

    def note(request: Request) -> None:
        path = re.sub(r"/[0-9a-f]{8}-[0-9a-f-]{27}$", "/{id}", urlsplit(request.url).path).removeprefix("/")
        asked["ui/{asset}" if path.startswith("ui/") else path].append(time.monotonic())

    contexts = [browser.new_context() for _ in range(10)]
    try:
        url = live_site.url("events", id=str(live_site.event_id))
        for context in contexts:
            context.on("request", note)
            context.new_page().evaluate(f"setTimeout(() => location.replace({url!r}))")
        for context in contexts:
            context.pages[0].wait_for_selector(".story", timeout=120_000)
        contexts[0].pages[0].wait_for_timeout(6000)
    finally:
        for context in contexts:
            context.close()
    assert {"ui", "events", "events/{id}", "decisions"} <= asked.keys()
    allowed = limits()
    seen = {path: refused(sorted(instants), *allowed.get(path, allowed["*"])) for path, instants in asked.items()}
    assert set(seen.values()) == {0}, seen


@pytest.mark.parametrize("kind", ["event", "decision"])
def test_the_spans_of_the_record_are_shown(live_site: LiveSite, open_tab: OpenTab, kind: str) -> None:
    one = live_site.event_id if kind == "event" else live_site.decisions[0]
    told = live_site.api.ask("GET", f"/{kind}s/{one}?format=otlp")["resourceSpans"]
    spans = [span for resource in told for scope in resource["scopeSpans"] for span in scope["spans"]]
    tab = open_tab(live_site.url(kind, id=str(one)))
    region = tab.page.get_by_role("region", name="Spans")
    region.scroll_into_view_if_needed()
    expect(tab.page.locator(".waterfall li")).to_have_count(len(spans))
    assert sorted(tab.page.locator(".waterfall .name").all_inner_texts()) == sorted(span["name"] for span in spans)
    failed = [span for span in spans if span.get("status", {}).get("code") == 2]
    expect(tab.page.locator(".waterfall summary svg.bad:not(.icon)")).to_have_count(len(failed))
    assert tab.violations() == []


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("theme", THEMES)
def test_an_event_is_accessible(live_site: LiveSite, open_tab: OpenTab, theme: str, width: str) -> None:
    for view in ("event", "events"):
        tab = open_tab(live_site.url(view, id=str(live_site.event_id)), theme=theme, width=width)
        expect(tab.page.locator(".story li").first).to_be_visible()
        tab.page.wait_for_load_state("networkidle")
        assert tab.violations() == []
        assert not tab.overflows()


def test_the_page_offers_the_contracts_types_of_events() -> None:
    source = (CHECKOUT_FOLDER / "functions/ops_api/ui/events.js").read_text(encoding="utf-8")
    listed = re.search(r"const TYPES = \[(.*?)\];", source, re.DOTALL)
    assert listed is not None
    assert sorted(json.loads(f"[{listed[1].strip().rstrip(',')}]")) == sorted({one.event_type for one in EVENT_TYPES})
