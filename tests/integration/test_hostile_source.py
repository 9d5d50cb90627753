"""Whatever a source does, the other symbols are stored, memory stays bounded, and an event says what happened."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from psycopg import Connection
from samcli.yamlhelper import yaml_parse
from tests.conftest import TEMPLATE as TEMPLATE_DATABASE
from tests.conftest import _database as new_database
from tests.integration import hostile_run
from tests.integration.hostile_source import BEHAVIOURS, serve

from control_plane.platform.database import connect
from domains.finance.yahoo_actions import MOST_ACTIONS
from local_cloud.postgres import PostgresServer

TEMPLATE: dict[str, Any] = yaml_parse((Path(__file__).parents[2] / "template.yaml").read_text(encoding="utf-8"))
FUNCTION = TEMPLATE["Globals"]["Function"] | TEMPLATE["Resources"]["IngestionFunction"]["Properties"]
WORDS = {
    "MARKET_TICK_INGESTED": "stored",
    "SIGNAL_REJECTED": "rejected",
    "CORPORATE_SPLIT_INGESTED": "split",
    "CORPORATE_DIVIDEND_INGESTED": "dividend",
}
SYMBOLS = ("AAPL", *BEHAVIOURS, "IBM")


@dataclass(frozen=True, slots=True)
class Run:
    """One run over a well-behaved symbol, every behaviour and another well-behaved symbol."""

    outcomes: dict[str, str]
    """What became of each symbol, in the words of the table."""
    bars: dict[str, int]
    """How many bars of each symbol are stored."""
    failed_symbols: list[str]
    asked_elsewhere: list[str]
    peak_bytes: int
    seconds_left: float
    splits: int
    """Stored of the symbol that has them without end."""


@pytest.fixture(scope="module")
def run(postgres: PostgresServer) -> Iterator[Run]:
    """Runs ingestion in a process of its own, with the time that the function has."""
    with contextmanager(new_database)(postgres, template=TEMPLATE_DATABASE) as database, serve() as source:
        ran = subprocess.run(
            [sys.executable, hostile_run.__file__, database.app_url, source.url, str(FUNCTION["Timeout"]), *SYMBOLS],
            capture_output=True,
            text=True,
            timeout=240,
            check=True,
        )
        report = json.loads(ran.stderr.splitlines()[-1])
        with connect(database.app_url, application_name="test") as connection:
            rows = connection.execute(
                "SELECT count(*) FROM events"
                " WHERE entity_id = 'SPLITS-WITHOUT-END' AND event_type = 'CORPORATE_SPLIT_INGESTED'"
            ).fetchall()
            yield Run(
                read_outcomes(connection),
                read_bars(connection),
                asked_elsewhere=source.asked_elsewhere,
                splits=rows[0][0],
                **report,
            )


def read_outcomes(connection: Connection[Any]) -> dict[str, str]:
    """Returns what the events say of each symbol."""
    rows = connection.execute(
        "SELECT entity_id, event_type, payload_json ->> 'kind' FROM events GROUP BY 1, 2, 3"
    ).fetchall()
    found: dict[str, set[str]] = {}
    for symbol, event_type, kind in rows:
        found.setdefault(symbol, set()).add(WORDS.get(event_type, kind))
    return {symbol: " and ".join(sorted(words, reverse=True)) for symbol, words in found.items()}


def read_bars(connection: Connection[Any]) -> dict[str, int]:
    """Returns how many bars of each symbol are stored."""
    query = "SELECT entity_id, count(*) FROM events WHERE event_type = 'MARKET_TICK_INGESTED' GROUP BY 1"
    return dict(connection.execute(query).fetchall())


def test_the_table_has_at_least_forty_behaviours() -> None:
    assert len(BEHAVIOURS) >= 40


@pytest.mark.parametrize("symbol", BEHAVIOURS)
def test_a_behaviour_has_its_outcome_as_an_event(run: Run, symbol: str) -> None:
    expected = BEHAVIOURS[symbol].outcome
    assert run.outcomes[symbol] == expected
    assert (symbol in run.failed_symbols) == (expected.split()[0] not in WORDS.values())


@pytest.mark.parametrize("symbol", [name for name, behaviour in BEHAVIOURS.items() if behaviour.bars is not None])
def test_a_behaviour_leaves_so_many_bars(run: Run, symbol: str) -> None:
    assert run.bars[symbol] == BEHAVIOURS[symbol].bars


@pytest.mark.parametrize("symbol", ["AAPL", "IBM"])
def test_the_other_symbols_are_stored(run: Run, symbol: str) -> None:
    assert run.outcomes[symbol] == "stored"


def test_peak_memory_stays_under_the_functions_size(run: Run) -> None:
    assert run.peak_bytes < FUNCTION["MemorySize"] * 1024 * 1024


def test_the_run_ends_before_it_would_be_cut_off(run: Run) -> None:
    assert run.seconds_left > 0


def test_no_redirect_leads_to_another_host(run: Run) -> None:
    assert run.asked_elsewhere == []


def test_of_splits_without_end_few_are_read(run: Run) -> None:
    assert run.splits == MOST_ACTIONS
