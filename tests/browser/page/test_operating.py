"""What people do on the page: answer, redrive, discard, operate, switch, hold, make tokens; by mouse or by keyboard."""

from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Page, expect
from psycopg import Connection
from tests.browser.page.acting import Hand, Person
from tests.browser.page.conftest import THEMES, WIDTHS, OpenTab, Site, Tab
from tests.browser.page.seeding import HOSTILE
from tests.integration import seeds

from control_plane.model.lifecycle import Accepted, MessageFault
from control_plane.platform.database import connect

HANDS: tuple[Hand, ...] = ("mouse", "keyboard")
WHY = "the queue takes them again"


@pytest.fixture
def relay(site: Site) -> Iterator[Connection[Any]]:
    """What the relay's work is done by."""
    with connect(site.database.app_url, application_name="test") as connection:
        yield connection


def deliver(relay: Connection[Any]) -> None:
    """Does what the relay does: each message that is due is accepted by its queue."""
    while seeds.settle(relay, seeds.claim(relay), Accepted("m")):
        pass


def shown(page: Page, text: str) -> None:
    expect(page.get_by_text(text).first).to_be_visible(timeout=10_000)


def quiet(tab: Tab) -> None:
    """Waits until nothing is being read any more."""
    expect(tab.page.get_by_text("Reading …")).to_have_count(0, timeout=10_000)


# Dead letters


@pytest.mark.parametrize("hand", HANDS)
def test_a_dead_letter_goes_from_its_alarm_to_delivered_in_four_actions(
    site: Site, open_tab: OpenTab, relay: Connection[Any], hand: Hand
) -> None:
    person = Person(open_tab(site.url("letters", subscription="signal_lab")).page, hand, actions=1)
    person.press("Redrive all that match …")
    shown(person.page, "3 letters")
    person.type("reason", WHY)
    person.submit("Redrive 3")
    shown(person.page, "3 wait for a relay")
    deliver(relay)
    expect(person.page.get_by_role("progressbar", name="messages delivered")).to_have_js_property("value", 3)
    assert person.actions <= 4
    [done] = site.api.ask("GET", "/operations?kind=redrive&state=done")["items"]
    assert (done["reason"], done["started_by"], done["done"]) == (WHY, "token:root", 3)
    assert site.api.ask("GET", "/dead-letters?subscription=signal_lab")["items"] == []


@pytest.mark.parametrize("hand", HANDS)
def test_ticked_letters_alone_are_redriven(site: Site, open_tab: OpenTab, hand: Hand) -> None:
    [last, _, first] = site.api.ask("GET", "/dead-letters?subscription=signal_lab")["items"]
    person = Person(open_tab(site.url("letters")).page, hand)
    for letter in (last, first):
        person.press(f"Tick letter {letter['id']}", role="checkbox")
    person.press("Redrive 2 ticked …")
    shown(person.page, "2 letters")
    person.type("reason", WHY)
    person.submit("Redrive 2")
    shown(person.page, "2 wait for a relay")
    found = site.api.ask("GET", "/dead-letters?subscription=signal_lab&resolved=true")["items"]
    assert [one["resolution"] for one in found] == ["redriven", None, "redriven"]


@pytest.mark.parametrize("hand", HANDS)
def test_a_letter_is_read_and_discarded_with_a_reason(site: Site, open_tab: OpenTab, hand: Hand) -> None:
    [letter, *_] = site.api.ask("GET", "/dead-letters?subscription=signal_lab")["items"]
    person = Person(open_tab(site.url("letters", subscription="signal_lab")).page, hand)
    person.open_row(f"#{letter['id']}")
    shown(person.page, "Given up by")
    person.press("Discard it …")
    person.type("reason", "its event was a test")
    person.submit("Discard")
    shown(person.page, "1 letter discarded.")
    shown(person.page, "its event was a test")
    assert site.api.ask("GET", f"/dead-letters/{letter['id']}")["resolution"] == "discarded"


def test_a_plan_that_is_only_looked_at_is_cancelled(site: Site, open_tab: OpenTab) -> None:
    page = open_tab(site.url("letters", subscription="signal_lab")).page
    page.get_by_role("button", name="Redrive all that match …").click()
    shown(page, "3 letters")
    with page.expect_response("**/cancel"):
        page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    expect(page.get_by_role("button", name="Redrive all that match …")).to_be_focused()
    [newest, *_] = site.api.ask("GET", "/operations")["items"]
    assert newest["state"] == "cancelled"
    assert len(site.api.ask("GET", "/dead-letters?subscription=signal_lab")["items"]) == 3


