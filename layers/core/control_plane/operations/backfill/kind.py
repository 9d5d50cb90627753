"""The kind of operation ``backfill``: its filter, its plan of frozen pieces, and its steps."""

import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from psycopg import Connection

from control_plane.model.backfill import MOST_PIECES, RESERVED_SOURCES, History, Reach
from control_plane.model.errors import ConfigurationError, ContractViolation, ControlPlaneError
from control_plane.model.ids import canonical_instant, is_storable_text
from control_plane.operations.backfill.pieces import QUERIES, hash_over
from control_plane.operations.kind import MOST_SAMPLED, Operation, OperationRefused, Planned, Stepped
from control_plane.platform.settings import parse_symbols

type Ask = Callable[[Mapping[str, Any]], Mapping[str, Any]]
"""Asks IngestionFunction for one piece, waits, and returns its result. It may raise any error."""

SECONDS_OF_A_PIECE: Final = 2.0
"""What a piece is estimated to take: an answer of the source, and its storing."""
MOST_NOTED: Final = 20
"""How many failed pieces the progress names."""
COUNTED: Final = ("fetched", "ingested", "duplicates", "stale", "rejected")
PASSING: Final = frozenset({"rate_limited", "unreachable"})
"""The kinds of failure that may heal by themselves: the piece is tried again."""
_WINDOW_FIELDS: Final = frozenset({"source", "symbols", "since", "until", "interval", "publish"})
_FILE_FIELDS: Final = frozenset({"file", "pieces", "observed_at", "source", "publish"})
_SHA256: Final = re.compile(r"[0-9a-f]{64}")


class PieceFailed(ControlPlaneError):
    """Raised when a piece could not be had now, and may be later. Retryable."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What became of the pieces that a step has asked for."""

    done: int
    skipped: int
    cursor: Mapping[str, Any]


