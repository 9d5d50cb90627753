"""One ingestion run: fetch every symbol on its own, judge what came, store it with its promises."""

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID, uuid4

from psycopg import Connection

from control_plane.ingestion.source import Entity, Fetched, Json, Observation, Source, TradingSession
from control_plane.ingestion.store import Draft, RawPayload, database_time, newest_occurrences, store_events
from control_plane.model.contract import (
    PAYLOADS,
    Event,
    MarketTick,
    Payload,
    SignalRejected,
    SourceFetchFailed,
    SourceGapDetected,
    new_event,
    parse_payload,
)
from control_plane.model.errors import ContractViolation, SourceError
from control_plane.model.ids import storable
from control_plane.model.text import readable
from control_plane.platform.breakers import Breaker, BreakerPolicy, Breakers
from control_plane.platform.telemetry import Telemetry

OVERLAP: Final = timedelta(minutes=15)
"""Fetched again before the newest stored bar, so that a correction is seen."""
MAX_PARALLEL_FETCHES: Final = 8
OUTAGE_KINDS: Final = frozenset({"rate_limited", "unreachable", "malformed"})
"""Of SourceError: what may be the source's trouble. Where every symbol meets one, it is."""
BREAKER_OPEN: Final = "breaker_open"
"""The ``kind`` of the one event that says the source's breaker has opened; its symbol is ``*``."""
STORING_SECONDS: Final = 15.0
"""What a run keeps of its time to store what it has; the answers that are not there by then are given up."""
_EVENTS_PER_TRANSACTION: Final = 5_000
_STORE_EVERY_SECONDS: Final = 5.0


