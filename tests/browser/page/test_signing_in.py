"""Signing in and out, and what the page keeps of its user's choices."""

from playwright.sync_api import Route, expect
from tests.browser.page.conftest import OpenTab, Site
from tests.browser.page.flow_sample import busy_flow


def test_a_token_of_the_fragment_leaves_the_address_at_once(site: Site, open_tab: OpenTab) -> None:
    tab = open_tab(site.url("flow", stage="outbox"), flow=busy_flow())
    tab.page.wait_for_selector(".strip")
    assert tab.page.url == f"{site.api.url}/ui?view=flow&stage=outbox"
    assert tab.page.evaluate("sessionStorage.getItem('acp.token')") == site.token
    assert site.token not in tab.page.evaluate("JSON.stringify(localStorage)")
    tab.page.go_back()
    assert "token" not in tab.page.url


def test_a_pasted_token_signs_in_by_keyboard_alone(site: Site, open_tab: OpenTab) -> None:
    tab = open_tab(f"{site.api.url}/ui", flow=busy_flow())
    expect(tab.page.get_by_label("Token")).to_be_focused()
    tab.page.keyboard.insert_text(f"  {site.token}\n")
    tab.page.keyboard.press("Enter")
    tab.page.wait_for_selector(".strip")
    tab.page.reload()
    tab.page.wait_for_selector(".strip")


def test_a_token_that_is_refused_says_why(site: Site, open_tab: OpenTab) -> None:
    tab = open_tab(site.url(token="acp_" + "x" * 43))
    expect(tab.page.get_by_role("alert")).to_have_text("This is not the token.")
    expect(tab.page.get_by_label("Token")).to_be_visible()


def test_a_token_that_is_revoked_signs_out_with_the_reason(site: Site, open_tab: OpenTab) -> None:
    tab = open_tab(site.url(token=site.api.make_token("eve", "read")))
    expect(tab.page.locator(".who")).to_have_text("eve")
    site.api.ask("DELETE", "/tokens/eve?reason=over")
    expect(tab.page.get_by_role("alert")).to_have_text("The token eve is revoked.")


def test_signing_out_forgets_the_token(site: Site, open_tab: OpenTab) -> None:
    tab = open_tab("about:blank")
    late: list[Route] = []
    tab.page.context.route("**/flow", lambda route: route.fulfill(json=busy_flow()))
    tab.page.context.route("**/whoami", lambda route: late.append(route))  # noqa: PLW0108 - it must take attributes
    tab.page.goto(site.url())
    tab.page.wait_for_selector(".strip")
    tab.page.wait_for_timeout(500)
    tab.page.get_by_role("button", name="Sign out").click()
    expect(tab.page.get_by_label("Token")).to_be_visible()
    # What was asked before says nothing any more.
    late[0].fulfill(json={"name": "kim", "scopes": ["read"], "expires_at": None})
    tab.page.wait_for_timeout(300)
    assert tab.page.evaluate("sessionStorage.length") == 0
    tab.page.reload()
    expect(tab.page.get_by_label("Token")).to_be_visible()


def test_the_theme_and_utc_stick(site: Site, open_tab: OpenTab) -> None:
    tab = open_tab(site.url(), flow=busy_flow(), options={"timezone_id": "America/New_York"})
    background = "getComputedStyle(document.documentElement).backgroundColor"
    light = tab.page.evaluate(background)
    since = tab.page.locator("section[aria-label=Breakers] time").first
    local = since.get_attribute("title") or ""
    assert local.count(":") == 4
    assert local.endswith(" UTC")
    tab.page.get_by_role("button", name="Theme: Auto").click()
    tab.page.get_by_role("button", name="UTC").click()
    for _ in range(2):
        expect(tab.page.get_by_role("button", name="Theme: Dark")).to_be_visible()
        expect(tab.page.get_by_role("button", name="UTC")).to_have_attribute("aria-pressed", "true")
        assert tab.page.evaluate(background) != light
        expect(since).to_have_attribute("title", local.rpartition(", ")[2])
        tab.page.reload()
        tab.page.wait_for_selector(".strip")
