"""Each line of each command shows foreign text written out: a field at a time is hostile, and all others are plain."""

from __future__ import annotations

import io
import json
import os
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID

import pytest

from acp_cli import cli, invoke_command, logs_command, pipeline_commands
from acp_cli.breaker_commands import Guarded
from acp_cli.breaker_commands import _table as breakers_table
from acp_cli.dead_letter_commands import _described
from acp_cli.logs import render_line
from acp_cli.pipeline_commands import _show_run, ingested_table
from acp_cli.redrive_command import RedriveReport, _said
from acp_cli.status import Report
from acp_cli.timeline import render_timeline
from control_plane.ops.dead_letters import DeadLetter
from control_plane.ops.horizon import HorizonHolder
from control_plane.ops.status import (
    ConsumerCount,
    ConsumerLag,
    DeliveryCount,
    EventCount,
    LingeringRelay,
    PipelineStatus,
)
from control_plane.platform.breakers import Breaker
from drills.narrator import Narrator, Result
from local_cloud import build, tools
from local_cloud.cloud import Cloud
from local_cloud.progress import Progress
from local_cloud.queues import QueueDepth
from local_cloud.run_state import RunState
from local_cloud.visible import Terminal
from local_cloud.workspace import CHECKOUT, Workspace

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

HOSTILE = "a\x1b]0;owned\x07\x1b[2J[/foo][red]\u202e\u2028\x9b31m\n2026-01-01 forged"
WRITTEN_OUT = r"a\x1b]0;owned\x07\x1b[2J[/foo][red]\u202e\u2028\x9b31m\n2026-01-01 forged"
NOW = datetime(2026, 3, 10, 14, 32, tzinfo=UTC)
EVENT_ID = UUID(int=1)


class Spinner:
    """Takes the place of a terminal's line that is written over and over: it prints each text once."""

    def __init__(self, console: Terminal, text: str) -> None:
        self._console = console
        self.update(text)

    def update(self, text: str) -> None:
        self._console.print(text, soft_wrap=True)

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


def terminal(*, is_terminal: bool = False) -> Terminal:
    """Returns a command's console, as wide as anything."""
    console = Terminal()
    console.file, console.width = io.StringIO(), 2000
    console._force_terminal = is_terminal
    vars(console)["status"] = lambda text: Spinner(console, text)
    return console


def text_of(console: Terminal) -> str:
    return cast("io.StringIO", console.file).getvalue()


def printed(renderable: Any) -> str:
    console = terminal()
    console.print(renderable)
    return text_of(console)


# What status says


def report(name: str) -> Report:
    """Returns a report in which all is plain but what ``name`` says."""

    def text(asked: str) -> str:
        return HOSTILE if asked == name else "plain"

    letter = DeadLetter(
        id=1,
        subscription=text("letter's subscription"),
        topic="t",
        event_id=EVENT_ID,
        event_type="E",
        trace_id=EVENT_ID,
        operation_id=None,
        delivery_attempts=5,
        reason=text("letter's reason"),
        dead_lettered_at=NOW,
        age_seconds=1,
        resolution=None,
        resolved_at=None,
        resolved_by=None,
    )
    return Report(
        services={text("service"): text("service's place")},
        pipeline=PipelineStatus(
            deliveries=[DeliveryCount(text("subscription"), "t", "dead_lettered", 1, 1.0)],
            events=[EventCount(text("source"), text("event type"), 1, NOW)],
            consumers=[ConsumerCount(text("consumer"), 1, NOW)],
            breakers=[Breaker("b", "open", 3, NOW, 1.0, last_error=text("breaker's error"))],
            consumer_lag=[ConsumerLag(text("lag's subscription"), 1, 1000.0, EVENT_ID)],
            dead_letters=[letter],
            lingering_relay=LingeringRelay("]x\x1b[2J\n[b" if name == "relay" else "plain", NOW),
            pinned_horizon=HorizonHolder("session", "1", text("session's user"), text("session's program"), 1, 1),
        ),
        queues=[QueueDepth(text("queue"), 1, 0)],
    )