@dataclass(slots=True)
class IngestionResult:
    """What a run did. ``fetched`` counts bars: ingested + duplicates + rejected."""

    trace_id: str
    symbols: list[str]
    fetched: int = 0
    ingested: int = 0
    duplicates: int = 0
    rejected: int = 0
    failed_symbols: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """As IngestionFunction returns it."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class _Answer:
    """What became of one symbol."""

    symbol: str
    fetched_at: datetime
    outcome: Fetched | SourceError


class _Run:
    """The state of one run: its trace, its source, and the counts so far."""

    def __init__(
        self, source: Source, symbols: Sequence[str], telemetry: Telemetry, remaining_seconds: Callable[[], float]
    ) -> None:
        self._remaining_seconds = remaining_seconds
        self.trace_id = uuid4()
        self.source = source
        self.telemetry = telemetry
        self.result = IngestionResult(str(self.trace_id), list(symbols))
        self.answered = False
        """Whether the source had an answer for any symbol, if only that it does not know it."""
        self.outage: SourceError | None = None
        self._newest: dict[str, datetime] = {}
        self._silences: dict[TradingSession, list[float]] = {}
        """Of each market that is open: how long each of its symbols has had no new bar, in seconds."""

    def ingest(self, connection: Connection[Any], symbols: Sequence[str], *, probing: bool = False) -> None:
        """Fetches symbols side by side and stores what came; of a probe that failed nothing but the counts."""
        if not symbols:
            return
        self._newest |= newest_occurrences(
            connection, source=self.source.name, event_type=MarketTick.event_type, entity_ids=symbols
        )

        def fetch(symbol: str) -> _Answer:
            since = self._newest.get(symbol)
            return self._fetch(symbol, None if since is None else since - OVERLAP)

        # Where the time never suffices for all, it must not always be the same symbols that go without. The trace_id is
        # random, so no schedule falls into step with it.
        first = self.trace_id.int % len(symbols)
        pool = ThreadPoolExecutor(max_workers=min(len(symbols), MAX_PARALLEL_FETCHES), thread_name_prefix="fetch")
        try:
            fetches = {pool.submit(fetch, symbol): symbol for symbol in (*symbols[first:], *symbols[:first])}
            for batch in _batches(_answers(fetches, self._remaining_seconds)):
                self._store(connection, batch, probing=probing)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # whoever still hangs is not waited for

    def skip(self, symbols: Sequence[str]) -> None:
        """Leaves symbols for a later run, which makes up for it by its overlap."""
        self.result.failed_symbols += symbols

    def fail(self, connection: Connection[Any], breakers: Breakers) -> Breaker:
        """Counts the run as a failure of its source; where the breaker is open then, stores that it opened, once."""
        events = []
        with connection.transaction():
            breaker = breakers.failed(self.source.name, str(self.outage))
            if breaker.opened_at is not None and breaker.held_by is None:
                # Every run and probe that fails makes the same event of this opening: it is stored once.
                events.append(
                    new_event(
                        SourceFetchFailed(
                            symbol="*",
                            kind=BREAKER_OPEN,
                            reason="the source has no answer for any symbol: none is fetched until a probe has one",
                        ),
                        source=self.source.name,
                        entity_id=None,
                        entity_type=None,
                        occurred_at=breaker.opened_at,
                        ingested_at=database_time(connection),
                        trace_id=self.trace_id,
                    )
                )
            new = store_events(connection, [], [Draft(event, None) for event in events])
        self._count([], events, new)
        return breaker

    def report_markets(self) -> None:
        """Counts how many symbols' markets are open, and for how long the most silent of these markets has been so.

        A symbol that is not traded says nothing of its market; a market without any new bar does.
        """
        if self.answered:
            self.telemetry.count("OpenSymbols", sum(len(silences) for silences in self._silences.values()))
        if self._silences:
            self.telemetry.count("MarketSilence", max(min(silences) for silences in self._silences.values()))

    def _fetch(self, symbol: str, since: datetime | None) -> _Answer:
        fetched_at = datetime.now(UTC)
        try:
            return _Answer(symbol, fetched_at, self.source.fetch(symbol, since))
        except SourceError as error:
            return _Answer(symbol, fetched_at, error)
        except Exception as error:
            # A symbol that trips the source's client must not stop the others.
            self.telemetry.logger.exception("the source's client failed", source=self.source.name, symbol=symbol)
            return _Answer(symbol, fetched_at, SourceError(symbol, "malformed", f"{type(error).__name__}: {error}"))

    def _store(self, connection: Connection[Any], answers: Sequence[_Answer], *, probing: bool) -> None:
        """Judges and stores a batch in one transaction; counts and reports it once that is committed."""
        ingested_at = database_time(connection)
        raw_payloads: list[RawPayload] = []
        drafts: list[Draft] = []
        judged = [self._judged(answer, ingested_at=ingested_at) for answer in answers]
        for answer, _ in judged:
            if isinstance(answer.outcome, SourceError) and answer.outcome.kind in OUTAGE_KINDS:
                self.outage = answer.outcome
            else:
                self.answered = True
        # That the breaker opened is stored already; a probe's failure each cool-down would say it again and again.
        kept = judged if self.answered or not probing else []
        for answer, events in kept:
            raw = None if answer.outcome.raw is None else self._raw_payload(answer, answer.outcome.raw)
            if raw is not None:
                raw_payloads.append(raw)
            drafts += [Draft(event, None if raw is None else raw.id) for event in events]
        with connection.transaction():
            new = store_events(connection, raw_payloads, drafts)
        for answer, _ in judged:
            if isinstance(answer.outcome, Fetched):
                self._listen(answer, answer.outcome)
        self._count([answer for answer, _ in judged], [draft.event for draft in drafts], new)

    def _listen(self, answer: _Answer, fetched: Fetched) -> None:
        if fetched.session is None:
            return
        bars = [observation.occurred_at for observation in fetched.observations[-1:]]
        stored = self._newest.get(answer.symbol)
        heard = max([fetched.session.start, *bars, *([stored] if stored else [])])
        self._silences.setdefault(fetched.session, []).append((answer.fetched_at - heard).total_seconds())

    def _judged(self, answer: _Answer, *, ingested_at: datetime) -> tuple[_Answer, list[Event]]:
        try:
            return answer, list(self._judge(answer, ingested_at=ingested_at))
        except Exception as error:
            # What one answer's own description or instants do to the judge must not stop the other symbols.
            self.telemetry.logger.exception("an answer cannot be judged", source=self.source.name, symbol=answer.symbol)
            failure = SourceError(
                answer.symbol, "malformed", f"{type(error).__name__}: {error}", raw=answer.outcome.raw
            )
            unusable = _Answer(answer.symbol, answer.fetched_at, failure)
            return unusable, list(self._judge(unusable, ingested_at=ingested_at))

    def _raw_payload(self, answer: _Answer, payload: Json) -> RawPayload:
        return RawPayload(uuid4(), self.source.name, answer.fetched_at, self.trace_id, _storable_raw(payload))

    def _judge(self, answer: _Answer, *, ingested_at: datetime) -> Iterator[Event]:
        symbol, outcome = answer.symbol, answer.outcome

        def event(payload: Payload, entity: Entity | None, occurred_at: datetime) -> Event:
            return new_event(
                payload,
                source=self.source.name,
                entity_id=symbol,
                entity_type=None if entity is None else entity.entity_type,
                occurred_at=occurred_at,
                ingested_at=ingested_at,
                trace_id=self.trace_id,
            )

        if isinstance(outcome, SourceError):
            failure = SourceFetchFailed(
                symbol=symbol, kind=outcome.kind, reason=readable(outcome.reason) or outcome.kind
            )
            yield event(failure, None, answer.fetched_at)
            return
        entity = self.source.describe(outcome)
        if outcome.gap is not None:
            since, until = outcome.gap.since, outcome.gap.until
            if not outcome.observations:
                # Nothing newer moves the next run on: to the day, lest each minute's forgetting be another event.
                until = max(until.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0), since)
            if until > since:
                yield event(SourceGapDetected(symbol=symbol, since=since, until=until), entity, since)
        for observation in outcome.observations:
            try:
                yield event(_payload(observation), entity, observation.occurred_at)
            except ContractViolation as violation:
                yield event(_rejection(symbol, observation, violation), entity, observation.occurred_at)

    def _count(self, answers: Sequence[_Answer], events: Sequence[Event], new: frozenset[UUID]) -> None:
        result, telemetry = self.result, self.telemetry
        ticks = {event.event_id for event in events if event.event_type == MarketTick.event_type}
        rejected = [event for event in events if event.event_type == SignalRejected.event_type]
        observations = sum(
            len(answer.outcome.observations) for answer in answers if isinstance(answer.outcome, Fetched)
        )
        ingested = len(ticks & new)
        duplicates = observations - len(rejected) - ingested
        result.fetched += observations
        result.ingested += ingested
        result.duplicates += duplicates
        result.rejected += len(rejected)
        telemetry.count("EventsIngested", len(new))
        telemetry.count("DuplicateEvents", duplicates)
        for event in events:
            if event.event_type != MarketTick.event_type and event.event_id in new:
                telemetry.logger.warning(
                    event.event_type,
                    event_id=str(event.event_id),
                    source=event.source,
                    topic=event.topic,
                    error=event.payload,
                )
        for answer in answers:
            if isinstance(answer.outcome, SourceError):
                result.failed_symbols.append(answer.symbol)
                telemetry.count("SourceFailures", 1)


def ingest(
    connection: Connection[Any],
    source: Source,
    symbols: Sequence[str],
    telemetry: Telemetry,
    policy: BreakerPolicy,
    *,
    remaining_seconds: Callable[[], float] = lambda: math.inf,
) -> IngestionResult:
    """Fetches all symbols side by side from the overlap on, and stores what came, a symbol whole or not at all.

    A symbol that fails becomes an event, and so does a bar that breaks the contract and a gap that cannot be filled.
    A run in which every symbol fails by OUTAGE_KINDS is one failure of the source's breaker. While that is open
    nothing is fetched; once a probe is due, one symbol is, and the others after it where the source has an answer.
    So does a symbol that has no answer when ``remaining_seconds``, the time before the run is cut off, come down to
    STORING_SECONDS: a source that hangs costs the others nothing. Each run starts with another symbol.
    Raises psycopg.Error where the database refuses; what was not committed comes again with the next run's overlap.
    """
    run = _Run(source, symbols, telemetry, remaining_seconds)
    telemetry.logger.append_keys(trace_id=str(run.trace_id))
    breakers = Breakers(lambda: connection, policy)
    before = breakers.read([source.name])[source.name]
    if before.is_closed:
        run.ingest(connection, symbols)
    elif before.probe_is_due and breakers.try_probe(source.name):
        # Another symbol at each probe: one that fails by its own fault must not keep the breaker open for good.
        probe = symbols[before.consecutive_failures % len(symbols)]
        others = [symbol for symbol in symbols if symbol != probe]
        run.ingest(connection, [probe], probing=True)
        if run.answered:
            run.ingest(connection, others)
        else:
            run.skip(others)
    else:
        run.skip(symbols)

    after = before
    if run.answered:
        breakers.succeeded(source.name)
        after = Breaker(source.name)
    elif run.outage is not None:
        after = run.fail(connection, breakers)
    run.report_markets()
    telemetry.count("BreakerOpen", 0 if after.is_closed else 1)
    if not after.is_closed:
        telemetry.logger.warning(
            "the source's breaker is open", source=source.name, state=after.state, error=after.last_error
        )
    run.result.failed_symbols.sort(key=symbols.index)
    telemetry.logger.info("ingested", source=source.name, **run.result.to_dict())
    return run.result


def _answers(
    fetches: Mapping[Future[_Answer], str], remaining_seconds: Callable[[], float]
) -> Iterator[_Answer | None]:
    """Answers as they come, None where none came for a while; once the time is up, an error for each still missing."""
    missing = dict(fetches)
    while missing and (seconds := remaining_seconds() - STORING_SECONDS) > 0:
        done, _ = wait(missing, timeout=min(seconds, _STORE_EVERY_SECONDS), return_when=FIRST_COMPLETED)
        for fetch in done:
            del missing[fetch]
            yield fetch.result()
        if not done:
            yield None
    # Back to front: what is taken from the queue's end cannot be started by a thread that gets free meanwhile.
    for fetch, symbol in reversed(missing.items()):
        if fetch.cancel():
            reason = "the run's time was up before its turn"
        elif fetch.done():
            yield fetch.result()
            continue
        else:
            reason = "no answer before the run's time was up"
        yield _Answer(symbol, datetime.now(UTC), SourceError(symbol, "unreachable", reason))


def _batches(answers: Iterator[_Answer | None]) -> Iterator[list[_Answer]]:
    """Answers in groups of a size that one transaction should hold, none kept back for long; often one group.

    So a run that is killed loses little.
    """
    batch: list[_Answer] = []
    size = 0
    handed_on = time.monotonic()
    for answer in answers:
        if answer is not None:
            batch.append(answer)
            size += len(answer.outcome.observations) if isinstance(answer.outcome, Fetched) else 1
        is_due = time.monotonic() - handed_on >= _STORE_EVERY_SECONDS
        if batch and (size >= _EVENTS_PER_TRANSACTION or is_due):
            yield batch
            batch, size, handed_on = [], 0, time.monotonic()
    if batch:
        yield batch


def _storable_raw(raw: Json) -> Json:
    """The answer as it is; as the text of its JSON where jsonb would refuse it (NaN, NUL, a lone surrogate)."""
    try:
        stored: Json = storable(raw, field="raw")
    except ContractViolation:
        return {"status": None, "content_type": "application/json", "body": json.dumps(raw)}
    return stored


def _payload(observation: Observation) -> Payload:
    versions = [version for event_type, version in PAYLOADS if event_type == observation.event_type]
    if not versions:
        raise ContractViolation("no such type in this contract", field="event_type", value=observation.event_type)
    return parse_payload(PAYLOADS[observation.event_type, max(versions)], observation.payload)


def _rejection(symbol: str, observation: Observation, violation: ContractViolation) -> SignalRejected:
    return SignalRejected(
        symbol=symbol,
        rejected_event_type=observation.event_type,
        field=readable(violation.field),
        value=readable(repr(violation.value)),
        reason=readable(violation.reason),
    )