class Backfill:
    """Asks IngestionFunction for one piece after the other, oldest first: a window of one symbol, or a piece of a file.

    It is asked before the step's transaction, so that a pause or a cancel never waits for a source. A piece that is
    done twice adds nothing, because ingestion derives the events' ids. What a source no longer has, or does not know,
    is skipped and noted; what it does not answer is tried again.
    """

    name = "backfill"

    def __init__(
        self,
        histories: Iterable[History],
        ask: Ask,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._histories = {history.name: history for history in histories}
        self._ask = ask
        self._now = now
        self._monotonic = monotonic

    def parse(self, wanted: Mapping[str, Any]) -> Mapping[str, Any]:
        """Reads symbols, since, until, interval, source; or file, pieces, observed_at, source; and publish."""
        given = {name: value for name, value in wanted.items() if value is not None}
        fields = _FILE_FIELDS if "file" in given else _WINDOW_FIELDS
        if unknown := sorted(map(str, given.keys() - fields)):
            raise OperationRefused(
                f"the filter of a backfill has no field {unknown[0]!r}: it may have {', '.join(sorted(fields))}"
            )
        publish = given.get("publish", True)
        if not isinstance(publish, bool):
            raise OperationRefused("publish must be true or false")
        return (self._parse_file(given) if "file" in given else self._parse_window(given)) | {"publish": publish}

    def plan(self, connection: Connection[Any], operation: Operation) -> Planned:
        """Freezes the pieces; of a file all must be there. Raises OperationRefused."""
        chosen = operation.filter
        plan = _plan_file(connection, chosen) if "file" in chosen else self._plan_windows(chosen)
        if not 0 < plan["total"] <= MOST_PIECES:
            raise OperationRefused(f"that is {plan['total']} pieces, and at most {MOST_PIECES}: ask for less at a time")
        pace = SECONDS_OF_A_PIECE if operation.rate is None else max(SECONDS_OF_A_PIECE, 1 / operation.rate)
        return Planned({**plan, "estimated_seconds": round(plan["total"] * pace), "effect": _effect(chosen)}, True)

    def prepare(self, operation: Operation, *, most: int, seconds: float) -> Asked:
        """Has some pieces ingested, at least one. Raises PieceFailed, and OperationRefused where a file is gone."""
        started = self._monotonic()
        total, cursor = operation.total, dict(operation.cursor)
        place: int = cursor.get("next", 0)
        counts = {name: cursor.get(name, 0) for name in COUNTED}
        noted: list[Mapping[str, Any]] = list(cursor.get("failed", ()))
        done = skipped = 0
        while place < total and done + skipped < most:
            if done + skipped and (operation.rate is not None or self._monotonic() - started >= seconds):
                break
            piece = piece_of(operation, place)
            try:
                result = self._result(piece)
            except PieceFailed:
                if not done + skipped:
                    raise
                break  # What is done is recorded first; the next step tries this piece again.
            for name in COUNTED:
                counts[name] += result[name]
            failures = result.get("failures", ())
            noted += [{"piece": place + 1, **failure} for failure in failures]
            skipped += bool(failures)
            done += not failures
            place += 1
        return Asked(done, skipped, {"next": place, **counts, "failed": noted[:MOST_NOTED]})

    def step(
        self,
        connection: Connection[Any],
        operation: Operation,
        *,
        most: int,
        seconds: float,
        prepared: Asked | None = None,
    ) -> Stepped:
        """Records the pieces that were ingested, and forgets a file at its end."""
        del most, seconds  # They bound what was prepared.
        assert prepared is not None, "the engine prepares each step"
        is_finished = prepared.cursor["next"] >= operation.total
        if is_finished:
            self._forget(connection, operation)
        return Stepped(
            prepared.done,
            prepared.skipped,
            prepared.cursor,
            is_finished,
            None if operation.rate is None else _present(connection) + timedelta(seconds=1 / operation.rate),
        )

    def cancel(self, connection: Connection[Any], operation: Operation) -> int | None:
        """Forgets what was uploaded; what is stored stays."""
        self._forget(connection, operation)
        return None

    def _result(self, piece: Mapping[str, Any]) -> Mapping[str, Any]:
        result = self._ask(piece)
        if not isinstance(result, Mapping) or any(not isinstance(result.get(name), int) for name in COUNTED):
            raise PieceFailed(f"IngestionFunction's answer is no result of a piece: {str(result)[:200]}")
        for failure in result.get("failures", ()):
            what = f"{failure.get('symbol')}: {failure.get('reason')}"
            if failure.get("kind") in PASSING:
                raise PieceFailed(what)
            if failure.get("symbol") == "*":
                raise OperationRefused(what)
        return result

    def _forget(self, connection: Connection[Any], operation: Operation) -> None:
        if "file" in operation.filter:
            connection.execute(QUERIES["forget_pieces"].sql, {"file_sha256": operation.filter["file"]})

    def _parse_window(self, given: Mapping[str, Any]) -> dict[str, Any]:
        name, history = self._find_history(given.get("source"))
        interval = given.get("interval", "1m")
        reach = history.reaches.get(interval) if isinstance(interval, str) else None
        if reach is None:
            raise OperationRefused(f"{name} has no interval {interval!r}: it has {', '.join(history.reaches)}")
        try:
            symbols = list(dict.fromkeys(parse_symbols(given.get("symbols", []), name="symbols")))
        except ConfigurationError as error:
            raise OperationRefused(str(error)) from error
        now = self._now()
        since, until = _instant("since", given.get("since")), now
        if "until" in given:
            until = min(until, _instant("until", given["until"]))
        if since >= until:
            raise OperationRefused("since is not before until, or lies ahead: the time is empty")
        self._check_reach(name, interval, reach, since, now)
        return {
            "source": name,
            "symbols": symbols,
            "interval": interval,
            "since": canonical_instant(since),
            "until": canonical_instant(until),
        }

    def _find_history(self, name: object) -> tuple[str, History]:
        chosen = next(iter(self._histories), None) if name is None else name
        if not isinstance(chosen, str) or chosen not in self._histories:
            raise OperationRefused(f"{name!r} is no source with a past: there are {', '.join(self._histories)}")
        return chosen, self._histories[chosen]

    def _check_reach(self, name: str, interval: str, reach: Reach, since: datetime, now: datetime) -> None:
        if reach.back is not None and since < now - reach.back:
            oldest = canonical_instant((now - reach.back).replace(microsecond=0))
            raise OperationRefused(
                f"{name} serves {interval} of the last {reach.back.days} days alone: since must be {oldest} or later "
                f"(it is {canonical_instant(since)}). {_farther(self._histories[name], reach)}"
            )

    def _parse_file(self, given: Mapping[str, Any]) -> dict[str, Any]:
        file, pieces, source = given["file"], given.get("pieces"), given.get("source", "file")
        if not isinstance(file, str) or not _SHA256.fullmatch(file):
            raise OperationRefused("file must be the SHA-256 of the uploaded file: 64 hexadecimal digits")
        if not isinstance(pieces, int) or isinstance(pieces, bool) or not 0 < pieces <= MOST_PIECES:
            raise OperationRefused(f"pieces must be a whole number from 1 to {MOST_PIECES}")
        is_name = (
            isinstance(source, str) and 0 < len(source) <= 128 and is_storable_text(source) and source.isprintable()
        )
        if not is_name or source in RESERVED_SOURCES:
            raise OperationRefused("source must be the name of a source, and none of the control plane's own")
        observed_at = _instant("observed_at", given.get("observed_at"))
        if observed_at > self._now():
            raise OperationRefused("observed_at lies ahead: it is when the file's observations were made")
        return {"file": file, "pieces": pieces, "source": source, "observed_at": canonical_instant(observed_at)}

    def _plan_windows(self, chosen: Mapping[str, Any]) -> dict[str, Any]:
        reach = self._histories[chosen["source"]].reaches[chosen["interval"]]
        since, until = (datetime.fromisoformat(chosen[name]) for name in ("since", "until"))
        self._check_reach(chosen["source"], chosen["interval"], reach, since, self._now() - timedelta(hours=1))
        windows: list[list[str]] = []
        while since < until and len(windows) <= MOST_PIECES:
            stop = min(since + reach.window, until)
            windows.append([canonical_instant(since), canonical_instant(stop)])
            since = stop
        total = len(chosen["symbols"]) * len(windows)
        plan = {"total": total, "windows": windows}
        return {**plan, "sample": [_window(chosen, plan, place) for place in range(min(total, MOST_SAMPLED))]}


def piece_of(operation: Operation, place: int) -> Mapping[str, Any]:
    """Returns the event for IngestionFunction that asks for a piece of the plan, from 0 on."""
    chosen = operation.filter
    shared = {"operation_id": str(operation.operation_id), "publish": chosen["publish"]}
    if "file" in chosen:
        of_file = {name: chosen[name] for name in ("file", "source", "observed_at")}
        return {**shared, **of_file, "number": place + 1}
    return {**shared, **_window(chosen, operation.plan, place)}


def _window(chosen: Mapping[str, Any], plan: Mapping[str, Any], place: int) -> dict[str, Any]:
    symbol, window = divmod(place, len(plan["windows"]))
    since, until = plan["windows"][window]
    return {"symbols": [chosen["symbols"][symbol]], "since": since, "until": until, "interval": chosen["interval"]}


def _plan_file(connection: Connection[Any], chosen: Mapping[str, Any]) -> dict[str, Any]:
    row = connection.execute(QUERIES["pieces_of_file"].sql, {"file_sha256": chosen["file"]}).fetchone()
    assert row is not None, "an aggregate has a row"
    pieces, observations, hashes = row
    if pieces != chosen["pieces"] or hash_over(hashes) != chosen["file"]:
        raise OperationRefused(
            f"{pieces} of the file's {chosen['pieces']} pieces are there, or others than those: upload the file again"
        )
    return {"total": pieces, "observations": observations, "sample": []}


def _effect(chosen: Mapping[str, Any]) -> str:
    if chosen["publish"]:
        return "new events are published at once, beside the live flow; ingestion of the same symbols waits for a piece"
    return "new events are stored and sent to nobody; consumers get them by a replay, and never otherwise"


def _farther(history: History, reach: Reach) -> str:
    assert reach.back is not None
    others = [name for name, one in history.reaches.items() if one.back is None or one.back > reach.back]
    return f"Farther back it serves {' and '.join(others)}" if others else "It serves nothing older"


def _instant(name: str, value: Any) -> datetime:
    try:
        instant = datetime.fromisoformat(value)
        canonical_instant(instant, field=name)
    except (TypeError, ValueError, ContractViolation):
        raise OperationRefused(
            f"{name} is {value!r}: it must be an instant with its time zone, such as 2026-01-05T14:32:00Z"
        ) from None
    return instant.astimezone(UTC)


def _present(connection: Connection[Any]) -> datetime:
    row = connection.execute(QUERIES["present"].sql).fetchone()
    assert row is not None
    present: datetime = row[0]
    return present


def backfill_wanted(
    symbols: Sequence[str], *, since: str, until: str | None, interval: str, publish: bool = True
) -> dict[str, Any]:
    """Returns the filter of a backfill of symbols, as ``acp`` asks for it."""
    return {"symbols": list(symbols), "since": since, "until": until, "interval": interval, "publish": publish}
