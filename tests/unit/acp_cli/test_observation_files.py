"""Files of observations: each bad row is named by line and reason, and good files are cut into the same pieces."""

import gzip
import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet
from typer.testing import CliRunner

from acp_cli.cli import app
from acp_cli.observation_files import BadRow, read_file
from control_plane.model.backfill import LARGEST_PIECE, MOST_ENTITIES, MOST_OBSERVATIONS
from control_plane.operations.backfill.pieces import cut
from domains.finance.price_file import BARS
from local_cloud.errors import UsageError

HEADER = "symbol,occurred_at,interval,open,high,low,close,volume,currency"
GOOD = "AAPL,2013-02-28T09:30:00-05:00,1d,444.05,447.87,441.4,441.4,11518400,USD"
SAMPLE = Path(__file__).with_name("days.csv")


def csv_file(folder: Path, *rows: str, header: str = HEADER) -> Path:
    path = folder / "days.csv"
    path.write_text("\n".join((header, *rows, "")), encoding="utf-8")
    return path


def test_the_sample_is_good() -> None:
    read = read_file(SAMPLE, BARS)
    assert (read.bad_rows, read.observations, len(read.parts)) == ([], 3, 1)
    assert json.loads(read.parts[0].body)[0] == {
        "entity_id": "AAPL",
        "entity_type": "equity",
        "event_type": "MARKET_TICK_INGESTED",
        "series": "1d",
        "occurred_at": "2013-02-27T14:30:00Z",
        "payload": {
            "price": 444.57,
            "open": 448.43,
            "high": 452.44,
            "low": 440.65,
            "volume": 20976800,
            "currency": "USD",
            "interval": "1d",
        },
    }


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        (("AAPL", ""), "symbol: is missing"),
        (("AAPL", "two words"), "symbol: is no symbol (got 'two words')"),
        (("2013-02-28T09:30:00-05:00", "28.02.2013"), "occurred_at: is no instant such as 2013-02-28T14:30:00Z"),
        (("-05:00", ""), "occurred_at: has no time zone, so it may mean any of several instants"),
        (("444.05", "1·5"), "open: is no number (got '1·5')"),
        (("444.05", "NaN"), "open: is no number (got 'NaN')"),
        (("444.05", "1e999"), "open: "),
        (("441.4,11518400", "0,11518400"), "close: is 0: nothing is traded for nothing"),
        (("11518400", "-1"), "volume: "),
        (("11518400", "1.5"), "volume: "),
        (("USD", "$"), "currency: "),
        (("1d", "daily"), "interval: "),
        (("USD", "USD,more"), "has more values than there are columns"),
        ((",USD", ""), "currency: is missing"),
    ],
)
def test_a_bad_row_is_named_by_its_line_and_reason(tmp_path: Path, changed: tuple[str, str], reason: str) -> None:
    first, last = (GOOD.replace("02-28", day) for day in ("02-27", "03-01"))
    read = read_file(csv_file(tmp_path, first, GOOD.replace(*changed), last), BARS)
    assert read.observations == 2
    (found,) = read.bad_rows
    assert (found.line, found.reason[: len(reason)]) == (3, reason)


def test_every_bad_row_is_found(tmp_path: Path) -> None:
    read = read_file(csv_file(tmp_path, *(GOOD.replace("USD", "$") for _ in range(200))), BARS)
    assert [row.line for row in read.bad_rows] == list(range(2, 202))


