"""Reads CSV and Parquet files of observations: every bad row is found, and what is good is cut into pieces."""

from __future__ import annotations

import csv
import gzip
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from control_plane.ingestion.file_source import to_json
from control_plane.model.errors import ContractViolation
from control_plane.operations.backfill.pieces import FilePart, cut, name_of_file
from local_cloud.errors import AcpError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from control_plane.model.backfill import FileRow, FileShape

_ROWS_AT_A_TIME: Final = 10_000


class BadRows(AcpError):
    """Raised when a file has rows that cannot be ingested; nothing of it was sent."""


@dataclass(frozen=True, slots=True)
class BadRow:
    """One row that cannot be ingested."""

    line: int
    """In a CSV file the line of the text that the row ends on; in a Parquet file the row's number, from 1 on."""
    reason: str


@dataclass(slots=True)
class ReadFile:
    """What a file holds."""

    parts: list[FilePart] = field(default_factory=list)
    """Its observations in pieces, if no row is bad."""
    bad_rows: list[BadRow] = field(default_factory=list)
    observations: int = 0

    @property
    def sha256(self) -> str:
        """The hash by which the uploaded file is known."""
        return name_of_file(self.parts)


def read_file(path: Path, shape: FileShape) -> ReadFile:
    """Reads a whole file. Raises UsageError where it cannot be read, or its columns are not those of the shape."""
    found = ReadFile()
    found.parts = list(cut(_observations(path, shape, found)))
    return found


def _observations(path: Path, shape: FileShape, found: ReadFile) -> Iterator[Mapping[str, Any]]:
    """Yields the good rows as JSON, and notes the bad ones."""
    lines: dict[tuple[Any, ...], int] = {}
    for line, row in _rows(path, shape):
        try:
            read = _read(row, shape)
            observation = to_json(read)
        except (ValueError, ContractViolation) as error:
            found.bad_rows.append(BadRow(line, str(error)))
            continue
        earlier = lines.setdefault((read.entity_id, read.event_type, read.series, read.occurred_at), line)
        if earlier != line:
            found.bad_rows.append(BadRow(line, f"is about the same instant as line {earlier}"))
            continue
        found.observations += 1
        yield observation


def _read(row: Mapping[Any, Any], shape: FileShape) -> FileRow:
    if None in row:  # where csv puts what is behind the last column
        raise ValueError("has more values than there are columns")
    for name in shape.columns:
        if name not in shape.optional and row.get(name) in {None, ""}:
            raise ValueError(f"{name}: is missing")
    return shape.read(row)


def _rows(path: Path, shape: FileShape) -> Iterator[tuple[int, Mapping[str, Any]]]:
    try:
        yield from _parquet(path, shape) if path.suffix == ".parquet" else _csv(path, shape)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}") from error


def _csv(path: Path, shape: FileShape) -> Iterator[tuple[int, Mapping[str, Any]]]:
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8-sig", newline="") as text:
        reader = csv.DictReader(text, strict=True)
        try:
            _check_columns(path, reader.fieldnames or (), shape)
            for row in reader:
                yield reader.line_num, row
        except (csv.Error, UnicodeDecodeError) as error:
            raise UsageError(f"{path} is no CSV file in UTF-8, line {reader.line_num}: {error}") from error


def _parquet(path: Path, shape: FileShape) -> Iterator[tuple[int, Mapping[str, Any]]]:
    try:
        import pyarrow as arrow  # noqa: PLC0415 – large, and needed for these files alone
        from pyarrow import parquet  # noqa: PLC0415 – as above
    except ImportError as error:
        raise UsageError(f"{path} is a Parquet file, and acp reads those by pyarrow: pip install pyarrow") from error
    try:
        with parquet.ParquetFile(path) as file:
            _check_columns(path, file.schema_arrow.names, shape)
            columns = [name for name in shape.columns if name in file.schema_arrow.names]
            line = 0
            for batch in file.iter_batches(batch_size=_ROWS_AT_A_TIME, columns=columns):
                for row in batch.to_pylist():
                    line += 1
                    yield line, row
    except arrow.ArrowException as error:
        raise UsageError(f"{path} is no Parquet file: {error}") from error


def _check_columns(path: Path, names: Sequence[str], shape: FileShape) -> None:
    missing = [name for name in shape.columns if name not in names and name not in shape.optional]
    unknown = [name for name in names if name not in shape.columns]
    if missing or unknown:
        what = f"lacks {', '.join(missing)}" if missing else f"has {', '.join(unknown)}, which no column is called"
        raise UsageError(f"{path} {what}. A file of {shape.name} has the columns {', '.join(shape.columns)}.")
