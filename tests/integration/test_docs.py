"""Runs the code blocks of docs/writing_a_domain.md; test_consumer_page.py does it for a consumer's page."""

import importlib
import importlib.util
import re
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from psycopg import Connection
from tests.conftest import TestDatabase
from tests.integration import seeds
from tests.integration.fakes import RecordingTelemetry

import domains
from backtest.services import Services
from control_plane.decisions.emit import message
from control_plane.decisions.record import load_record
from control_plane.decisions.shadow import judge_in_shadow
from control_plane.ingestion.rebuild import rebuild_observations
from control_plane.ingestion.service import ingest
from control_plane.ingestion.store import store_events
from control_plane.model.contract import (
    PLATFORM_PAYLOADS,
    Event,
    EventTypes,
)
from control_plane.model.decision_events import ActionExecuted
from control_plane.platform.breakers import BreakerPolicy
from control_plane.platform.database import connect
from control_plane.platform.messages import one_as_json

ROOT = Path(__file__).parents[2]
NAMED_BLOCK = re.compile(r"^`([^`\s]+)`\n\n```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
ANY_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PAGE = (ROOT / "docs" / "writing_a_domain.md").read_text(encoding="utf-8")
FILES = dict(NAMED_BLOCK.findall(PAGE))
NOON = datetime(2026, 1, 5, 12, tzinfo=UTC)


@pytest.fixture
def weather(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The package that the page makes, beside finance."""
    package = tmp_path / "weather"
    package.mkdir()
    for name, text in FILES.items():
        (package / Path(name).name).write_text(text, encoding="utf-8")
    monkeypatch.setattr(domains, "__path__", [*domains.__path__, str(tmp_path)])
    importlib.invalidate_caches()
    yield importlib.import_module("domains.weather")
    for name in [name for name in sys.modules if name.startswith("domains.weather")]:
        del sys.modules[name]
    vars(domains).pop("weather", None)


def heat(connection: Connection[Any], event: Event) -> bool:
    """A client that turns a heating on: it has no effect but that it says so."""
    about = {name: event.payload[name] for name in ("decision_id", "action_id")}
    told = message(
        ActionExecuted(**about),
        entity_id=event.entity_id,
        series=f"{about['decision_id']}:execution",
        at=event.occurred_at,
        trace_id=event.trace_id,
    )
    with connection.transaction():
        if connection.execute("SELECT begin_execution(%(action_id)s)", about).fetchone() != ("ready",):
            return False
        connection.execute(
            "SELECT record_execution(%(action_id)s, 'executed', '', '{}', %(told)s::json)",
            about | {"told": one_as_json(told)},
        )
    return True


def test_every_code_block_of_the_domain_page_runs_here() -> None:
    assert [text for language, text in ANY_BLOCK.findall(PAGE) if language == "python"] == list(FILES.values())
    names = {"__init__.py", "events.py", "stations_source.py", "frost.py", "deciding.py", "gate.py", "trial.py"}
    assert {Path(name).name for name in FILES} == names
    for path in re.findall(r"`((?:tests|layers|functions)/[^`]+)`|`(control_plane/[^`]+)`", PAGE):
        [name] = filter(None, path)
        assert name in FILES or (ROOT / name).exists() or (ROOT / "layers" / "core" / name).exists(), name


def test_the_pages_domain_is_ingested_and_rebuilt(app: Connection[Any], weather: ModuleType) -> None:
    stations = importlib.import_module("domains.weather.stations_source")
    event_types = EventTypes([*PLATFORM_PAYLOADS, *weather.DOMAIN.payloads])
    directory = {"Oslo": {"2026-01-05T12:00:00Z": -3.5, "2026-01-05T13:00:00Z": float("nan")}}
    telemetry = RecordingTelemetry()
    for celsius in (-3.5, -4.0, -3.5):
        directory["Oslo"]["2026-01-05T12:00:00Z"] = celsius
        source = stations.StationsSource(directory)
        policy = BreakerPolicy(3, 60)
        result = ingest(app, source, ["Oslo", "Nowhere"], telemetry, policy, event_types=event_types)
        assert (result.ingested, result.rejected, result.failed_symbols) == (1, 1, ["Nowhere"])
    assert telemetry.totals["UnsubscribedMessages"] == 3
    stored = app.execute(
        "SELECT event_id, revision, payload_json ->> 'celsius' FROM events WHERE event_type = 'TEMPERATURE_MEASURED'"
        " ORDER BY revision"
    ).fetchall()
    assert [row[1:] for row in stored] == [(0, "-3.5"), (1, "-4.0"), (2, "-3.5")]
    rebuilt = rebuild_observations(app, source, event_types, entity_id="Oslo")
    assert [one.event_id for one in rebuilt] == [row[0] for row in stored]


@pytest.mark.parametrize(
    ("celsius", "states"),
    [
        (-4.0, ["released", "executed"]),
        (-40.0, ["awaiting_approval", "approved", "released", "executed"]),
        (-120.0, []),
    ],
)
def test_the_pages_frost_is_decided_on(
    app: Connection[Any], database: TestDatabase, weather: ModuleType, celsius: float, states: list[str]
) -> None:
    frost = importlib.import_module("domains.weather.frost")
    deciding = importlib.import_module("domains.weather.deciding").DECIDING
    at = datetime.now(UTC)
    measured = seeds.look(weather.TemperatureMeasured(celsius=celsius), entity_id="Oslo", occurred_at=at)
    with app.transaction():
        [stored] = store_events(app, [], [measured]).looks
    assert stored.event is not None
    assert frost.consume(app, stored.event)
    assert not frost.consume(app, stored.event)
    with Services(database.url, {**domains.load_deciding(), "weather": deciding}, client=heat) as services:
        [(text,)] = app.execute("SELECT payload_json::text FROM outbox WHERE topic = 'decisions.work'").fetchall()
        services.skip_messages(app)
        services.decide_on(app, text)
        [(decision_id,)] = app.execute("SELECT decision_id FROM decisions").fetchall()
        record = load_record(services.decide, decision_id)
    assert record is not None
    assert record.decision.state == "scored"
    assert [step.body["state"] for step in record.all("state")] == states


def test_what_the_page_tries_in_shadow_releases_nothing(
    app: Connection[Any], database: TestDatabase, weather: ModuleType
) -> None:
    frost = importlib.import_module("domains.weather.frost")
    trial = importlib.import_module("domains.weather.trial").DECIDING
    measured = seeds.look(weather.TemperatureMeasured(celsius=-8.0), entity_id="Oslo", occurred_at=datetime.now(UTC))
    with app.transaction():
        [stored] = store_events(app, [], [measured]).looks
    assert stored.event is not None
    assert frost.consume(app, stored.event)
    with Services(database.url, {**domains.load_deciding(), "weather": trial}, client=heat) as services:
        [(text,)] = app.execute("SELECT payload_json::text FROM outbox WHERE topic = 'decisions.work'").fetchall()
        services.skip_messages(app)
        services.decide_on(app, text)
    decided = app.execute(
        "SELECT playbook_version, is_shadow, state, action_type FROM decisions LEFT JOIN actions USING (decision_id)"
        " ORDER BY playbook_version"
    ).fetchall()
    assert decided == [("1", False, "scored", "HEAT"), ("2", True, "scored", None)]
    asked = app.execute("SELECT verdict_id, verdict FROM verdicts WHERE NOT is_shadow").fetchall()
    with connect(database.url("acp_gatekeeper"), application_name="test") as gatekeeper:
        [(verdict_id, verdict)] = asked
        said = judge_in_shadow(gatekeeper, trial.gate, trial.shadow_policies, verdict_id)
    assert said is not None
    assert (verdict, said.enforced, said.verdict) == ("permitted", "permitted", "needs_approval")