def test_what_is_given_up_on_again_is_told(site: Site, open_tab: OpenTab, relay: Connection[Any]) -> None:
    person = Person(open_tab(site.url("letters", subscription="signal_lab")).page)
    person.press("Redrive all that match …")
    person.type("reason", WHY)
    person.submit("Redrive 3")
    shown(person.page, "3 wait for a relay")
    seeds.settle(relay, seeds.claim(relay, rows=1000), MessageFault("still too long"))
    shown(person.page, "3 given up on again")


# Approvals


@pytest.mark.parametrize("hand", HANDS)
@pytest.mark.parametrize("gives", [True, False])
def test_an_approval_takes_two_actions(site: Site, open_tab: OpenTab, hand: Hand, gives: bool) -> None:
    [request] = site.api.ask("GET", "/approvals")["items"]
    person = Person(open_tab(site.url("approvals", id=request["approval_id"])).page, hand)
    shown(person.page, "What policy said")
    shown(person.page, request["shown"].split("\n")[0])
    person.type("reason", "the loss is worth it")
    person.press("Approve" if gives else "Deny")
    shown(person.page, "by token:root")
    assert person.actions <= 2
    answered = site.api.ask("GET", f"/approvals/{request['approval_id']}")
    assert (answered["is_given"], answered["decided_by"], answered["reason"]) == (
        gives, "token:root", "the loss is worth it",
    )  # fmt: skip


def test_an_approval_says_what_is_asked_and_what_follows(site: Site, open_tab: OpenTab) -> None:
    [request] = site.api.ask("GET", "/approvals")["items"]
    page = open_tab(site.url("approvals")).page
    page.locator("a.row").click()
    pane = page.get_by_role("region", name="Approval", exact=True)
    told = pane.inner_text()
    reasons = [
        reason
        for step in site.api.ask("GET", f"/decisions/{request['decision_id']}")["steps"]
        if step["kind"] == "verdict"
        for reason in step["body"]["reasons"]
    ]
    expect(pane.get_by_text(reasons[0].removeprefix("policy: "))).to_be_visible()
    for line in request["shown"].split("\n"):
        for word in line.replace("  | ", "").split():
            assert word in told
    assert "The same as a no" in told
    assert "left" in told


def test_nothing_is_answered_without_a_reason(site: Site, open_tab: OpenTab) -> None:
    [request] = site.api.ask("GET", "/approvals")["items"]
    tab = open_tab(site.url("approvals", id=request["approval_id"]))
    tab.page.get_by_role("button", name="Approve (say why first)").click(force=True)
    assert [one.method for one in tab.requests if one.method == "POST"] == []


# Operations


@pytest.mark.parametrize("hand", HANDS)
def test_a_replay_is_planned_started_paused_resumed_and_cancelled(site: Site, open_tab: OpenTab, hand: Hand) -> None:
    person = Person(open_tab(site.url("operations", new="replay")).page, hand)
    person.type("filter.subscription", "signal_lab")
    person.type("rate", "0.05")
    person.type("reason", "its table was mended")
    person.submit("Plan it")
    shown(person.page, "runs its effect again")
    for command, verb, state in (
        ("Start …", "Start", "running"), ("Pause …", "Pause", "paused"), ("Resume …", "Resume", "running"),
        ("Cancel …", "Cancel it", "cancelled"),
    ):  # fmt: skip
        person.press(command)
        person.type("reason", f"to see it {state}")
        person.submit(verb)
        expect(person.page.locator(".operation-pane h3 .state")).to_have_text(state)
    [replay] = site.api.ask("GET", "/operations?kind=replay")["items"]
    assert (replay["state"], replay["filter"], replay["rate"]) == ("cancelled", {"subscription": "signal_lab"}, 0.05)


def test_another_rate_is_set(site: Site, open_tab: OpenTab) -> None:
    person = Person(open_tab(site.url("operations")).page)
    person.open_row("redrive")
    person.press("Rate …")
    person.type("rate", "12.5")
    person.type("reason", "others go before")
    person.submit("Change")
    shown(person.page, "12.5 a second")
    [redrive] = site.api.ask("GET", "/operations?kind=redrive")["items"]
    assert redrive["rate"] == 12.5


def test_what_cannot_be_planned_says_why(site: Site, open_tab: OpenTab) -> None:
    person = Person(open_tab(site.url("operations", new="replay")).page)
    person.type("reason", "no reason")
    person.submit("Plan it")
    shown(person.page, "name one of the two")
    person.press("rebuild", role="link")
    person.type("filter.subscription", "nothing")
    person.type("reason", "no reason")
    person.submit("Plan it")
    shown(person.page, "one of those that can be rebuilt")


