"""Gives each scenario 5,000 messages, and prints the table of what became of them."""

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, fields
from itertools import count
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql
from tests.conftest import PASSWORD, TEMPLATE, TEST_ROLE, TestDatabase
from tests.integration import seeds
from tests.reliability.pipeline import FAILURES, TICKS, Pipeline, Result

from control_plane.platform.database import connect
from local_cloud.postgres import PostgresServer
from queue_endpoint import QueueEndpoint, serve

SEEDED = "reliability_template"
DOCUMENT = Path(__file__).parents[2] / "docs" / "reliability.md"
TABLE_STARTS, TABLE_ENDS = "<!-- table -->", "<!-- end of table -->"
_PROPERTY = "reliability"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--write-reliability",
        action="store_true",
        help="write the table of this run, if all of it is green, into docs/reliability.md",
    )


@pytest.fixture(scope="session")
def seeded(postgres: PostgresServer) -> PostgresServer:
    """The cluster, with a database of messages to clone, on a port that stays after a restart."""
    postgres._wished_port = postgres.port
    with psycopg.connect(postgres.url(), autocommit=True) as admin:
        admin.execute(
            sql.SQL("CREATE DATABASE {} TEMPLATE {} OWNER acp_owner").format(
                sql.Identifier(SEEDED), sql.Identifier(TEMPLATE)
            )
        )
    with connect(postgres.url(TEST_ROLE, SEEDED, PASSWORD), application_name="seed") as connection:
        ticks, failures = seeds.ticks(TICKS), seeds.failures(FAILURES)
        # The topics are mixed, so that each claim holds both.
        for start in range(9):
            seeds.store(connection, [*ticks[start::9], *failures[start::9]])
    return postgres


@pytest.fixture(scope="session")
def endpoint() -> Iterator[QueueEndpoint]:
    with serve() as running:
        yield running


_numbers = count(1)


@pytest.fixture
def pipeline(
    seeded: PostgresServer, endpoint: QueueEndpoint, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Pipeline]:
    """A scenario with 5,000 messages; parametrized with a number, it has so many messages of market.ticks instead."""
    ticks: int | None = getattr(request, "param", None)
    name = f"reliability_{next(_numbers)}"
    with psycopg.connect(seeded.url(), autocommit=True) as admin:
        admin.execute(
            sql.SQL("CREATE DATABASE {} TEMPLATE {} OWNER acp_owner").format(
                sql.Identifier(name), sql.Identifier(SEEDED if ticks is None else TEMPLATE)
            )
        )
    if ticks is not None:
        with connect(seeded.url(TEST_ROLE, name, PASSWORD), application_name="seed") as connection:
            seeds.store(connection, seeds.ticks(ticks))
    endpoint.reset()
    database = TestDatabase(
        name,
        app_url=seeded.url(TEST_ROLE, name, PASSWORD),
        owner_url=seeded.url("acp_owner", name, PASSWORD),
        admin_url=seeded.url(database=name),
    )
    made = Pipeline(seeded, database, endpoint, tmp_path)
    yield made
    made.close()
    endpoint.reset()
    with psycopg.connect(seeded.url(), autocommit=True) as admin:
        admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


type Finish = Callable[[str], Result]


@pytest.fixture
def finish(pipeline: Pipeline, record_property: Callable[[str, object], None]) -> Finish:
    """Returns a function that ends a scenario under a name, for the table; nothing may be lost or miscounted."""

    def end(scenario: str) -> Result:
        result = pipeline.finish()
        record_property(_PROPERTY, {"scenario": scenario, **asdict(result)})
        assert result.lost == 0
        assert pipeline.miscounted() == []
        return result

    return end


def pytest_terminal_summary(terminalreporter: Any, exitstatus: int, config: pytest.Config) -> None:
    reports = [report for kind in ("passed", "failed") for report in terminalreporter.stats.get(kind, [])]
    rows = [
        {**value, "broken": report.failed}
        for report in sorted(reports, key=lambda report: report.location)
        for name, value in report.user_properties
        if name == _PROPERTY and report.when == "call"
    ]
    if not rows:
        return
    rows.sort(key=lambda row: row["scenario"])
    table = _table(rows)
    terminalreporter.section("reliability")
    terminalreporter.write_line(table)
    if config.getoption("--write-reliability") and exitstatus == pytest.ExitCode.OK:
        before, _, rest = DOCUMENT.read_text().partition(TABLE_STARTS)
        after = rest.partition(TABLE_ENDS)[2]
        seen = time.strftime("%Y-%m-%d")
        total = sum(row["deliveries"] for row in rows)
        caption = f"Seen on {seen}: {len(rows)} scenarios, {total:,} deliveries."
        DOCUMENT.write_text(f"{before}{TABLE_STARTS}\n{caption}\n\n{table}\n{TABLE_ENDS}{after}")


def _table(rows: list[dict[str, Any]]) -> str:
    names = [field.name for field in fields(Result)]
    cells = [["scenario", *(name.replace("_", " ") for name in names)]]
    for row in rows:
        numbers = [f"{row[name]:.1f}" if name == "seconds" else f"{row[name]:,}" for name in names]
        cells.append([row["scenario"] + (" — FAILED" if row["broken"] else ""), *numbers])
    first, *others = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [f"| {' | '.join([name.ljust(first), *map(str.rjust, numbers, others)])} |" for name, *numbers in cells]
    rule = f"|{'|'.join(['-' * (first + 2), *('-' * (width + 1) + ':' for width in others)])}|"
    return "\n".join([lines[0], rule, *lines[1:]])
