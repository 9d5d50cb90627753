"""The code in docs/writing_a_consumer.md, taken from it and run."""

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

from control_plane import consumers
from control_plane.model.contract import Event, Payload, SourceFetchFailed, SourceGapDetected, new_event

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "writing_a_consumer.md").read_text(encoding="utf-8")
NAMED_BLOCK = re.compile(r"^`(\S+)`\n\n```\w+\n(.*?)^```$", re.MULTILINE | re.DOTALL)
ANY_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILES = dict(NAMED_BLOCK.findall(PAGE))
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
    owner.execute(file_of("_source_watch.sql").encode())
    package = tmp_path / "source_watch"
    package.mkdir()
    (package / "queries.sql").write_text(file_of("source_watch/queries.sql"), encoding="utf-8")
    (package / "__init__.py").write_text(file_of("source_watch/__init__.py"), encoding="utf-8")
    monkeypatch.setattr(consumers, "__path__", [*consumers.__path__, str(tmp_path)])
    importlib.invalidate_caches()
    yield
    sys.modules.pop("control_plane.consumers.source_watch", None)
    vars(consumers).pop("source_watch", None)


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
    assert len(tests) == 1
    for test in tests:
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
    assert app.execute("SELECT symbol, failures, last_failed_at FROM source_watch").fetchall() == [("AAPL", 1, NOON)]


def test_the_pages_template_fits_the_queue_that_is_there() -> None:
    [snippet] = [text for language, text in ANY_BLOCK.findall(PAGE) if language == "yaml"]
    template = (ROOT / "template.yaml").read_text(encoding="utf-8")
    before, after = template.split("\nResources:\n")
    indented = "".join(f"  {line}\n" if line else "\n" for line in snippet.splitlines())
    # Where a function belongs: behind those that are there, whose anchors it uses.
    place = after.index("  # --- queues")
    whole = yaml_parse(f"{before}\nResources:\n{after[:place]}{indented}{after[place:]}")
    function = whole["Resources"]["SourceWatchFunction"]["Properties"]
    [trigger] = function["Events"].values()
    queue, _ = trigger["Properties"]["Queue"]["Fn::GetAtt"]
    assert whole["Resources"][queue]["Properties"]["VisibilityTimeout"] >= 6 * function["Timeout"]
    assert whole["Resources"][queue]["Properties"]["RedrivePolicy"]["maxReceiveCount"] == 5
    assert trigger["Properties"]["FunctionResponseTypes"] == ["ReportBatchItemFailures"]
    # The role of the consumer that is there, with its own queue and log group.
    for kind in ("FunctionRole", "LogPolicy"):
        model = json.dumps(whole["Resources"][f"SignalLab{kind}"])
        expected = model.replace("SignalLab", "SourceWatch").replace("MarketTicks", "SystemEvents")
        assert json.dumps(whole["Resources"][f"SourceWatch{kind}"]) == expected
    assert f"{function['CodeUri']}/app.py" in FILES
