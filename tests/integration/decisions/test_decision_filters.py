"""Which decisions are listed: by playbook, by when they were opened, and by an event that has to do with them."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from psycopg import Connection
from tests.conftest import TestDatabase
from tests.integration import seeds
from tests.integration.api_server import no_deployment, serving
from tests.integration.decisions.world import World, anomaly
from tests.integration.running_cloud import run

from local_cloud.cloud import Cloud
from local_cloud.workspace import CHECKOUT, Workspace

BAR = datetime.now(UTC).replace(microsecond=0) - timedelta(minutes=3)

type Listed = Callable[..., list[str]]


@pytest.fixture
def listed(database: TestDatabase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Listed]:
    """Lists the entities of the decisions that acp finds by these options."""
    no_deployment(tmp_path, monkeypatch)
    nowhere = Cloud(Workspace(CHECKOUT, tmp_path, tmp_path / "state"))
    with serving(database) as api:

        def listed(*options: str) -> list[str]:
            result = run(nowhere, *api.options, "decisions", "--json", *options)
            assert result.exit_code == 0, result.output
            return [one["entity_id"] for one in json.loads(result.stdout)]

        yield listed


def test_an_event_leads_to_the_decisions_that_it_has_to_do_with(
    world: World, app: Connection[Any], listed: Listed
) -> None:
    world.detect(anomaly(entity="V", at=BAR), anomaly(entity="W", at=BAR))
    world.run()
    look = replace(seeds.ticks(1, entity_id="W")[0], source="toy", series="1m", occurred_at=BAR)
    bar, same_bar, later = seeds.store(
        app, [look, replace(look, source="fake"), replace(look, occurred_at=BAR + timedelta(minutes=1))]
    )
    assert listed("--event", str(bar)) == ["W"]
    assert listed("--event", str(same_bar)) == listed("--event", str(later)) == [], "another source, another instant"
    told = world.rows("SELECT event_id, entity_id, event_type FROM events WHERE source = 'decisions' ORDER BY seq")
    assert {event_type for _, _, event_type in told} >= {"ANOMALY_DETECTED", "DECISION_OPENED", "ACTION_RELEASED"}
    for event_id, entity_id, event_type in told:
        assert listed("--event", str(event_id)) == [entity_id], event_type


def test_filters_add_up(world: World, listed: Listed) -> None:
    world.detect(anomaly(entity="V", at=BAR))
    world.run()
    between = datetime.now(UTC).isoformat()
    world.detect(anomaly(entity="W", at=BAR))
    world.run()
    assert listed("--playbook", "nudging") == ["W", "V"]
    assert listed("--playbook", "other") == []
    assert listed("--since", between) == ["W"]
    assert listed("--until", between) == ["V"]
    assert listed("--since", between, "--entity", "V") == []
