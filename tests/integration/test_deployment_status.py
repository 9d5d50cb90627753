"""acp status of a deployment: its API over HTTP on a real Postgres, and no local cloud."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from psycopg import Connection
from tests.conftest import TestDatabase
from tests.integration import seeds
from tests.integration.api_server import ApiServer, no_deployment, serving
from tests.integration.running_cloud import run

from control_plane.model.lifecycle import Accepted
from control_plane.platform.breakers import hold
from local_cloud.cloud import Cloud
from local_cloud.workspace import CHECKOUT, Workspace


@pytest.fixture
def api(database: TestDatabase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ApiServer]:
    no_deployment(tmp_path, monkeypatch)
    with serving(database, monkeypatch) as served:
        yield served


@pytest.fixture
def nowhere(tmp_path: Path) -> Cloud:
    return Cloud(Workspace(CHECKOUT, tmp_path, tmp_path / "state"))


def test_a_deployment_that_is_well_says_so(nowhere: Cloud, api: ApiServer) -> None:
    result = run(nowhere, *api.options, "status")
    assert result.exit_code == 0, result.output
    first, events, *_ = result.stdout.splitlines()
    assert first == f"ok  {api.url}"
    assert events == "0 events in the last minute, no event yet"
    told = json.loads(run(nowhere, *api.options, "status", "--json").stdout)
    assert (told["status"], told["problems"], told["url"]) == ("ok", [], api.url)


def test_what_is_open_is_named_with_its_command(nowhere: Cloud, api: ApiServer, app: Connection[Any]) -> None:
    seeds.store(app, seeds.ticks(2))
    seeds.give_up(app)
    seeds.store(app, [seeds.tick(2)])
    hold(app, "system_events", by="kim")
    told = json.loads(run(nowhere, *api.options, "status", "--json").stdout)
    assert told["status"] == "degraded"
    assert "2 dead letters of signal_lab: acp dead-letters" in told["problems"]
    assert "system_events is held by kim: acp resume system_events" in told["problems"]
    assert any(problem.startswith("breakers is degraded: open") for problem in told["problems"])
    shown = run(nowhere, *api.options, "status").stdout
    [row] = [line for line in shown.splitlines() if line.startswith("signal_lab ")]
    assert row.split()[1] == "1"
    assert row.split()[-2:] == ["2", "closed"]


def test_a_deployment_whose_schema_is_another_says_so_without_its_flow(
    nowhere: Cloud, api: ApiServer, owner: Connection[Any]
) -> None:
    owner.execute("DELETE FROM schema_migrations WHERE version > 1")
    result = run(nowhere, *api.options, "status")
    assert (result.exit_code, result.stdout.splitlines()[0]) == (0, f"failing  {api.url}"), result.output
    assert "schema is failing" in result.stdout
    assert json.loads(run(nowhere, *api.options, "status", "--json").stdout)["flow"] is None


def test_a_token_that_may_not_read_and_an_api_that_is_away_are_told_apart(nowhere: Cloud, api: ApiServer) -> None:
    metrics = ("--url", api.url, "--token", api.make_token("scraper", "metrics"))
    refused = run(nowhere, *metrics, "status")
    assert (refused.exit_code, "asks for the scope read" in " ".join(refused.stderr.split())) == (1, True)
    away = run(nowhere, "--url", "http://127.0.0.1:1", "status")
    assert (away.exit_code, "does not answer" in " ".join(away.stderr.split())) == (5, True)


def test_the_metrics_are_printed_as_they_are_scraped(nowhere: Cloud, api: ApiServer, app: Connection[Any]) -> None:
    seeds.store(app, seeds.ticks(2))
    seeds.settle(app, seeds.claim(app), Accepted("m"))
    scraper = ("--url", api.url, "--token", api.make_token("scraper", "metrics"))
    classic = run(nowhere, *scraper, "metrics")
    assert classic.exit_code == 0, classic.output
    assert 'events_published_total{subscription="signal_lab"} 2.0\n' in classic.stdout
    assert run(nowhere, *scraper, "metrics", "--openmetrics").stdout.endswith("# EOF\n")
    refused = run(nowhere, "--url", api.url, "--token", api.make_token("seer", "read"), "metrics")
    assert (refused.exit_code, "asks for the scope metrics" in " ".join(refused.stderr.split())) == (1, True)
