"""Each task by keyboard alone: the focus can be seen all the time, is never lost, and the database has the effect."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from playwright.sync_api import Page, expect
from tests.browser.page.acting import Person
from tests.browser.page.conftest import LiveSite, OpenTab, Site
from tests.browser.page.lives import loaded
from tests.integration import seeds

from control_plane.ingestion.store import store_events
from control_plane.platform.database import connect
from domains.finance import signal_lab
from market_replay import serve

type Sit = Callable[..., Person]


@pytest.fixture
def sit(site: Site, open_tab: OpenTab) -> Sit:
    """Opens a view before a person who has a keyboard and no mouse."""

    def sit(view: str, *, width: str = "wide", **query: str) -> Person:
        page = open_tab(site.url(view, **query), width=width).page
        page.wait_for_selector("main h1", state="attached")
        return Person(page, "keyboard")

    return sit


def shown(page: Page, text: str) -> None:
    expect(page.get_by_text(text).first).to_be_visible(timeout=20_000)


def state_of(person: Person, state: str) -> None:
    expect(person.page.locator(".operation-pane h3 .state")).to_have_text(state, timeout=20_000)


def start(person: Person, reason: str) -> None:
    person.press("Start …")
    person.type("reason", reason)
    person.submit("Start")


def rows(site: Site, query: str) -> list[Any]:
    """Returns the rows of a query, as the tables' owner sees them."""
    with psycopg.connect(site.database.owner_url) as owner:
        return owner.execute(query.encode()).fetchall()


# Switches, holds, tokens


@pytest.mark.parametrize(("kind", "name"), [("model", "vendor/model-1"), ("agent", "executive_summary")])
def test_one_model_or_agent_is_switched_off(site: Site, sit: Sit, kind: str, name: str) -> None:
    person = sit("switches")
    person.press("Switch off …")
    person.choose("What", f"one {kind}")
    person.type("scope", name)
    person.type("reason", "it invents numbers")
    person.submit("Switch off")
    expect(person.page.get_by_role("button", name=f"Switch {kind}:{name} on")).to_be_visible()
    found = rows(site, "SELECT scope, is_off, reason FROM switches WHERE scope <> 'action:HEDGE'")
    assert found == [(f"{kind}:{name}", True, "it invents numbers")]


def test_a_source_is_held_resumed_and_forgotten(site: Site, sit: Sit) -> None:
    person = sit("switches")
    person.press("Hold a source …")
    person.type("source", "yfinance")
    person.type("reason", "it blocks us")
    person.submit("Hold")
    expect(person.page.get_by_role("button", name="Resume yfinance")).to_be_visible()
    held = "SELECT held_by, held_reason FROM circuit_breakers WHERE name = 'yfinance'"
    assert rows(site, held) == [("token:root", "it blocks us")]
    person.press("Resume yfinance")
    person.type("reason", "it answers again")
    person.submit("Resume")
    expect(person.page.locator("tr", has_text="yfinance")).to_contain_text("half open")
    person.press("Forget yfinance")
    person.type("reason", "it is another's now")
    person.submit("Forget")
    expect(person.page.locator("tr", has_text="yfinance")).to_have_count(0)
    assert rows(site, held) == []


def test_a_token_is_made_copied_and_revoked(site: Site, sit: Sit) -> None:
    person = sit("switches")
    person.press("Make a token …")
    person.type("token", "sam")
    person.press("operate:", role="checkbox", exact=False)
    until = datetime.now(UTC) + timedelta(days=2)
    person.type_instant("until", until)
    person.type("reason", "sam joins")
    person.submit("Make it")
    token = person.page.locator(".secret").inner_text()
    assert site.api.ask("GET", "/whoami", token=token)["scopes"] == ["operate", "read"]
    [(expires_at,)] = rows(site, "SELECT expires_at FROM api_tokens WHERE name = 'sam'")
    assert timedelta(hours=30) < expires_at - datetime.now(UTC) < timedelta(hours=66)  # in the browser's time zone
    person.press("I have it")
    expect(person.page.locator(".secret")).to_have_count(0)
    person.press("Revoke sam")
    person.type("reason", "sam left")
    person.submit("Revoke")
    expect(person.page.get_by_role("button", name="Revoke sam")).to_have_count(0)
    assert rows(site, "SELECT revoked_at IS NOT NULL FROM api_tokens WHERE name = 'sam'") == [(True,)]


