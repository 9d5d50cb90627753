"""The code in docs/writing_a_consumer.md and docs/writing_a_domain.md, taken from them and run."""

import importlib
import importlib.util
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any
from uuid import uuid4

import pytest
from psycopg import Connection
from samcli.yamlhelper import yaml_parse
from tests.integration.fakes import RecordingTelemetry

import domains
from control_plane.ingestion.rebuild import rebuild_observations
from control_plane.ingestion.service import ingest
from control_plane.model.contract import (
    PLATFORM_PAYLOADS,
    Event,
    EventTypes,
    Payload,
    SourceFetchFailed,
    SourceGapDetected,
    new_event,
)
from control_plane.platform.breakers import BreakerPolicy
from domains import finance

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "writing_a_consumer.md").read_text(encoding="utf-8")
NAMED_BLOCK = re.compile(r"^`([^`\s]+)`\n\n```\w+\n(.*?)^```$", re.MULTILINE | re.DOTALL)
ANY_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILES = dict(NAMED_BLOCK.findall(PAGE))
DOMAIN_PAGE = (ROOT / "docs" / "writing_a_domain.md").read_text(encoding="utf-8")
DOMAIN_FILES = dict(NAMED_BLOCK.findall(DOMAIN_PAGE))
NOON = datetime(2026, 1, 5, 12, tzinfo=UTC)


def file_of(ending: str) -> str:
    [text] = [text for name, text in FILES.items() if name.endswith(ending)]
    return str(text)


