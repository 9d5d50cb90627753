"""The pieces of a file: how they are cut and named, and how they are kept until a backfill has ingested them."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from psycopg import Connection, errors

from control_plane.model.backfill import LARGEST_PIECE, MOST_ENTITIES, MOST_OBSERVATIONS
from control_plane.operations.kind import OperationConflict, OperationRefused
from control_plane.platform.queries import load_queries

QUERIES: Final = load_queries(__package__)


@dataclass(frozen=True, slots=True)
class FilePart:
    """One piece of a file."""

    body: str
    observations: int

    @property
    def sha256(self) -> str:
        """The hash of its text."""
        return hashlib.sha256(self.body.encode()).hexdigest()


def cut(rows: Iterable[Mapping[str, Any]]) -> Iterator[FilePart]:
    """Yields a file's observations, as JSON, in pieces that fit a request and a transaction; the same rows, the same
    pieces.
    """
    texts: list[str] = []
    entities: set[object] = set()
    size = 2
    for row in rows:
        text = json.dumps(row, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        more = len(text.encode()) + 1
        is_full = len(texts) == MOST_OBSERVATIONS or size + more > LARGEST_PIECE
        if is_full or (row["entity_id"] not in entities and len(entities) == MOST_ENTITIES):
            yield FilePart(f"[{','.join(texts)}]", len(texts))
            texts, entities, size = [], set(), 2
        texts.append(text)
        entities.add(row["entity_id"])
        size += more
    if texts:
        yield FilePart(f"[{','.join(texts)}]", len(texts))


def name_of_file(parts: Iterable[FilePart]) -> str:
    """Returns the hash over the hashes of a file's pieces, by which it is known."""
    return hash_over("".join(part.sha256 for part in parts))


def hash_over(hashes: str) -> str:
    """Returns the hash over the hashes of a file's pieces, one behind the other."""
    return hashlib.sha256(hashes.encode()).hexdigest()


def keep_piece(connection: Connection[Any], *, file: str, number: int, body: str) -> bool:
    """Keeps a piece of a file and returns whether it is new; the same piece once more changes nothing.

    Raises OperationRefused for a text that is no piece, and OperationConflict where the piece of that number is another
    one, or too many pieces wait.
    """
    if len(body.encode()) > LARGEST_PIECE:
        raise OperationRefused(f"the piece is larger than {LARGEST_PIECE} bytes")
    try:
        rows = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise OperationRefused(f"the piece is no JSON: {error}") from error
    if not isinstance(rows, list) or not 0 < len(rows) <= MOST_OBSERVATIONS:
        raise OperationRefused(f"the piece must be a list of 1 to {MOST_OBSERVATIONS} observations")
    try:
        with connection.transaction():
            kept = connection.execute(
                QUERIES["keep_piece"].sql,
                {
                    "file_sha256": file,
                    "number": number,
                    "sha256": hashlib.sha256(body.encode()).hexdigest(),
                    "observations": len(rows),
                    "body": body,
                },
            ).fetchone()
    except (errors.UniqueViolation, errors.ProgramLimitExceeded) as error:
        raise OperationConflict(error.diag.message_primary or str(error)) from error
    except (errors.CheckViolation, errors.NumericValueOutOfRange, errors.DataError) as error:
        raise OperationRefused(f"the piece is refused: {error.diag.message_primary}") from error
    return kept is not None and bool(kept[0])
