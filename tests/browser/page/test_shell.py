"""The shell: keys, what it says while the API is away, and how it notices another release."""

import json
from typing import Any

import pytest
from playwright.sync_api import expect
from tests.browser.page.conftest import OpenTab, Site
from tests.browser.page.flow_sample import busy_flow, quiet_flow


def test_the_flow_is_read_by_keyboard_alone(site: Site, open_tab: OpenTab) -> None:
    tab = open_tab(site.url(), flow=busy_flow())
    tab.page.wait_for_selector(".strip")
    tab.page.keyboard.press("Tab")
    expect(tab.page.get_by_text("Skip to content")).to_be_focused()
    tab.page.keyboard.press("Enter")
    named = tab.page.locator(".verdict a").count()
    assert named > 0
    for _ in range(named + 3):
        tab.page.keyboard.press("Tab")
    tab.page.keyboard.press("Enter")
    expect(tab.page.get_by_role("heading", name="outbox")).to_be_visible()
    assert tab.page.url.endswith("stage=outbox")
    tab.page.keyboard.press("Escape")
    expect(tab.page.get_by_role("heading", name="outbox")).to_have_count(0)
    tab.page.go_back()
    expect(tab.page.get_by_role("heading", name="outbox")).to_be_visible()


def test_no_element_traps_the_keyboard(site: Site, open_tab: OpenTab) -> None:
    tab = open_tab(site.url("flow", stage="outbox"), flow=busy_flow())
    tab.page.wait_for_selector(".chart canvas")
    seen = []
    for _ in range(80):
        tab.page.keyboard.press("Tab")
        seen.append(tab.page.evaluate("document.activeElement.outerHTML.slice(0, 150)"))
        if len(seen) > 1 and seen[-1] == seen[0]:
            break
        assert len(seen) < 2 or seen[-1] != seen[-2]
    assert len(seen) < 80
    assert any("Sign out" in one for one in seen)


def test_help_lists_the_keys_and_closes(site: Site, open_tab: OpenTab) -> None:
    tab = open_tab(site.url(), flow=quiet_flow())
    tab.page.wait_for_selector(".strip")
    tab.page.keyboard.press("?")
    expect(tab.page.get_by_role("dialog", name="Keys")).to_be_visible()
    tab.page.keyboard.press("Escape")
    expect(tab.page.get_by_role("dialog")).to_have_count(0)
    tab.page.keyboard.press("?")
    tab.page.keyboard.press("Enter")
    expect(tab.page.get_by_role("dialog")).to_have_count(0)


def test_an_api_that_is_away_is_told_and_asked_ever_less_often(site: Site, open_tab: OpenTab) -> None:
    tab = open_tab(site.url(), flow=busy_flow())
    tab.page.wait_for_selector(".strip")
    tab.page.context.unroute("**/flow")
    tab.page.context.route("**/flow", lambda route: route.abort())
    expect(tab.page.locator(".banner")).to_contain_text("The API cannot be reached")
    expect(tab.page.locator(".stale")).to_contain_text("not up to date: read")
    expect(tab.page.locator(".strip")).to_be_visible()
    asked = len(tab.requests)
    tab.page.wait_for_timeout(5000)
    assert len(tab.requests) - asked <= 2
    tab.page.context.unroute("**/flow")
    tab.page.context.route("**/flow", lambda route: route.fulfill(json=busy_flow()))
    expect(tab.page.locator(".banner")).to_have_count(0, timeout=20_000)
    expect(tab.page.locator(".stale")).to_have_text("live")


def test_a_hidden_page_asks_nothing(site: Site, open_tab: OpenTab) -> None:
    tab = open_tab(site.url(), flow=busy_flow())
    tab.page.wait_for_selector(".strip")
    hide = (
        "Object.defineProperty(document, 'hidden', {value: %s, configurable: true});"
        "document.dispatchEvent(new Event('visibilitychange'))"
    )
    tab.page.wait_for_timeout(2500)  # whoami was asked
    tab.page.evaluate(hide % "true")
    asked = len(tab.requests)
    tab.page.wait_for_timeout(5000)
    assert len(tab.requests) == asked
    tab.page.evaluate(hide % "false")
    tab.page.wait_for_timeout(500)
    assert len(tab.requests) == asked + 1


@pytest.mark.parametrize("status", [403, 404])
def test_a_route_that_another_release_does_not_have_says_to_reload(site: Site, open_tab: OpenTab, status: int) -> None:
    """The gateway's answer to an unknown route is no document of the API's."""
    tab = open_tab("about:blank")
    body = json.dumps({"message": "Missing Authentication Token"})
    tab.page.context.route("**/flow", lambda route: route.fulfill(status=status, body=body))
    tab.page.goto(site.url())
    expect(tab.page.get_by_role("alert")).to_contain_text("reload the page")


def test_a_newer_release_asks_to_reload(site: Site, open_tab: OpenTab) -> None:
    tab = open_tab("about:blank")

    def newer(route: Any) -> None:
        route.fulfill(json=quiet_flow(), headers={"Acp-Release": "another"})

    tab.page.context.route("**/flow", newer)
    tab.page.goto(site.url())
    expect(tab.page.locator(".banner")).to_contain_text("There is a newer release of this page.")
    expect(tab.page.locator(".strip")).to_be_visible()
    with tab.page.expect_navigation():
        tab.page.get_by_role("button", name="Reload").click()


def test_a_view_whose_file_is_gone_says_to_reload(site: Site, open_tab: OpenTab) -> None:
    tab = open_tab("about:blank")
    tab.page.context.route("**/ui/uplot.*", lambda route: route.fulfill(status=404))
    tab.page.context.route("**/flow", lambda route: route.fulfill(json=quiet_flow()))
    tab.page.goto(site.url("nothing"))
    expect(tab.page.get_by_role("alert")).to_contain_text("names no view")
    tab.page.goto(site.url("flow", stage="outbox"))
    expect(tab.page.locator(".details")).to_contain_text("reload the page, or read the table")


def test_an_empty_deployment_shows_a_flow(empty_site: Site, open_tab: OpenTab) -> None:
    tab = open_tab(empty_site.url(), flow=quiet_flow())
    expect(tab.page.locator(".verdict")).to_have_text("All is well, and quiet")
    expect(tab.page.locator(".stage")).to_have_count(7)