# Operations


def test_another_rate_is_set(site: Site, sit: Sit) -> None:
    person = sit("operations")
    person.open_row("redrive")
    person.press("Rate …")
    person.type("rate", "12.5")
    person.type("reason", "others go before")
    person.submit("Change")
    shown(person.page, "12.5 a second")
    assert rows(site, "SELECT rate FROM operations WHERE kind = 'redrive'") == [(12.5,)]


def test_the_forms_are_reached_from_the_list_and_left_again(sit: Sit) -> None:
    person = sit("operations")
    person.press("Plan an operation …", role="link")
    for kind in ("replay", "backfill", "rebuild", "retention", "erasure"):
        person.press(kind, role="link")
        expect(person.page.get_by_role("link", name=kind, exact=True)).to_have_attribute("aria-current", "page")
    person.page.keyboard.press("Escape")
    expect(person.page.get_by_role("region", name="Plan an operation")).to_have_count(0)
    expect(person.page.get_by_role("link", name="Plan an operation …")).to_be_focused()


def test_what_is_old_is_deleted_for_good(site: Site, sit: Sit) -> None:
    with psycopg.connect(site.database.admin_url) as admin:
        admin.execute("SET session_replication_role = replica")
        admin.execute("UPDATE api_audit SET at = at - interval '400 days' WHERE route LIKE 'PUT %'")
    [(old,), (all_rows,)] = [
        *rows(site, "SELECT count(*) FROM api_audit WHERE at < now() - interval '90 days'"),
        *rows(site, "SELECT count(*) FROM api_audit"),
    ]
    assert 0 < old < all_rows
    person = sit("operations", new="retention")
    person.type("filter.audit", "90")
    person.type("reason", "the quarter is over")
    person.submit("Plan it")
    state_of(person, "planned")
    start(person, "as planned")
    state_of(person, "done")
    assert rows(site, "SELECT count(*) FROM api_audit WHERE at < now() - interval '90 days'") == [(0,)]
    assert rows(site, "SELECT filter FROM operations WHERE kind = 'retention'") == [({"days": {"audit": 90}},)]


def test_an_entity_is_erased_for_good(site: Site, sit: Sit) -> None:
    with psycopg.connect(site.database.app_url, autocommit=True) as app:
        seeds.store(app, seeds.ticks(3, entity_id="FORGET.ME"))
    person = sit("operations", new="erasure")
    person.type("filter.entity_id", "FORGET.ME")
    person.press("Take it in again when a source tells it again", role="checkbox")
    person.type("reason", "they asked for it")
    person.submit("Plan it")
    state_of(person, "planned")
    start(person, "as planned")
    state_of(person, "done")
    assert rows(site, "SELECT count(*) FROM events WHERE entity_id = 'FORGET.ME'") == [(0,)]
    assert rows(site, "SELECT count(*) FROM erasures") == [(1,)]


def test_a_rebuild_that_differs_is_accepted(site: Site, sit: Sit) -> None:
    with connect(site.database.app_url, application_name="test") as app:
        with app.transaction():
            events = store_events(app, [], seeds.ticks(5, entity_id="WRONG")).events
        for event in events:
            signal_lab.consume(app, event)
    prices = "SELECT price FROM signal_lab_bars WHERE entity_id = 'WRONG'"
    right = rows(site, prices)
    with psycopg.connect(site.database.owner_url) as owner:
        owner.execute("UPDATE signal_lab_bars SET price = 1 WHERE entity_id = 'WRONG'")
    person = sit("operations", new="rebuild")
    person.type("filter.subscription", "signal_lab")
    person.type("reason", "its fold was mended")
    person.submit("Plan it")
    state_of(person, "planned")
    start(person, "as planned")
    shown(person.page, "The rebuilt tables differ from those in use.")
    assert rows(site, prices) != right
    with psycopg.connect(site.database.owner_url) as owner:  # a function would look again by itself, in five seconds
        owner.execute("UPDATE operations SET next_step_at = now() WHERE kind = 'rebuild'")
    person.press("Accept …")
    person.type("reason", "somebody changed a price")
    person.submit("Accept")
    state_of(person, "done")
    assert sorted(rows(site, prices)) == sorted(right)


