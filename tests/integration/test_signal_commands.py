"""acp watch, trace, status and ingest on a real Postgres; only the cloud around it is a stand-in."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from psycopg import Connection
from tests.conftest import TestDatabase
from tests.integration import running_acp, seeds
from tests.integration.api_server import ApiServer, lead_to, no_deployment, serving
from tests.integration.running_cloud import RunningCloud, deliver, give_up, run

from acp_cli.pipeline_commands import _print_ingested
from control_plane.platform.breakers import hold
from local_cloud.cloud import Cloud
from local_cloud.postgres import PostgresServer
from local_cloud.workspace import CHECKOUT, Workspace


@pytest.fixture
def api(database: TestDatabase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ApiServer]:
    no_deployment(tmp_path, monkeypatch)
    with serving(database) as served:
        yield served


@pytest.fixture
def cloud(cloud: RunningCloud, api: ApiServer, monkeypatch: pytest.MonkeyPatch) -> RunningCloud:
    lead_to(api, cloud, monkeypatch)
    return cloud


@pytest.fixture
def nowhere(tmp_path: Path) -> Cloud:
    return Cloud(Workspace(CHECKOUT, tmp_path, tmp_path / "state"))


@pytest.fixture
def event_ids(app: Connection[Any], owner: Connection[Any]) -> list[UUID]:
    """A tick that was given up on, one that was processed, one that was not, and one that is pending."""
    given_up = seeds.store(app, seeds.ticks(1))
    give_up(owner, given_up, "gave up after 5 attempts: [denied]")
    delivered = seeds.store(app, [seeds.tick(1), seeds.tick(2)])
    deliver(owner, hours_ago=1)
    app.execute("INSERT INTO processed_events (consumer, event_id) VALUES ('signal_lab', %s)", [delivered[0]])
    return [*given_up, *delivered, *seeds.store(app, [seeds.tick(3)])]


@pytest.fixture
def acp(postgres: PostgresServer, database: TestDatabase, tmp_path: Path) -> Any:
    """Starts a command as a process, with its output in pipes."""

    def start(*arguments: str, **environ: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", running_acp.__name__, str(tmp_path), str(postgres.data_dir), database.name]
        return subprocess.Popen(
            [*command, *arguments],
            cwd=CHECKOUT,
            env={**os.environ, **environ},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    return start


# trace


def test_an_events_beginning_is_enough_for_its_timeline(cloud: RunningCloud, event_ids: list[UUID]) -> None:
    whole = run(cloud, "trace", str(event_ids[1]))
    assert whole.exit_code == 0, whole.output
    assert run(cloud, "trace", f"{str(event_ids[1])[:8]}…").stdout == whole.stdout


def test_an_event_is_shown_as_the_spans_of_its_trace_and_a_run_is_not(
    cloud: RunningCloud, event_ids: list[UUID]
) -> None:
    shown = json.loads(run(cloud, "trace", str(event_ids[1]), "--otlp").stdout)
    assert shown["resourceSpans"][0]["scopeSpans"][0]["spans"][0]["spanId"] == event_ids[1].hex[16:]
    refused = run(cloud, "trace", str(UUID(int=1)), "--otlp")
    assert (refused.exit_code, "--otlp shows the spans of one" in refused.stderr) == (2, True)


def test_a_trace_id_shows_the_events_of_its_run(cloud: RunningCloud, event_ids: list[UUID]) -> None:
    shown = run(cloud, "trace", str(UUID(int=1)))
    assert shown.exit_code == 0, shown.output
    head, *rows, said = shown.stdout.splitlines()
    assert head.split() == ["event", "id", "entity", "event", "occurred"]
    assert [row.split()[0] for row in rows] == [f"{str(event_id)[:8]}…" for event_id in event_ids]
    assert said == f"4 events of trace {UUID(int=1)}; scripts/acp trace EVENT_ID shows one"
    listed = json.loads(run(cloud, "trace", str(UUID(int=1)), "--json").stdout)
    assert [each["event_id"] for each in listed] == list(map(str, event_ids))


def test_a_beginning_of_several_is_refused_with_them(
    cloud: RunningCloud, event_ids: list[UUID], app: Connection[Any]
) -> None:
    seeds.store(app, [seeds.tick(minute) for minute in range(10, 60)])
    counts: dict[str, int] = {}
    for (event_id,) in app.execute("SELECT event_id FROM events").fetchall():
        counts[str(event_id)[0]] = counts.get(str(event_id)[0], 0) + 1
    begun = next(digit for digit, count in counts.items() if digit != "0" and 1 < count <= 10)
    refused = run(cloud, "trace", begun)
    assert refused.exit_code == 2
    assert f"'{begun}' could be several:" in refused.stderr
    assert refused.stderr.count("MARKET_TICK_INGESTED AAPL") == counts[begun]
    assert "Give more of the id." in refused.stderr


def test_an_id_of_nothing_says_where_to_look(cloud: RunningCloud, event_ids: list[UUID]) -> None:
    refused = run(cloud, "trace", "ffffffff-ffff")
    assert refused.exit_code == 1
    assert refused.stderr == "There is no event and no run ffffffff-ffff.\nscripts/acp watch shows the newest events.\n"


def test_a_trace_ids_beginning_finds_its_run_on_the_local_cloud(cloud: RunningCloud, event_ids: list[UUID]) -> None:
    shown = run(cloud, "trace", "00000000-0000-0000")
    assert shown.stdout.splitlines()[-1].startswith(f"4 events of trace {UUID(int=1)};"), shown.output


def test_a_deployments_events_are_traced(nowhere: Cloud, api: ApiServer, event_ids: list[UUID]) -> None:
    reader = ("--url", api.url, "--token", api.make_token("kim", "read"))
    whole = run(nowhere, *reader, "trace", str(event_ids[0]))
    assert whole.exit_code == 0, whole.output
    assert "dead-lettered: gave up after 5 attempts: [denied]" in " ".join(whole.stdout.split())
    assert run(nowhere, *reader, "trace", str(event_ids[0])[:8]).stdout == whole.stdout
    told = json.loads(run(nowhere, *reader, "trace", str(event_ids[0]), "--json").stdout)
    assert told["event"]["event_id"] == str(event_ids[0])
    listed = json.loads(run(nowhere, *reader, "trace", str(UUID(int=1)), "--json").stdout)
    assert [each["event_id"] for each in listed] == list(map(str, event_ids))
    refused = run(nowhere, *reader, "trace", "ffffffff-ffff")
    assert (refused.exit_code, "by its whole trace id alone" in " ".join(refused.stderr.split())) == (1, True)


def test_what_waits_behind_a_held_breaker_says_so(
    nowhere: Cloud, api: ApiServer, app: Connection[Any], event_ids: list[UUID]
) -> None:
    hold(app, "signal_lab", by="kim", reason="its consumer is mended")
    shown = run(nowhere, *api.options, "trace", str(event_ids[3]))
    assert "held by kim since" in " ".join(shown.stdout.split()), shown.output


# runs of a deployment


@pytest.mark.parametrize(("command", "function"), [("ingest", "ingestion"), ("relay", "relay")])
def test_a_deployments_run_is_started_and_not_awaited(
    nowhere: Cloud, api: ApiServer, owner: Connection[Any], command: str, function: str
) -> None:
    operator = ("--url", api.url, "--token", api.make_token("kim", "operate"))
    result = run(nowhere, *operator, command, "--reason", "the feed is back")
    assert (result.exit_code, api.started) == (0, [function]), result.output
    assert f"Function was started at {api.url}." in " ".join(result.stderr.split())
    row = owner.execute("SELECT token, reason FROM api_audit ORDER BY id DESC LIMIT 1").fetchone()
    assert row == ("kim", "the feed is back")
    reader = ("--url", api.url, "--token", api.make_token("ada", "read"))
    refused = run(nowhere, *reader, command)
    assert refused.exit_code == 1
    assert "asks for the scope operate" in " ".join(refused.stderr.split())
    assert api.started == [function]


def test_a_deployments_symbols_are_its_own(nowhere: Cloud, api: ApiServer) -> None:
    assert run(nowhere, *api.options, "ingest", "AAPL").exit_code == 2
    assert api.started == []


# status


def test_status_names_dead_letter_and_lag_with_commands(cloud: RunningCloud, acp: Any, event_ids: list[UUID]) -> None:
    output, errors = acp("status").communicate(timeout=60)
    assert errors == b""
    text = output.decode()
    assert "1 dead letter (1 for signal_lab: gave up after 5 attempts: [denied])" in text
    assert "scripts/acp redrive 1" in text
    assert "1 delivered to signal_lab and not processed" in text
    assert f"scripts/acp trace {event_ids[2]}" in " ".join(text.split())
    (row,) = [line for line in text.splitlines() if line.startswith("signal_lab ")]
    assert row.split()[1:7] == ["1", "0", "0", "2", "1", "1"]


@pytest.mark.parametrize("environ", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C"}, {"PYTHONIOENCODING": "latin-1"}])
def test_status_and_trace_are_readable_in_any_encoding(
    acp: Any, api: ApiServer, event_ids: list[UUID], environ: dict[str, str]
) -> None:
    deployment = {"ACP_URL": api.url, "ACP_TOKEN": api.token}
    for arguments, named in ((["status"], {}), (["trace", str(event_ids[0])], deployment)):
        process = acp(*arguments, **environ, **named)
        output, errors = process.communicate(timeout=60)
        assert (process.returncode, errors) == (0, b"")
        text = output.decode("latin-1" if environ.get("PYTHONIOENCODING") == "latin-1" else "ascii")
        assert "signal_lab" in text
        assert "?" not in text


# watch


def test_watch_into_a_reader_of_two_lines_ends_well(acp: Any, event_ids: list[UUID]) -> None:
    process = acp("watch", "--interval", "0.2")
    assert process.stdout is not None
    assert process.stdout.readline().count(b"MARKET_TICK_INGESTED") == 1
    process.stdout.close()
    process.stdout = None
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, b"")


def test_watch_writes_a_json_object_for_each_delivery(acp: Any, event_ids: list[UUID]) -> None:
    process = acp("watch", "--json")
    assert process.stdout is not None
    lines = [json.loads(process.stdout.readline()) for _ in event_ids]
    process.send_signal(signal.SIGINT)
    rest, errors = process.communicate(timeout=60)
    assert [line["event_id"] for line in lines] == list(map(str, event_ids))
    assert [line["state"] for line in lines] == ["dead_lettered", "delivered", "delivered", "pending"]
    assert (process.returncode, rest, errors) == (0, b"", b"")


# ingest


def test_the_trace_id_is_whole_beneath_the_table(
    cloud: RunningCloud, app: Connection[Any], event_ids: list[UUID], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("COLUMNS", "50")
    result = {"symbols": ["AAPL", "IBM"], "failed_symbols": ["IBM"], "trace_id": str(UUID(int=1)), "fetched": 4}
    counts = dict.fromkeys(("ingested", "duplicates", "stale", "rejected"), 0)
    _print_ingested(cloud, cloud.running(), result | counts)
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2:] == [
        "4 bars: 0 new, 0 known already, 0 stale, 0 rejected",
        f"trace {UUID(int=1)}",
    ]


def test_an_interrupt_is_said_once(acp: Any) -> None:
    process = acp("ingest", "AAPL")
    assert process.stderr is not None
    assert process.stderr.readline() == b"asked\n"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.count(b"Interrupted") == 1
