"""One piece of a backfill: a window of a source's past, or a piece of a file. Storing it once more adds nothing."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID, uuid4, uuid5

from psycopg import Connection

from control_plane.ingestion.file_source import FileSource, by_entity
from control_plane.ingestion.judgement import OVERLAP, Judgement, Question, judge
from control_plane.ingestion.service import IngestionResult, jsonb_bytes, to_stored_raw
from control_plane.ingestion.source import Fetched, HistorySource, Json, Source
from control_plane.ingestion.store import (
    LARGEST_RAW_PAYLOAD,
    QUERIES,
    LookOutcome,
    RawPayload,
    Stored,
    database_time,
    newest_occurrences,
    store_events,
)
from control_plane.model.contract import EventTypes
from control_plane.model.errors import MalformedInvocation, SourceError
from control_plane.platform.breakers import BreakerPolicy, Breakers
from control_plane.platform.conflicts import retry_conflicts
from control_plane.platform.telemetry import Telemetry

_INSTANT_AFTER: Final = timedelta(microseconds=1)
_WINDOW_FIELDS: Final = frozenset({"operation_id", "symbols", "since", "until", "interval", "publish"})
_FILE_FIELDS: Final = frozenset({"operation_id", "file", "number", "source", "observed_at", "publish"})


@dataclass(frozen=True, slots=True)
class Window:
    """The observations of some symbols, of one interval, from ``since`` on and before ``until``."""

    operation_id: UUID
    symbols: Sequence[str]
    since: datetime
    until: datetime
    interval: str
    publish: bool


@dataclass(frozen=True, slots=True)
class FilePiece:
    """One piece of an uploaded file, which is said to be what ``source`` answered at ``observed_at``."""

    operation_id: UUID
    file: str
    number: int
    source: str
    observed_at: datetime
    publish: bool


@dataclass(slots=True)
class PieceResult(IngestionResult):
    """What became of a piece; its fields are those of a run, and why a symbol failed."""

    failures: list[Mapping[str, str]] = field(default_factory=list)
    """``symbol``, ``kind`` and ``reason`` of each symbol that failed."""

    def to_dict(self) -> dict[str, Any]:
        """Returns the result as IngestionFunction answers it."""
        return asdict(self)


def read_piece(event: Mapping[str, Any]) -> Window | FilePiece:
    """Returns the piece that an event asks for. Raises MalformedInvocation."""
    try:
        operation_id, publish = UUID(event["operation_id"]), _flag(event["publish"])
        if "file" not in event:
            symbols = tuple(map(str, event["symbols"]))
            since, until = (_instant(event[name]) for name in ("since", "until"))
            return Window(operation_id, symbols, since, until, str(event["interval"]), publish)
        observed_at, number = _instant(event["observed_at"]), int(event["number"])
        return FilePiece(operation_id, str(event["file"]), number, str(event["source"]), observed_at, publish)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise MalformedInvocation(
            f"the event is no piece of a backfill ({error}): a window has {', '.join(sorted(_WINDOW_FIELDS))}; a piece "
            f"of a file has {', '.join(sorted(_FILE_FIELDS))}"
        ) from error


class PieceStorer:
    """Stores one piece. Its trace is derived from the operation and the piece, so that it is found again."""

    def __init__(self, connection: Connection[Any], telemetry: Telemetry, *, event_types: EventTypes) -> None:
        self._connection = connection
        self._telemetry = telemetry
        self._event_types = event_types

    def store_window(self, window: Window, source: HistorySource, policy: BreakerPolicy) -> PieceResult:
        """Fetches and stores a window, one symbol after the other.

        Nothing is fetched while the source's breaker is open; what fails here says nothing to it. Raises psycopg.Error.
        """
        trace_id = uuid5(window.operation_id, f"{window.interval} {window.since} {','.join(window.symbols)}")
        result = PieceResult(str(trace_id), list(window.symbols))
        self._telemetry.logger.append_keys(trace_id=str(trace_id))
        breaker = Breakers(lambda: self._connection, policy).read([source.name])[source.name]
        for symbol in window.symbols:
            if not breaker.is_closed:
                _fail(result, SourceError(symbol, "unreachable", f"the breaker of {source.name} is {breaker.state}"))
                continue
            try:
                self._store_symbol(window, symbol, source, trace_id, result)
            except SourceError as error:
                _fail(result, error)
        return self._reported(result, source.name)

    def store_file_piece(self, piece: FilePiece, followed: Source) -> PieceResult:
        """Stores a piece of a file; each symbol whole or not at all.

        A symbol is refused whose bars would make the live flow of ``followed`` begin later. Raises psycopg.Error.
        """
        trace_id = uuid5(piece.operation_id, f"{piece.file} {piece.number}")
        result = PieceResult(str(trace_id), [])
        self._telemetry.logger.append_keys(trace_id=str(trace_id))
        source = FileSource(piece.source)
        judged, raw_payloads = [], []
        try:
            for symbol, rows in by_entity(self._body(piece)).items():
                result.symbols.append(symbol)
                if self._runs_ahead(symbol, rows, source, followed):
                    reason = f"its bars run ahead of {source.name}, which would leave out what lies between"
                    _fail(result, SourceError(symbol, "refused", reason))
                    continue
                raw: Json = {"file": piece.file, "piece": piece.number, "observations": rows}
                fetched = source.read(raw, symbol=symbol, since=None, asked_at=piece.observed_at)
                question = Question(symbol, None, piece.observed_at, trace_id)
                raw_payload = self._raw_payload(source, question, raw)
                judged.append(self._judge(fetched, question, source, raw_payload.id))
                raw_payloads.append(raw_payload)
        except SourceError as error:
            _fail(result, error)
        else:
            self._store(judged, raw_payloads, result, publish=piece.publish)
        return self._reported(result, piece.source)

    def _body(self, piece: FilePiece) -> str:
        row = self._connection.execute(
            QUERIES["piece_of_file"].sql, {"file_sha256": piece.file, "number": piece.number}
        ).fetchone()
        if row is None:
            reason = f"piece {piece.number} of the file is not there any more: upload the file again"
            raise SourceError("*", "malformed", reason)
        return str(row[0])

    def _store_symbol(
        self, window: Window, symbol: str, source: HistorySource, trace_id: UUID, result: PieceResult
    ) -> None:
        since, until = window.since, window.until
        if window.interval == source.series:
            since, until = self._beside_the_live_flow(window, symbol, source)
        if since >= until:
            return
        question = Question(symbol, since, database_time(self._connection), trace_id)
        try:
            fetched = source.fetch_window(symbol, since, until, window.interval, question.asked_at)
        except SourceError:
            raise
        except Exception as error:
            self._telemetry.logger.exception("the source's client failed", source=source.name, symbol=symbol)
            raise SourceError(symbol, "malformed", f"{type(error).__name__}: {error}") from error
        raw = to_stored_raw(fetched.raw)
        if jsonb_bytes(raw) > LARGEST_RAW_PAYLOAD:
            reason = f"the answer is larger than the {LARGEST_RAW_PAYLOAD} bytes that are kept of an answer"
            raise SourceError(symbol, "malformed", reason)
        raw_payload = self._raw_payload(source, question, raw)
        judgement = self._judge(fetched, question, source, raw_payload.id)
        self._store([judgement], [raw_payload], result, publish=window.publish)

    def _beside_the_live_flow(self, window: Window, symbol: str, source: Source) -> tuple[datetime, datetime]:
        """Returns the window of an interval that ingestion follows, so that it leaves the live flow no gap.

        The next run begins at the newest stored observation. So a window that lies later begins there, too; and what
        is not to be published ends there, because the live flow publishes what follows.
        """
        newest = self._newest(symbol, source)
        if newest is None:
            return window.since, window.until
        since = window.since if window.since <= newest else newest - OVERLAP
        return since, window.until if window.publish else min(window.until, newest + _INSTANT_AFTER)

    def _runs_ahead(self, symbol: str, rows: Sequence[Json], source: Source, followed: Source) -> bool:
        if source.name != followed.name:
            return False
        raw: Json = {"observations": list(rows)}
        bars = [
            one.occurred_at
            for one in source.read(
                raw, symbol=symbol, since=None, asked_at=database_time(self._connection)
            ).observations
            if one.event_type == followed.event_type and one.series == followed.series
        ]
        newest = self._newest(symbol, followed)
        return bool(bars) and newest is not None and max(bars) > newest

    def _newest(self, symbol: str, source: Source) -> datetime | None:
        return newest_occurrences(
            self._connection,
            source=source.name,
            event_type=source.event_type,
            series=source.series,
            entity_ids=[symbol],
        ).get(symbol)

    def _judge(self, fetched: Fetched, question: Question, source: Source, raw_payload_id: UUID) -> Judgement:
        try:
            return judge(fetched, question, source=source, event_types=self._event_types, raw_payload_id=raw_payload_id)
        except Exception as error:
            self._telemetry.logger.exception("an answer cannot be judged", source=source.name, symbol=question.symbol)
            raise SourceError(question.symbol, "malformed", f"{type(error).__name__}: {error}") from error

    def _raw_payload(self, source: Source, question: Question, payload: Json) -> RawPayload:
        return RawPayload(
            id=uuid4(),
            source=source.name,
            entity_id=question.symbol,
            observed_at=question.asked_at,
            window_since=question.since,
            fetched_at=database_time(self._connection),
            trace_id=question.trace_id,
            payload=payload,
        )

    def _store(
        self, judged: Sequence[Judgement], raw_payloads: Sequence[RawPayload], result: PieceResult, *, publish: bool
    ) -> None:
        observations = [look for one in judged for look in one.observations]
        others = [look for one in judged for look in (*one.rejections, *one.notices)]

        def store() -> Stored:
            with self._connection.transaction():
                return store_events(self._connection, raw_payloads, [*observations, *others], is_promised=publish)

        stored = retry_conflicts(store)
        outcomes = Counter(look.outcome for look in stored.looks[: len(observations)])
        duplicates = outcomes[LookOutcome.DUPLICATE] + sum(one.repeated for one in judged)
        rejected = sum(len(one.rejections) for one in judged)
        result.ingested += outcomes[LookOutcome.NEW]
        result.stale += outcomes[LookOutcome.STALE]
        result.duplicates += duplicates
        result.rejected += rejected
        result.fetched += outcomes.total() + sum(one.repeated for one in judged) + rejected
        self._telemetry.count("EventsIngested", len(stored.events))

    def _reported(self, result: PieceResult, source: str) -> PieceResult:
        self._telemetry.logger.info("backfilled", source=source, **result.to_dict())
        return result


def _fail(result: PieceResult, error: SourceError) -> None:
    result.failed_symbols.append(error.symbol)
    result.failures.append({"symbol": error.symbol, "kind": error.kind, "reason": error.reason})


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError("publish is neither true nor false")
    return value


def _instant(text: Any) -> datetime:
    instant = datetime.fromisoformat(text)
    if instant.utcoffset() is None:
        raise ValueError(f"{text!r} has no time zone")
    return instant