def test_a_second_row_about_the_same_instant_is_bad(tmp_path: Path) -> None:
    same = GOOD.replace("09:30:00-05:00", "14:30:00Z").replace("441.4,1", "450,1")
    read = read_file(csv_file(tmp_path, GOOD, same), BARS)
    assert read.bad_rows == [BadRow(3, "is about the same instant as line 2")]


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (HEADER.replace("close", "price"), "lacks close"),
        (HEADER + ",adj_close", "has adj_close, which no column is called"),
        ("", "lacks symbol"),
    ],
)
def test_other_columns_are_refused(tmp_path: Path, header: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        read_file(csv_file(tmp_path, GOOD, header=header), BARS)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", HEADER.encode() + b'\n"open', b""])
def test_what_is_no_csv_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "days.csv"
    path.write_bytes(content)
    with pytest.raises(UsageError):
        read_file(path, BARS)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.csv cannot be read"):
        read_file(tmp_path / "none.csv", BARS)


def test_csv_gzip_and_parquet_hold_the_same_pieces(tmp_path: Path) -> None:
    plain = read_file(SAMPLE, BARS)
    zipped = tmp_path / "days.csv.gz"
    zipped.write_bytes(gzip.compress(SAMPLE.read_bytes()))
    columns, *rows = [line.split(",") for line in SAMPLE.read_text(encoding="utf-8").splitlines()]
    table: dict[str, Any] = {name: [row[place] for row in rows] for place, name in enumerate(columns)}
    for name in ("open", "high", "low", "close"):
        table[name] = pyarrow.array([float(value) for value in table[name]])
    table["volume"] = pyarrow.array([int(value) for value in table["volume"]])
    table["occurred_at"] = pyarrow.array(
        [datetime.fromisoformat(text) for text in table["occurred_at"]],
        pyarrow.timestamp("us", "America/New_York"),
    )
    parquet.write_table(pyarrow.table(table), tmp_path / "days.parquet")
    assert read_file(zipped, BARS) == read_file(tmp_path / "days.parquet", BARS) == plain


def test_a_bad_row_of_parquet_is_named_by_its_number(tmp_path: Path) -> None:
    names = HEADER.split(",")
    rows = [GOOD.split(","), GOOD.replace("USD", "$").split(",")]
    table = pyarrow.table({name: [row[place] for row in rows] for place, name in enumerate(names)})
    parquet.write_table(table, tmp_path / "days.parquet")
    assert [row.line for row in read_file(tmp_path / "days.parquet", BARS).bad_rows] == [2]


def test_what_is_no_parquet_is_refused(tmp_path: Path) -> None:
    (tmp_path / "days.parquet").write_bytes(b"PAR1 and nothing else")
    with pytest.raises(UsageError, match="is no Parquet file"):
        read_file(tmp_path / "days.parquet", BARS)


rows_of_a_file = st.lists(
    st.fixed_dictionaries({"entity_id": st.text(min_size=1, max_size=3), "payload": st.text(max_size=300)}), max_size=40
)


@given(rows_of_a_file)
def test_pieces_hold_every_row_in_order(rows: list[dict[str, str]]) -> None:
    parts = list(cut(rows))
    assert [row for part in parts for row in json.loads(part.body)] == rows
    assert [part.observations for part in parts] == [len(json.loads(part.body)) for part in parts]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([{"entity_id": "A"}] * (MOST_OBSERVATIONS + 1), [MOST_OBSERVATIONS, 1]),
        ([{"entity_id": str(number)} for number in range(MOST_ENTITIES + 1)], [MOST_ENTITIES, 1]),
        ([{"entity_id": "A", "payload": "ä" * (LARGEST_PIECE // 6)}] * 4, [2, 2]),
    ],
)
def test_no_piece_exceeds_what_a_request_and_a_transaction_take(rows: list[Any], expected: list[int]) -> None:
    parts = list(cut(rows))
    assert [part.observations for part in parts] == expected
    assert all(len(part.body.encode()) <= LARGEST_PIECE for part in parts)


def test_the_command_names_bad_rows_and_fails(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["backfill", "check", str(csv_file(tmp_path, GOOD, GOOD.replace("USD", "$")))])
    assert result.exit_code == 1
    assert "line 3: currency: " in result.output
    assert "1 of 2 rows are bad" in result.output


def test_the_command_says_what_a_good_file_holds() -> None:
    result = CliRunner().invoke(app, ["backfill", "check", "--json", str(SAMPLE)])
    assert result.exit_code == 0
    assert json.loads(result.stdout)["observations"] == 3