def test_what_deletes_is_planned_by_admins_alone(site: Site, open_tab: OpenTab) -> None:
    kim = site.make_token("operator", "operate")
    page = open_tab(site.url("operations", new="retention", token=kim)).page
    shown(page, "this token lacks the scope admin")
    expect(page.get_by_role("button", name="Plan it")).to_have_attribute("aria-disabled", "true")
    person = Person(open_tab(site.url("operations", new="retention")).page)
    person.type("filter.events", "400")
    person.type("reason", "the year is over")
    person.submit("Plan it")
    shown(person.page, "0 rows")


# Audit


def test_the_audit_says_who_changed_what_and_why(site: Site, open_tab: OpenTab) -> None:
    person = Person(open_tab(site.url("audit")).page)
    person.open_row("POST /subscriptions/{name}/hold")
    pane = person.page.get_by_role("region", name="Change")
    expect(pane).to_contain_text("its queue is being moved")
    expect(pane.get_by_role("row", name="held_by")).to_contain_text("token:root")


def test_the_audit_tells_others_whom_it_is_for(site: Site, open_tab: OpenTab) -> None:
    page = open_tab(site.url("audit", token=site.make_token("reader", "read"))).page
    shown(page, "this token lacks the scope admin")


# Switches, holds, tokens


@pytest.mark.parametrize("hand", HANDS)
def test_something_is_switched_off_and_on_again(site: Site, open_tab: OpenTab, hand: Hand) -> None:
    person = Person(open_tab(site.url("switches")).page, hand)
    person.press("Switch off …")
    shown(person.page, "Every action: none is released or executed.")
    person.type("reason", "the feed lies")
    person.submit("Switch off")
    person.press("Switch all on")
    person.type("reason", "the feed is right again")
    person.submit("Switch on")
    expect(person.page.get_by_role("button", name="Switch all off")).to_be_visible()
    found = {one["scope"]: one for one in site.api.ask("GET", "/switches")["items"]}
    assert (found["all"]["is_off"], found["all"]["reason"]) == (False, "the feed is right again")


def test_one_model_is_switched_off_by_its_name(site: Site, open_tab: OpenTab) -> None:
    page = open_tab(site.url("switches")).page
    page.get_by_role("button", name="Switch off …").click()
    page.get_by_role("combobox", name="What").select_option("model")
    page.get_by_label("Name of the model").fill("vendor/model-1")
    page.locator("dialog [name=reason]").fill("it invents numbers")
    page.keyboard.press("Enter")
    shown(page, "model:vendor/model-1")
    assert site.api.ask("GET", "/switches")["items"][0]["is_off"]


@pytest.mark.parametrize("hand", HANDS)
def test_a_subscription_is_resumed_and_held(site: Site, open_tab: OpenTab, hand: Hand) -> None:
    person = Person(open_tab(site.url("switches")).page, hand)
    person.press("Resume system_events")
    person.type("reason", "its queue is moved")
    person.submit("Resume")
    person.press("Hold signal_lab")
    person.type("reason", "its consumer is being mended")
    person.submit("Hold")
    shown(person.page, "its consumer is being mended")
    held = {one["name"]: one["held_by"] for one in site.api.ask("GET", "/subscriptions")["items"]}
    assert (held["system_events"], held["signal_lab"]) == (None, "token:root")


def test_a_source_that_never_failed_is_held_and_forgotten(site: Site, open_tab: OpenTab) -> None:
    page = open_tab(site.url("switches")).page
    page.get_by_role("button", name="Hold a source …").click()
    page.get_by_label("Its name").fill("yfinance")
    page.locator("dialog [name=reason]").fill("it blocks us")
    page.keyboard.press("Enter")
    shown(page, "it blocks us")
    person = Person(page)
    for command, verb in (("Resume yfinance", "Resume"), ("Forget yfinance", "Forget")):
        person.press(command)
        person.type("reason", "it answers again")
        person.submit(verb)
    expect(page.get_by_text("yfinance")).to_have_count(0)


def test_a_token_is_made_shown_once_and_revoked(site: Site, open_tab: OpenTab) -> None:
    page = open_tab(site.url("switches")).page
    page.get_by_role("button", name="Make a token …").click()
    page.get_by_label("Whose it is").fill("sam")
    page.get_by_label("operate:").check()
    page.locator("dialog [name=reason]").fill("sam joins")
    page.keyboard.press("Enter")
    token = page.locator(".secret").inner_text()
    assert site.api.ask("GET", "/flow", token=token)
    page.get_by_role("button", name="I have it").click()
    expect(page.locator(".secret")).to_have_count(0)
    assert token not in page.content()
    person = Person(page)
    person.press("Revoke sam")
    person.type("reason", "sam left")
    person.submit("Revoke")
    expect(page.get_by_role("button", name="Revoke sam")).to_have_count(0)
    with pytest.raises(AssertionError, match="revoked"):
        site.api.ask("GET", "/flow", token=token)


# What a token may not do, hostile text, accessibility