def test_a_window_of_the_past_is_filled_in(site: Site, sit: Sit) -> None:
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    url = site.database.url("acp_ingest")
    with serve() as market, loaded("ingestion", url, MARKET_DATA_URL=market.url, SYMBOLS="IBM") as ingest:
        site.api.ingest = ingest
        person = sit("operations", new="backfill")
        person.type("filter.symbols", "IBM")
        person.type_instant("filter.since", today - timedelta(days=8))
        person.type_instant("filter.until", today - timedelta(days=3))
        person.type("filter.interval", "1d")
        person.press("Store only, and send nothing to subscriptions", role="checkbox")
        person.type("reason", "the feed was down")
        person.submit("Plan it")
        state_of(person, "planned")
        start(person, "as planned")
        state_of(person, "done")
    [(filter_of,)] = rows(site, "SELECT filter FROM operations WHERE kind = 'backfill'")
    assert (filter_of["symbols"], filter_of["interval"], filter_of["publish"]) == (["IBM"], "1d", False)
    stored = rows(site, "SELECT DISTINCT entity_id, source FROM events WHERE event_type = 'MARKET_TICK_INGESTED'")
    assert ("IBM", "yfinance-replay") in stored


# Decisions


def test_a_decision_is_asked_again_and_another_policy_is_tried(live_site: LiveSite, open_tab: OpenTab) -> None:
    page = open_tab(live_site.url("decision", id=str(live_site.decisions[0]))).page
    expect(page.get_by_role("region", name="What came of it")).to_be_visible(timeout=20_000)
    person = Person(page, "keyboard")
    verdicts = page.get_by_role("region", name="Verdict and approval")
    policies = verdicts.get_by_role("button", name="Show the policy")
    there = policies.count()
    person.press("Show the policy", first=True)
    expect(verdicts.get_by_role("region", name="the policy").first).to_be_focused(timeout=20_000)
    expect(policies).to_have_count(there - 1)
    person.press("Replay check")
    shown(page, "decided now")
    person.press("Begin with the one that judged it")
    expect(page.locator("textarea")).not_to_have_value("", timeout=20_000)
    person.press("Ask")
    shown(page, "0 different")


# Audit and lists


def test_the_audit_is_filtered_read_and_saved(sit: Sit) -> None:
    person = sit("audit")
    person.open_row("POST /subscriptions/{name}/hold")
    expect(person.page.get_by_role("region", name="Change")).to_contain_text("its queue is being moved")
    person.press("Close", role="link")
    expect(person.page.get_by_role("region", name="Change")).to_have_count(0)
    expect(person.page.locator("tr", has_text="POST /subscriptions/{name}/hold").locator("a.row")).to_be_focused()
    person.page.keyboard.press("/")
    person.page.keyboard.type("nobody")
    shown(person.page, "This token changed nothing.")
    person.press("Clear")
    shown(person.page, "POST /subscriptions/{name}/hold")
    with person.page.expect_download() as saved:
        person.press("CSV")
    assert saved.value.suggested_filename == "audit.csv"
    shown(person.page, "4 rows")


@pytest.mark.parametrize("width", ["wide", "phone"])
def test_what_is_open_is_closed_at_its_row(sit: Sit, width: str) -> None:
    person = sit("letters", width=width)
    person.open_row("MessageTooLong")
    expect(person.page.locator(".letter-pane")).to_contain_text("Given up by")
    person.page.keyboard.press("Escape")
    expect(person.page.locator(".pane")).to_have_count(0)
    expect(person.page.locator("tr", has_text="MessageTooLong").locator("a.row").first).to_be_focused()


def test_a_list_is_read_to_its_end(site: Site, sit: Sit) -> None:
    for number in range(60):
        site.api.ask("PUT", f"/switches/agent:a{number}", {"is_off": True, "reason": "a test"})
    person = sit("audit")
    person.press("Show more")
    shown(person.page, "which is all")


def test_one_signs_out_and_in_again(site: Site, sit: Sit) -> None:
    person = sit("switches")
    person.press("Theme: Auto")
    person.press("UTC")
    person.press("Sign out")
    expect(person.page.get_by_label("Token")).to_be_focused()
    person.type("token", site.token)
    person.submit("Sign in")
    shown(person.page, "Subscriptions and sources")
