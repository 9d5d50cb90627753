"""How soon the first flow is drawn, before the real functions and a database with a busy hour.

What it takes depends on the machine, so it is printed and not asserted: pytest -s tests/browser/page/test_first_flow.py
"""

import sys
from statistics import median

import psycopg
import pytest
from playwright.sync_api import Browser
from tests.browser.page.conftest import Site
from tests.browser.page.tabs import first_flow, told
from tests.integration import seeds

from control_plane.flow.picture import STAGES

VISITS = 5
RELOADS = 10
DELTAS = 20_000
"""What is not folded yet: of two minutes in which every statement is counted, at some 160 a second."""


@pytest.fixture
def busy_site(site: Site) -> Site:
    """A deployment with a busy hour: in each minute all that is counted happened to ten parts of each stage."""
    counted = sorted(
        {one.counted for one in STAGES} | {(one.failed[0], it) for one in STAGES if one.failed for it in one.failed[1]}
    )
    stages, outcomes = [stage for stage, _ in counted], [outcome for _, outcome in counted]
    with psycopg.connect(site.database.admin_url, autocommit=True) as admin:
        admin.execute(
            "INSERT INTO flow_minutes (minute, stage, name, outcome, n)"
            " SELECT date_trunc('minute', now()) - make_interval(mins => ago), stage, 'part_' || part, outcome, 90"
            " FROM unnest(%s::text[], %s::text[]) AS counted (stage, outcome),"
            " generate_series(1, 10) AS part, generate_series(2, 60) AS ago",
            [stages, outcomes],
        )
        admin.execute(
            "INSERT INTO flow_totals (stage, name, outcome, bucket, n, seconds, newest_at)"
            " SELECT stage, 'part_' || part, outcome, bucket, 1000, 10, now()"
            " FROM unnest(%s::text[], %s::text[]) AS counted (stage, outcome),"
            " generate_series(1, 10) AS part, generate_series(0, 15) AS bucket",
            [stages, outcomes],
        )
        admin.execute(
            "INSERT INTO flow_deltas (at, stage, name, outcome)"
            " SELECT now() - make_interval(secs => 120.0 * number / %s), stage, 'part_' || number %% 10, outcome"
            " FROM generate_series(1, %s) AS number"
            " JOIN unnest(%s::text[], %s::text[]) WITH ORDINALITY AS counted (stage, outcome, place)"
            " ON place = 1 + number %% cardinality(%s::text[])",
            [DELTAS, DELTAS, stages, outcomes, stages],
        )
        admin.execute("ANALYZE")
    with psycopg.connect(site.database.owner_url) as owner:
        seeds.store_delivered(owner, 50_000)
    return site


def test_the_first_flow_is_drawn(busy_site: Site, browser: Browser, capsys: pytest.CaptureFixture[str]) -> None:
    """A first visit loads all files; later ones have them, and ask for the HTML and the flow alone."""
    first_flow(browser, busy_site.url())  # the functions start
    visits = [first_flow(browser, busy_site.url()) for _ in range(VISITS)]
    later = first_flow(browser, busy_site.url(), reloads=RELOADS).reloads
    served: dict[str, list[float]] = {}
    for path, seconds in busy_site.api.served:
        served.setdefault("/ui/*" if path.startswith("/ui/") else path, []).append(1000 * seconds)
    answers = "; ".join(f"{path} answers in {median(each):.1f} ms" for path, each in served.items())
    with capsys.disabled():
        sys.stdout.write("\n".join(["", told("first visit", visits), told("later visit", later), answers, ""]))
    assert all({path for path, *_ in one.requests} >= {"/flow"} for one in (*visits, *later))
    assert all(len(one.requests) <= 2 for one in later)