@pytest.mark.parametrize(
    "refused",
    [
        ("letters", {}, "Redrive all …", "operate"),
        ("approvals", {"id": "the request"}, "Approve", "approve"),
        ("operations", {"id": "the redrive"}, "Start …", "operate"),
        ("switches", {}, "Switch off …", "operate"),
        ("switches", {}, "Hold signal_lab", "operate"),
    ],
    ids=lambda refused: refused[2],
)
def test_what_a_token_may_not_do_is_shown_with_the_reason(
    site: Site, open_tab: OpenTab, refused: tuple[str, dict[str, str], str, str]
) -> None:
    view, query, label, scope = refused
    reader = site.make_token("reader", "read")
    tab = open_tab(site.url(view, token=reader, **addressed(site, query)))
    button = tab.page.get_by_role("button", name=label).first
    expect(button).to_have_attribute("aria-disabled", "true")
    expect(button).to_have_attribute("title", f"this token lacks the scope {scope}")
    button.click(force=True)
    expect(tab.page.get_by_role("dialog")).to_have_count(0)
    assert [one.url for one in tab.requests if one.method != "GET"] == []


def addressed(site: Site, query: dict[str, str]) -> dict[str, str]:
    """Returns a query whose words for what the site holds are ids."""
    if query.get("id") == "the request":
        return {"id": site.api.ask("GET", "/approvals")["items"][0]["approval_id"]}
    if query.get("id") == "the redrive":
        return {"id": site.api.ask("GET", "/operations")["items"][0]["operation_id"]}
    if query.get("id") == "a letter":
        return {"id": str(site.api.ask("GET", "/dead-letters")["items"][0]["id"])}
    if query.get("id") == "a change":
        return {"id": str(site.api.ask("GET", "/audit")["items"][0]["id"])}
    return query


def test_hostile_text_stays_text_and_in_its_place(site: Site, open_tab: OpenTab, relay: Connection[Any]) -> None:
    for number, text in enumerate(HOSTILE):
        seeds.store(relay, [seeds.tick(100 + number)])
        seeds.settle(relay, seeds.claim(relay, subscriptions=["signal_lab"]), MessageFault(text[:5000]))
        reason = "".join(one for one in text if one.isprintable())[:900]
        site.api.ask("POST", "/operations", {"kind": "redrive", "filter": {"reason": reason[:200]}, "reason": reason})
    [letter, *_] = site.api.ask("GET", "/dead-letters")["items"]
    for view, query in (
        ("letters", {}),
        ("letters", {"id": str(letter["id"])}),
        ("operations", {}),
        ("operations", addressed(site, {"id": "the redrive"})),
        ("audit", {}),
        ("audit", addressed(site, {"id": "a change"})),
        ("switches", {}),
    ):
        tab = open_tab(site.url(view, **query), width="phone")
        expect(tab.page.locator("table, .letter-pane, .operation-pane, .change-pane").first).to_be_attached()
        quiet(tab)
        assert not tab.overflows(), (view, query)
        assert tab.page.locator("main img, main script").count() == 0


# The views themselves are those of test_views.py.
PLACES: list[tuple[str, dict[str, str]]] = [
    ("approvals", {"id": "the request"}),
    ("letters", {"id": "a letter"}),
    ("operations", {"id": "the redrive"}),
    ("operations", {"new": "redrive"}),
    ("operations", {"new": "retention"}),
    ("audit", {"id": "a change"}),
]


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("theme", THEMES)
def test_each_place_is_accessible(site: Site, open_tab: OpenTab, theme: str, width: str) -> None:
    found = []
    for view, query in PLACES:
        tab = open_tab(site.url(view, **addressed(site, query)), theme=theme, width=width)
        tab.page.wait_for_selector("main h1", state="attached")
        expect(tab.page.locator("main .list, main .stack").first).to_be_attached()
        quiet(tab)
        found += [f"{view} {query}: {one}" for one in tab.violations()]
        found += [f"{view} {query} overflows"] if tab.overflows() else []
        tab.page.close()
    assert not found, "\n".join(found)


@pytest.mark.parametrize("theme", THEMES)
def test_dialogs_are_accessible(site: Site, open_tab: OpenTab, theme: str) -> None:
    tab = open_tab(site.url("letters"), theme=theme)
    tab.page.get_by_role("button", name="Redrive all …").click()
    shown(tab.page, "Why? It is kept on record.")
    tab.page.wait_for_load_state("networkidle")
    assert tab.violations() == []
    tab = open_tab(site.url("switches"), theme=theme, width="phone")
    for label in ("Switch off …", "Hold a source …", "Make a token …"):
        tab.page.get_by_role("button", name=label).click()
        shown(tab.page, "Why? It is kept on record.")
        assert tab.violations() == []
        assert not tab.overflows()
        tab.page.keyboard.press("Escape")
