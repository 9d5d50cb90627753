"""acp anomalies on a real Postgres; only the cloud around it is a stand-in."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from psycopg import Connection
from tests.conftest import TestDatabase
from tests.integration.api_server import ApiServer, lead_to, no_deployment, serving
from tests.integration.detection import bar, deliver, quiet, split
from tests.integration.running_cloud import RunningCloud, run

from local_cloud.cloud import Cloud
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


def test_where_there_are_none_that_is_said(cloud: RunningCloud) -> None:
    result = run(cloud, "anomalies")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "No anomalies.\n")


def test_they_are_listed_with_what_explains_them(cloud: RunningCloud, app: Connection[Any]) -> None:
    deliver(app, *quiet(60), split(2, minute=60), bar(50.0, 60), bar(50.0, 61, low=30.0), bar(20.0, 62))
    result = run(cloud, "anomalies")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert all(len(line) <= 90 for line in lines)
    fall, excursion, halved = (line for line in lines if line.startswith("AAPL"))
    assert "2026-01-05 13:02  return  detected  -60.0%, score " in fall
    assert "2026-01-05 13:01  range  detected  40.0% below open and close, score " in excursion
    assert "return  explained" in halved
    [explanation] = [line for line in lines if "a split" in line]
    assert explanation.startswith("   a split, 2 for 1: -50.0% as traded, -0.0% adjusted")
    assert lines[1] == "   the market: 1 of 1 fell, the median -60.0%"
    found = json.loads(run(cloud, "anomalies", "--json").stdout)
    assert [one["state"] for one in found] == ["detected", "detected", "explained"]
    assert found[0]["details"]["return_ppm"] == -600_000
    assert "These are the newest 1; --limit shows more." in run(cloud, "anomalies", "--limit", "1").stderr


def test_a_withdrawn_one_says_so(cloud: RunningCloud, app: Connection[Any]) -> None:
    deliver(app, *quiet(60), bar(50.0, 60), bar(100.0, 60, revision=1))
    first, *_ = run(cloud, "anomalies").stdout.splitlines()
    assert first == "AAPL  2026-01-05 13:00  return  withdrawn"


def test_those_of_a_deployment_are_listed(nowhere: Cloud, api: ApiServer, app: Connection[Any]) -> None:
    deliver(app, *quiet(60), bar(50.0, 60))
    reader = ("--url", api.url, "--token", api.make_token("kim", "read"))
    result = run(nowhere, *reader, "anomalies", "--entity", "AAPL")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("AAPL  2026-01-05 13:00  return  detected  -50.0%, score ")
    assert run(nowhere, *reader, "anomalies", "--entity", "MSFT").stderr == "No anomalies.\n"
