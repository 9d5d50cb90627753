"""No text from elsewhere controls the terminal, forges a line or is taken for markup."""

import io
import json
import re
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unicodedata import category
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.text import Text

from acp_cli.logs import render_line
from acp_cli.pipeline_commands import _print_changes, deliveries_table
from acp_cli.timeline import render_timeline
from control_plane.model.text import INVISIBLE
from local_cloud.visible import Terminal, shown, shown_lines, visible, visible_lines

HOSTILE = "a\x1b]0;owned\x07\x1b[2J[/foo][red]\u202e\u2028\x9b31m\n2026-01-01 forged"
WRITTEN_OUT = r"a\x1b]0;owned\x07\x1b[2J[/foo][red]\u202e\u2028\x9b31m\n2026-01-01 forged"
NOW = datetime(2026, 3, 10, 14, 32, tzinfo=UTC)


def printed(renderable: Any) -> str:
    """Returns what the terminal of a command shows."""
    console = Terminal()
    console.file, console.width = io.StringIO(), 1000
    console.print(renderable, soft_wrap=True)
    return console.file.getvalue()


@given(st.text())
def test_visible_text_is_one_line_without_control_characters(text: str) -> None:
    made = visible(text)
    assert not {category(character) for character in made} & INVISIBLE
    assert len(made.splitlines()) <= 1


@given(st.text(st.characters(exclude_categories=["Cc", "Cf", "Cs", "Zl", "Zp"])))
def test_visible_text_stays_unchanged(text: str) -> None:
    assert visible(text) == text


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_markup_in_foreign_text_is_not_interpreted(text: str) -> None:
    assert Text.from_markup(f"[red]{shown(text)}[/]").plain == visible(text)


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_the_terminal_lets_no_control_character_through(text: str) -> None:
    shown_text = printed(Text(text)).replace("\n", "")
    assert not {category(character) for character in shown_text} & INVISIBLE


def test_lines_of_a_text_stay_lines() -> None:
    assert visible_lines("a\tb\n\x1bc") == "a       b\n\\x1bc"
    assert printed(shown_lines("[/a]\nb")) == "[/a]\nb\n"


@pytest.mark.parametrize("field", ["entity_id", "event_type", "source", "subscription", "topic", "error", "payload"])
def test_a_timeline_shows_hostile_text_written_out(field: str) -> None:
    values = dict.fromkeys(("entity_id", "event_type", "source", "subscription", "topic", "error", "payload"), "plain")
    values[field] = HOSTILE
    assert WRITTEN_OUT in printed(render_timeline(timeline(**values)))


@pytest.mark.parametrize("field", ["entity_id", "event_type", "source", "subscription"])
def test_watch_shows_hostile_text_written_out(field: str) -> None:
    row = delivery() | {field: HOSTILE}
    assert WRITTEN_OUT in printed(deliveries_table([row], width=300))


@pytest.mark.parametrize("field", ["entity_id", "event_type", "topic", "subscription", "last_error"])
def test_piped_watch_shows_hostile_text_written_out(field: str, capsys: pytest.CaptureFixture[str]) -> None:
    _print_changes([delivery() | {field: HOSTILE}], {}, as_json=False)
    written = capsys.readouterr().out
    assert WRITTEN_OUT in written
    assert written.count("\n") == 1


@pytest.mark.parametrize(
    "message",
    [HOSTILE, json.dumps({"level": "INFO", "message": HOSTILE}), json.dumps({"message": "x", HOSTILE: HOSTILE})],
    ids=["plain", "message", "field"],
)
def test_a_log_line_shows_hostile_text_written_out(message: str) -> None:
    line: Any = SimpleNamespace(milliseconds=0, message=message)
    first, *more = printed(render_line(line)).splitlines()
    # A plain line's own line ends stay, each indented, so that none looks like another entry.
    assert WRITTEN_OUT in "\\n".join([first, *(row.removeprefix("    ") for row in more)])
    assert all(row.startswith("    ") for row in more)


def test_rich_escapes_and_consoles_are_used_in_one_place_only() -> None:
    scripts = Path(__file__).parents[3] / "scripts"
    own = re.compile(r"rich\.markup import|[^\w.]Console\(\w*[=)]")
    found = [
        str(path.relative_to(scripts))
        for folder in ("acp_cli", "local_cloud", "drills", "bench")
        for path in (scripts / folder).rglob("*.py")
        if path.name != "visible.py" and own.search(path.read_text(encoding="utf-8"))
    ]
    assert found == []


def delivery() -> dict[str, Any]:
    """Returns a row as recent_messages has it."""
    return {
        "id": 1,
        "created_at": NOW,
        "event_id": uuid4(),
        "event_type": "E",
        "entity_id": "AAPL",
        "source": "s",
        "topic": "t",
        "subscription": "lab",
        "operation_id": None,
        "state": "pending",
        "delivery_attempts": 0,
        "processed_by": [],
        "last_error": None,
    }


def timeline(
    *, entity_id: str, event_type: str, source: str, subscription: str, topic: str, error: str, payload: str
) -> Any:
    """Returns a timeline with one delivery that failed once."""
    event = {
        "event_id": str(uuid4()),
        "trace_id": str(uuid4()),
        "event_type": event_type,
        "entity_id": entity_id,
        "revision": 0,
        "ingested_at": NOW.isoformat(),
        "occurred_at": NOW.isoformat(),
        "payload": {"currency": payload},
    }
    one = {
        "subscription": subscription,
        "topic": topic,
        "operation_id": None,
        "redriven_by": None,
        "promised_at": NOW.isoformat(),
        "created_at": NOW.isoformat(),
        "state": "retrying",
        "delivery_attempts": 1,
        "failures": [{"failed_at": NOW.isoformat(), "attempt": 1, "error": error, "claimed_by": "relay"}],
        "delivered_at": None,
        "dead_lettered_at": None,
        "last_error": None,
    }
    return SimpleNamespace(
        event=event,
        raw_payload={"fetched_at": NOW.isoformat(), "source": source, "id": str(uuid4())},
        deliveries=[one],
        processing=[],
        consumer_dead_letters=[],
        consume_failures=[],
    )