@pytest.mark.parametrize(
    ("name", "times"),
    [
        ("service", 1),
        ("service's place", 1),
        ("subscription", 1),
        ("source", 1),
        ("event type", 1),
        ("consumer", 1),
        ("queue", 1),
        ("breaker's error", 1),
        ("lag's subscription", 1),
        ("session's user", 1),
        ("session's program", 1),
        ("letter's subscription", 2),  # in the headline and in the table
        ("letter's reason", 2),
    ],
)
def test_status_shows_hostile_text_written_out(name: str, times: int) -> None:
    assert printed(report(name).render()).count(WRITTEN_OUT) >= times


def test_status_shows_a_hostile_relay_written_out() -> None:
    assert r"x\x1b[2J\n[b, since" in printed(report("relay").render())


# The commands of breakers and of dead letters


@pytest.mark.parametrize("field", ["name", "last_error", "held_by", "held_reason"])
def test_breakers_show_hostile_text_written_out(field: str) -> None:
    values: dict[str, Any] = {"name": "b", "last_error": "e", "held_by": "ada"} | {field: HOSTILE}
    breaker = Breaker(state="open", opened_at=NOW, **values)
    assert WRITTEN_OUT in printed(breakers_table([(Guarded("b"), breaker)]))


@pytest.mark.parametrize("field", ["subscription", "event_type", "reason"])
def test_a_dead_letter_shows_hostile_text_written_out(field: str) -> None:
    (plain,) = report("").pipeline.dead_letters
    changes: dict[str, Any] = {field: HOSTILE}
    assert WRITTEN_OUT in printed(_described(replace(plain, **changes).to_dict()))


@pytest.mark.parametrize("dry_run", [True, False])
def test_a_redrive_shows_hostile_text_written_out(dry_run: bool) -> None:
    assert WRITTEN_OUT in printed(_said(RedriveReport(dry_run, None, {HOSTILE: 1})))


# The commands that follow signals


@pytest.mark.parametrize("field", ["symbol", "currency", "reason"])
def test_ingests_table_shows_hostile_text_written_out(field: str) -> None:
    symbol = HOSTILE if field == "symbol" else "AAPL"
    tick = {"price": 1.5, "currency": HOSTILE if field == "currency" else "USD"}
    problem = {"reason": HOSTILE if field == "reason" else "gone"}
    rows = [
        {"entity_id": symbol, "event_type": name, "count": 1, "newest": NOW, "newest_payload": payload}
        for name, payload in (("MARKET_TICK_INGESTED", tick), ("SOURCE_FETCH_FAILED", problem))
    ]
    assert WRITTEN_OUT in printed(ingested_table({"symbols": [symbol], "failed_symbols": []}, rows))