def load(name: str, path: Path, text: str) -> ModuleType:
    path.write_text(text, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def page(owner: Connection[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The page followed: its migration applied, its consumer in the package."""
    if owner.execute("SELECT to_regclass('source_watch')").fetchone() == (None,):  # else the page was really followed
        owner.execute(file_of("_source_watch.sql").encode())
    package = tmp_path / "source_watch"
    package.mkdir()
    (package / "queries.sql").write_text(file_of("source_watch/queries.sql"), encoding="utf-8")
    (package / "__init__.py").write_text(file_of("source_watch/__init__.py"), encoding="utf-8")
    monkeypatch.setattr(finance, "__path__", [*finance.__path__, str(tmp_path)])
    importlib.invalidate_caches()
    yield
    sys.modules.pop("domains.finance.source_watch", None)
    vars(finance).pop("source_watch", None)


@dataclass
class FakeContext:
    aws_request_id: str = "00000000-0000-4000-8000-000000000000"
    function_name: str = "source-watch"
    log_stream_name: str = "stream"

    def get_remaining_time_in_millis(self) -> int:
        return 30_000


def event_of(payload: Payload) -> Event:
    return new_event(
        payload,
        source="yfinance",
        entity_id="AAPL",
        entity_type=None,
        occurred_at=NOON,
        observed_at=NOON,
        ingested_at=NOON,
        trace_id=uuid4(),
    )


def test_every_block_of_code_on_the_page_is_run_here() -> None:
    blocks = ANY_BLOCK.findall(PAGE)
    assert [text for language, text in blocks if language != "yaml"] == list(FILES.values())
    assert {Path(name).name for name in FILES} == {
        "NNNN_source_watch.sql",
        "queries.sql",
        "__init__.py",
        "app.py",
        "test_source_watch.py",
    }


def test_what_the_page_points_to_is_there() -> None:
    text = ANY_BLOCK.sub("", PAGE)
    paths = {path for path in re.findall(r"`((?:tests|layers|db|functions)/[^`]+)`", text) if path not in FILES}
    assert len(paths) >= 3
    assert [path for path in paths if not (ROOT / path).exists()] == []
    for name in re.findall(r"`(\w+)\(\)`", text):
        assert any(f"def {name}(" in path.read_text() for path in (ROOT / "layers/core").rglob("*.py")) or name in {
            "greatest"
        }, name


@pytest.mark.usefixtures("page")
def test_the_pages_own_test_passes(app: Connection[Any], tmp_path: Path) -> None:
    module = load("page_test", tmp_path / "page_test.py", file_of("test_source_watch.py"))
    tests = [value for name, value in vars(module).items() if name.startswith("test_")]
    assert len(tests) == 2
    for test in tests:
        with app.transaction(force_rollback=True):
            test(app)


@pytest.mark.usefixtures("page")
def test_the_pages_function_answers_a_batch(
    database: Any, app: Connection[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", database.app_url)
    monkeypatch.delenv("DATABASE_SECRET_ARN", raising=False)
    function = load("page_app", tmp_path / "app.py", file_of("app.py"))
    failed = event_of(SourceFetchFailed(symbol="AAPL", kind="unreachable", reason="no answer"))
    gap = event_of(SourceGapDetected(symbol="AAPL", since=NOON, until=NOON))
    bodies = [json.dumps(event.to_message()) for event in (failed, gap, failed)]
    records = [
        {"messageId": str(number), "body": body, "eventSource": "aws:sqs"}
        for number, body in enumerate([*bodies, "not JSON"])
    ]
    try:
        answer = function.handler({"Records": records}, FakeContext())
    finally:
        function.database().close()
    assert answer == {"batchItemFailures": [{"itemIdentifier": "3"}]}
    assert app.execute("SELECT symbol, failures, occurred_at FROM source_watch").fetchall() == [("AAPL", 1, NOON)]


def test_the_pages_template_makes_a_consumer_like_the_one_that_is_there() -> None:
    *_, snippet = (text for language, text in ANY_BLOCK.findall(PAGE) if language == "yaml")
    template = (ROOT / "template.yaml").read_text(encoding="utf-8")
    before, after = template.split("\nResources:\n")
    indented = "".join(f"  {line}\n" if line else "\n" for line in snippet.splitlines())
    # Behind the resources whose anchors it uses.
    place = after.index("  # --- logs")
    resources = yaml_parse(f"{before}\nResources:\n{after[:place]}{indented}{after[place:]}")["Resources"]
    function = resources["SourceWatchFunction"]["Properties"]
    [trigger] = function["Events"].values()
    assert trigger["Properties"]["Queue"] == {"Fn::GetAtt": ["SourceWatchQueue", "Arn"]}
    assert trigger["Properties"]["FunctionResponseTypes"] == ["ReportBatchItemFailures"]
    assert resources["SourceWatchQueue"]["Properties"]["VisibilityTimeout"] >= 6 * function["Timeout"]
    for first, second in (
        ("SignalLabFunctionRole", "SourceWatchFunctionRole"),
        ("SignalLabLogPolicy", "SourceWatchLogPolicy"),
        ("SignalLabLogGroup", "SourceWatchLogGroup"),
        ("MarketTicksQueue", "SourceWatchQueue"),
        ("MarketTicksDeadLetterQueue", "SourceWatchDeadLetterQueue"),
    ):
        expected = json.dumps(resources[first])
        for name in ("SignalLab", "MarketTicks"):
            expected = expected.replace(name, "SourceWatch")
        assert json.dumps(resources[second]) == expected.replace("market-ticks", "source-watch"), second
    assert f"{function['CodeUri']}/app.py" in FILES


def test_the_page_adds_one_entry_to_the_subscriptions_that_are_there() -> None:
    texts = [text for language, text in ANY_BLOCK.findall(PAGE) if language == "yaml"]
    topics, queues = map(yaml_parse, texts[:2])
    resources = yaml_parse((ROOT / "template.yaml").read_text(encoding="utf-8"))["Resources"]
    variables = {
        **resources["MigrationFunction"]["Properties"]["Environment"]["Variables"],
        **resources["RelayFunction"]["Properties"]["Environment"]["Variables"],
    }
    assert json.loads(topics["SUBSCRIPTIONS"]) == json.loads(variables["SUBSCRIPTIONS"]) | {
        "source_watch": "system.events"
    }
    name = "SUBSCRIPTION_QUEUE_URLS"
    assert json.loads(queues[name]["Fn::Sub"]) == json.loads(variables[name]["Fn::Sub"]) | {
        "source_watch": "${SourceWatchQueue}"
    }


# docs/writing_a_domain.md


@pytest.fixture
def weather(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The page followed: its package beside finance."""
    package = tmp_path / "weather"
    package.mkdir()
    for name, text in DOMAIN_FILES.items():
        (package / Path(name).name).write_text(text, encoding="utf-8")
    monkeypatch.setattr(domains, "__path__", [*domains.__path__, str(tmp_path)])
    importlib.invalidate_caches()
    yield importlib.import_module("domains.weather")
    for name in [name for name in sys.modules if name.startswith("domains.weather")]:
        del sys.modules[name]
    vars(domains).pop("weather", None)


def test_every_block_of_code_on_the_domains_page_is_run_here() -> None:
    assert [text for _, text in ANY_BLOCK.findall(DOMAIN_PAGE)] == list(DOMAIN_FILES.values())
    assert {Path(name).name for name in DOMAIN_FILES} == {"__init__.py", "events.py", "stations_source.py"}
    for path in re.findall(r"`((?:tests|layers|functions)/[^`]+)`|`(control_plane/[^`]+)`", DOMAIN_PAGE):
        [name] = filter(None, path)
        assert name in DOMAIN_FILES or (ROOT / name).exists() or (ROOT / "layers" / "core" / name).exists(), name


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
