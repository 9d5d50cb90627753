"""What somebody on call asks first is answered where they look first."""

import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from playwright.sync_api import Locator, Page, expect
from tests.browser.page.conftest import WIDTHS, LiveSite, OpenTab, Site
from tests.browser.page.flow_sample import busy_flow, quiet_flow


def panel(page: Page, name: str) -> Locator:
    return page.locator(f"section.panel[aria-label='{name}']")


def test_the_headline_leads_to_what_it_names(empty_site: Site, open_tab: OpenTab) -> None:
    page = open_tab(empty_site.url("flow"), flow=busy_flow()).page
    # The outbox has failures, too: that it is behind is said all the same.
    said = ["1 breaker open", "1 switch off", "7 dead letters", "outbox behind", "1 approval asked for"]
    expect(page.locator(".verdict a")).to_have_text(said)
    page.get_by_role("link", name="outbox behind").click()
    expect(page.get_by_role("region", name="outbox, opened")).to_be_visible()
    page.get_by_role("link", name="7 dead letters").click()
    expect(page).to_have_title(re.compile("Dead letters"))


def test_a_slash_at_the_end_of_the_address_is_forgiven(empty_site: Site, open_tab: OpenTab) -> None:
    page = open_tab(empty_site.url().replace("/ui", "/ui/")).page
    expect(page.locator(".strip")).to_be_visible()
    assert page.url.partition("?")[0].endswith("/ui")


def test_the_flow_says_why_and_since_when_letters_are_dead(empty_site: Site, open_tab: OpenTab) -> None:
    letters = panel(open_tab(empty_site.url("flow"), flow=busy_flow()).page, "Dead letters")
    expect(letters.locator("li").first).to_contain_text("signal_lab 4 min ago")
    expect(letters.locator("li").first).to_contain_text("SQS answered 503")
    expect(letters.locator("li").last).to_have_text("7 messages were given up on, the oldest 1 h 30 min ago.")


def test_an_older_api_says_how_many_letters_are_dead(empty_site: Site, open_tab: OpenTab) -> None:
    flow = busy_flow()
    del flow["dead_letters"], flow["spending"], flow["waiting"]["oldest_dead_letter_age_seconds"]
    page = open_tab(empty_site.url("flow"), flow=flow).page
    expect(panel(page, "Dead letters").locator("li")).to_have_text(["7 messages were given up on."])
    expect(page.locator(".stage .spent")).to_have_count(0)


@pytest.mark.parametrize(("spent", "said"), [(412_300, "$0.41"), (7, "< $0.01"), (None, "$0")])
def test_the_flow_says_what_agents_have_cost(empty_site: Site, open_tab: OpenTab, spent: int | None, said: str) -> None:
    flow = quiet_flow() | {"spending": {"spent_micros": spent, "limit_micros": None}}
    page = open_tab(empty_site.url("flow"), flow=flow).page
    expect(page.locator(".stage .spent")).to_have_text([f"agents {said} today"])


def test_a_probe_that_is_due_is_not_told_as_past(empty_site: Site, open_tab: OpenTab) -> None:
    flow = busy_flow()
    flow["open_breakers"][0]["retry_at"] = (datetime.now(UTC) - timedelta(seconds=14)).isoformat()
    breakers = panel(open_tab(empty_site.url("flow"), flow=flow).page, "Breakers")
    expect(breakers).to_contain_text("the next run tries again")


def test_the_list_of_events_says_where_each_stands(site: Site, open_tab: OpenTab) -> None:
    page = open_tab(site.url("events", event_type="MARKET_TICK_INGESTED")).page
    expect(page.locator("tbody tr").first.locator(".roomy .state")).to_have_text("pending")
    states = set(page.locator("tbody .roomy .state").all_inner_texts())
    assert states == {"pending", "retrying", "dead lettered", "delivered"}


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("view", ["events", "decisions"])
def test_a_list_fits_its_window(live_site: LiveSite, open_tab: OpenTab, view: str, width: str) -> None:
    chosen = {"event_type": "MARKET_TICK_INGESTED"} if view == "events" else {}
    page = open_tab(live_site.url(view, **chosen), width=width).page
    expect(page.locator("tbody .state:visible").first).to_be_visible()
    table: Any = page.locator(".list .scroll").evaluate("(one) => [one.scrollWidth, one.clientWidth]")
    assert table[0] <= table[1]


@pytest.mark.parametrize("view", ["events", "decisions"])
def test_a_record_reads_the_same_beside_its_list(live_site: LiveSite, open_tab: OpenTab, view: str) -> None:
    record = str(live_site.event_id if view == "events" else live_site.decisions[0])

    def style(shown: str) -> Any:
        page = open_tab(live_site.url(shown, id=record)).page
        text = page.locator(".detail .part > *").first
        expect(text).to_be_visible()
        return text.evaluate("(one) => ['fontSize', 'fontWeight', 'color'].map((name) => getComputedStyle(one)[name])")

    assert style(view) == style(view.removesuffix("s"))


def test_the_list_of_decisions_says_what_is_proposed_and_who_answered(live_site: LiveSite, open_tab: OpenTab) -> None:
    page = open_tab(live_site.url("decisions")).page
    expect(page.locator("tbody tr", has_text="HEDGE, approved by acp_command").first).to_be_visible()