@pytest.mark.parametrize("field", ["subscription", "state"])
def test_relay_shows_hostile_text_written_out(
    field: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    named = {"subscription": "lab", "state": "open"} | {field: HOSTILE}
    counts = dict.fromkeys(("claimed", "published", "failed", "dead_lettered", "released"), 0)
    answer = counts | {"breakers": {named["subscription"]: named["state"]}}
    monkeypatch.setenv("COLUMNS", "500")
    monkeypatch.setattr(pipeline_commands, "is_local", lambda _: True)
    monkeypatch.setattr(pipeline_commands, "_running", lambda _: (None, None))
    monkeypatch.setattr(pipeline_commands, "_invoke", lambda *_: answer)
    pipeline_commands.relay(cast("Any", None))
    assert WRITTEN_OUT in capsys.readouterr().out


@pytest.mark.parametrize("field", ["entity_id", "event_type"])
def test_a_runs_events_show_hostile_text_written_out(
    field: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "500")
    row = {"event_id": EVENT_ID, "trace_id": EVENT_ID, "entity_id": "AAPL", "event_type": "E"}
    row["occurred_at"] = NOW.isoformat()
    _show_run([row | {field: HOSTILE}], as_json=False)
    assert WRITTEN_OUT in capsys.readouterr().out


@pytest.mark.parametrize(
    "changes",
    [
        {"event_type": HOSTILE},
        {"entity_id": HOSTILE},
        {"source": HOSTILE},
        {"payload": {"x": HOSTILE}},
        {"consumer": HOSTILE},
        {"subscription": HOSTILE},
        {"topic": HOSTILE},
        {"error": HOSTILE},
        {"claimant": HOSTILE},
        {"delivered_at": NOW.isoformat(), "message_id": HOSTILE},
        {"state": "in_flight", "claimed_by": HOSTILE},
        {"last_error": HOSTILE},
        {"dead_lettered_at": NOW.isoformat(), "last_error": HOSTILE},
        {"dead_lettered_at": NOW.isoformat(), "resolution": HOSTILE},
        {"dead_lettered_at": NOW.isoformat(), "resolution": "redriven", "resolved_by": HOSTILE},
    ],
    ids=" ".join,
)
def test_each_line_of_a_timeline_shows_hostile_text_written_out(changes: dict[str, Any]) -> None:
    assert WRITTEN_OUT in printed(render_timeline(timeline(**changes)))


@pytest.mark.parametrize(
    "changes",
    [
        {"held_by": HOSTILE},
        {"last_error": HOSTILE},
        {"held_by": "a", "last_error": HOSTILE},
        {"held_by": "a", "held_reason": HOSTILE},
    ],
)
def test_why_a_message_waits_shows_hostile_text_written_out(changes: dict[str, Any]) -> None:
    breaker = Breaker("plain", "open", opened_at=NOW, **changes)
    assert WRITTEN_OUT in printed(render_timeline(timeline(), {"plain": breaker}))


@pytest.mark.parametrize(
    "content",
    [
        {"message": HOSTILE},
        {"message": "x", "field": HOSTILE},
        {"message": "x", HOSTILE: 1},
        {"_aws": {"CloudWatchMetrics": [{"Metrics": [{"Name": HOSTILE}]}]}},
        {"_aws": {"CloudWatchMetrics": [{"Metrics": [{"Name": "n"}]}]}, "n": HOSTILE},
    ],
    ids=["message", "field", "name", "metric", "value"],
)
def test_each_part_of_a_log_line_shows_hostile_text_written_out(content: dict[str, Any]) -> None:
    assert WRITTEN_OUT in printed(render_line(line(json.dumps(content))))


def test_a_logged_traceback_shows_each_row_written_out() -> None:
    for message in (json.dumps({"message": "x", "exception": "T\n  [/b]\x1b[2J"}), "x\nT\n  [/b]\x1b[2J"):
        assert printed(render_line(line(message))).splitlines()[1:] == ["    T", r"      [/b]\x1b[2J"]


def test_raw_logs_show_hostile_text_written_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(logs_command, "read_group", lambda *_, **__: [line(HOSTILE)])
    logs = logs_command.Logs(cast("Any", None), {"relay": "/aws/lambda/relay"}, knows_patterns=False)
    assert logs_command._show(logs, None, 0, follow=False, raw=True)
    assert capsys.readouterr().out == WRITTEN_OUT.replace(r"\n", "\n") + "\n"


# What happens meanwhile, and what goes wrong


def test_invokes_log_shows_hostile_text_written_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    log = tmp_path / "log"
    log.write_text("[\x1b[2J]\n")
    monkeypatch.setattr(tools, "sam_command", lambda *_: ["sh", "-c", f"cat {log} >&2; echo 7"])
    monkeypatch.setattr(tools, "sam_environ", lambda _: dict(os.environ))
    workspace = cast("Any", SimpleNamespace(state=tmp_path, home=tmp_path, checkout=tmp_path))
    answer = invoke_command._sam_local_invoke(workspace, cast("Any", SimpleNamespace(endpoint="")), "R", tmp_path)
    assert (answer, capsys.readouterr().err) == ("7\n", "[\\x1b[2J]\n")


def test_invokes_answer_shows_hostile_text_written_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    class Deployed(Cloud):
        def running(self) -> RunState:
            return RunState()

        def outputs(self, run: RunState) -> dict[str, str]:
            return {"RelayFunctionName": "relay-1"}

        def prepare_containers(self, run: RunState) -> None: ...

    event = tmp_path / "event.json"
    event.write_text("{}")
    monkeypatch.setattr(build, "build_for_containers", lambda *_, **__: "")
    monkeypatch.setattr(invoke_command, "_sam_local_invoke", lambda *_: '"\u202e"\n')
    context = cast("Any", SimpleNamespace(obj=Deployed(Workspace(CHECKOUT, tmp_path, tmp_path / "state"))))
    invoke_command.invoke(context, "relay", event=event)
    assert capsys.readouterr().out == '"\\u202e"\n'


def told(act: Callable[[Narrator], object], guarantee: str = "plain", *, is_terminal: bool = False) -> str:
    console = terminal(is_terminal=is_terminal)
    narrator = Narrator(console)
    with narrator.telling(Result("drill", guarantee)):
        act(narrator)
    return text_of(console)


def test_a_drill_shows_hostile_text_written_out() -> None:
    assert WRITTEN_OUT in told(lambda _: None, HOSTILE)
    assert WRITTEN_OUT in told(lambda narrator: narrator.say(HOSTILE))
    assert WRITTEN_OUT in told(lambda narrator: narrator.say(HOSTILE, style="red"))
    assert WRITTEN_OUT in told(lambda narrator: narrator.claim(HOSTILE, held=True, seen="x"))
    assert WRITTEN_OUT in told(lambda narrator: narrator.claim("x", held=True, seen=HOSTILE))
    assert WRITTEN_OUT in told(lambda narrator: narrator.show(HOSTILE), is_terminal=True)


@pytest.mark.parametrize("is_terminal", [True, False])
@pytest.mark.parametrize("texts", [(HOSTILE, "x", "x"), ("x", HOSTILE, "x"), ("x", "x", HOSTILE)])
def test_progress_shows_hostile_text_written_out(is_terminal: bool, texts: tuple[str, str, str]) -> None:
    console = terminal(is_terminal=is_terminal)
    with Progress(console).step(texts[0]) as step:
        assert (WRITTEN_OUT in text_of(console)) == (is_terminal and texts[0] == HOSTILE)
        step.update(texts[1])
        step.note = texts[2]
    assert WRITTEN_OUT in text_of(console)


def test_prose_and_errors_show_hostile_lines_written_out(capsys: pytest.CaptureFixture[str]) -> None:
    lines = WRITTEN_OUT.replace(r"\n", "\n")
    console = terminal()
    Progress(console).say(HOSTILE)
    assert text_of(console) == f"{lines}\n"
    cli.report(HOSTILE, "x\x1b[/b]", HOSTILE)
    assert capsys.readouterr().err == f"{lines}\n  │ x\\x1b[/b]\n{lines}\n"


def line(message: str) -> Any:
    return SimpleNamespace(id="1", milliseconds=0, message=message)


def timeline(**changes: Any) -> Any:
    """Returns a timeline with one delivery that failed once; ``changes`` are hostile, and all else is plain."""
    names = ("event_type", "entity_id", "source", "consumer", "subscription", "topic", "error", "claimant")
    told: dict[str, Any] = dict.fromkeys(names, "plain") | changes
    failure = {"failed_at": NOW.isoformat(), "attempt": 1, "error": told["error"], "claimed_by": told["claimant"]}
    delivery = {
        "subscription": "lab",
        "topic": "t",
        "operation_id": None,
        "redriven_by": None,
        "promised_at": NOW.isoformat(),
        "created_at": NOW.isoformat(),
        "next_attempt_at": (NOW + timedelta(minutes=1)).isoformat(),
        "state": "retrying",
        "delivery_attempts": 1,
        "failures": [failure],
        "delivered_at": None,
        "message_id": "m",
        "dead_lettered_at": None,
        "dead_letter_id": 1,
        "resolution": None,
        "resolved_at": NOW.isoformat(),
        "resolved_by": "ada",
        "last_error": None,
        "claimed_by": "relay",
    }
    event = {
        "event_type": told["event_type"],
        "entity_id": told["entity_id"],
        "event_id": str(EVENT_ID),
        "trace_id": str(EVENT_ID),
        "revision": 0,
        "ingested_at": NOW.isoformat(),
        "occurred_at": NOW.isoformat(),
        "payload": told.get("payload", {}),
    }
    return SimpleNamespace(
        event=event,
        raw_payload={"fetched_at": NOW.isoformat(), "source": told["source"], "id": str(EVENT_ID)},
        deliveries=[delivery | {name: value for name, value in told.items() if name in delivery}],
        processing=[{"processed_at": NOW.isoformat(), "consumer": told["consumer"]}],
        consumer_dead_letters=[
            {
                "id": 1,
                "subscription": told["subscription"],
                "message_id": "m",
                "dead_lettered_at": NOW.isoformat(),
                "reason": told["error"],
                "resolution": None,
                "redriven_by": None,
                "resolved_at": None,
                "is_redrivable": True,
            }
        ],
        consume_failures=[
            {
                "subscription": told["subscription"],
                "message_id": name,
                "failed_at": NOW.isoformat(),
                "attempt": 1,
                "error": told["error"],
            }
            for name in ("m", "other")
        ],
    )
