"""What the kit makes of values: files, texts, durations."""

from typing import Any

import pytest
from tests.browser.page.conftest import OpenTab, Site, Tab
from tests.browser.page.flow_sample import quiet_flow


@pytest.fixture
def tab(empty_site: Site, open_tab: OpenTab) -> Tab:
    tab = open_tab(empty_site.url(), flow=quiet_flow())
    tab.page.wait_for_selector(".strip")
    return tab


def call(tab: Tab, function: str, *arguments: Any, of: str = "#kit") -> Any:
    return tab.page.evaluate(
        "([of, name, given]) => import(of).then((module) => module[name](...given))", [of, function, list(arguments)]
    )


def test_a_csv_file_quotes_what_it_must_and_holds_no_formula(tab: Tab) -> None:
    rows = [
        {"name": 'a "b", c', "count": -3, "text": "=HYPERLINK(0)"},
        {"name": None, "text": "-1+1", "more": {"a": [1]}},
        {"name": "two\nlines", "text": "@cmd"},
    ]
    assert call(tab, "asCsv", rows, of="#views/export").split("\r\n") == [
        "name,count,text,more",
        '"a ""b"", c",-3,\'=HYPERLINK(0),',
        ',,\'-1+1,"{""a"":[1]}"',
        '"two\nlines",,\'@cmd,',
        "",
    ]


def test_what_cannot_be_seen_is_written_as_an_escape(tab: Tab) -> None:
    assert call(tab, "visible", "a\u202eb\u0007c\u200bd\ufeff") == r"a\u202eb\u0007c\u200bd\ufeff"
    assert call(tab, "visible", "<b>ünï \u4e2d\u6587 \u05d0\u05d1</b>") == "<b>ünï \u4e2d\u6587 \u05d0\u05d1</b>"


def test_durations_have_two_units_at_most(tab: Tab) -> None:
    expected = {
        0.0004: "0 ms",
        0.25: "250 ms",
        9.94: "9.9 s",
        42.4: "42 s",
        94: "1 min 34 s",
        3000: "50 min",
        3 * 3600 + 300: "3 h 5 min",
        2 * 86400 + 3 * 3600: "2 d 3 h",
        1200 * 86400: "1,200 d",
    }
    assert {seconds: call(tab, "spoken", seconds) for seconds in expected} == expected
    assert call(tab, "spoken", None) == "–"


def test_an_instant_is_said_in_utc_or_in_local_time(empty_site: Site, open_tab: OpenTab) -> None:
    tab = open_tab(empty_site.url(), flow=quiet_flow(), options={"timezone_id": "Asia/Kolkata"})
    tab.page.wait_for_selector(".strip")
    assert call(tab, "exact", "2026-01-05T20:33:20.5Z", True) == "2026-01-05 20:33:20.500 UTC"
    assert call(tab, "exact", "2026-01-05T20:33:20.5Z", False) == "2026-01-06 02:03:20.500"
