"""One ingestion run: it fetches every symbol separately, judges the answers, and stores events with their messages."""

import json
import math
import re
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import uuid4

from psycopg import Connection

from control_plane.ingestion.judgement import OVERLAP, Judgement, Question, judge, judge_failure
from control_plane.ingestion.source import Fetched, Json, Source, TradingSession
from control_plane.ingestion.store import (
    LARGEST_RAW_PAYLOAD,
    MAX_ENTITIES,
    Look,
    LookOutcome,
    RawPayload,
    Stored,
    count_fetches,
    database_time,
    newest_occurrences,
    store_events,
)
from control_plane.model.contract import EventTypes, SourceFetchFailed
from control_plane.model.errors import ContractViolation, SourceError
from control_plane.model.ids import storable
from control_plane.platform.breakers import Breaker, BreakerPolicy, Breakers
from control_plane.platform.conflicts import retry_conflicts
from control_plane.platform.telemetry import Telemetry

MAX_PARALLEL_FETCHES: Final = 8
OUTAGE_KINDS: Final = frozenset({"rate_limited", "unreachable", "malformed"})
"""The kinds of SourceError that count as the source's failure if every symbol of a run meets one of them."""
BREAKER_OPEN: Final = "breaker_open"
"""The ``kind`` of the one event that says the source's breaker has opened; its symbol is ``*``."""
STORING_SECONDS: Final = 15.0
"""The seconds at the end of a run that are kept for storing; answers that arrive later are not used."""
_LOOKS_PER_TRANSACTION: Final = 5_000
"""The most looks that one transaction stores. A symbol is always stored whole, so a symbol with more looks exceeds
it."""
_STORE_EVERY_SECONDS: Final = 5.0
_BYTES_PER_TRANSACTION: Final = 4 << 20
"""The most bytes of answers that are collected for one transaction; a single larger answer gets a transaction of its
own."""
_EXPONENT: Final = re.compile(r"\de[+-]?\d")
_DIGITS_OF_A_DOUBLE: Final = 330


@dataclass(slots=True)
class IngestionResult:
    """The result of a run. ``fetched`` counts observations: ingested + duplicates + stale + rejected."""

    trace_id: str
    symbols: list[str]
    fetched: int = 0
    ingested: int = 0
    duplicates: int = 0
    stale: int = 0
    rejected: int = 0
    failed_symbols: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Returns the result as IngestionFunction answers it."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class _Answer:
    """One symbol's answer, or the error in its place."""

    question: Question
    fetched_at: datetime
    outcome: Fetched | SourceError


@dataclass(frozen=True, slots=True)
class _Judged:
    """An answer with its judgement. An answer that could not be judged holds a SourceError instead."""

    answer: _Answer
    judgement: Judgement
    raw_payload: RawPayload | None


class _Clock:
    """The run's clock: the database's time at the run's start, plus the seconds since then by the monotonic clock.

    All runs share the database's clock, so their looks have one order even if the clocks of their machines differ.
    """

    def __init__(self, connection: Connection[Any]) -> None:
        self._start = database_time(connection)
        self._started = time.monotonic()

    def now(self) -> datetime:
        """Returns the present; never earlier than what it returned before."""
        return self._start + timedelta(seconds=time.monotonic() - self._started)


class _Run:
    """The state of one run: its trace, its source, its clock, and the counts so far."""

    def __init__(
        self,
        source: Source,
        symbols: Sequence[str],
        telemetry: Telemetry,
        *,
        event_types: EventTypes,
        clock: _Clock,
        remaining_seconds: Callable[[], float],
    ) -> None:
        self._remaining_seconds = remaining_seconds
        self._event_types = event_types
        self._clock = clock
        self.trace_id = uuid4()
        self.source = source
        self.telemetry = telemetry
        self.result = IngestionResult(str(self.trace_id), list(symbols))
        self.answered = False
        """Whether the source has answered for any symbol; "unknown symbol" is an answer, too."""
        self.outage: SourceError | None = None
        self._newest: dict[str, datetime] = {}
        self._silences: dict[TradingSession, list[float]] = {}
        """For each market that is open, how long each of its symbols has had no new bar, in seconds."""

    def ingest(self, connection: Connection[Any], symbols: Sequence[str], *, probing: bool = False) -> None:
        """Fetches symbols in parallel and stores the answers; a probe that failed is counted and not stored."""
        if not symbols:
            return
        self._newest |= newest_occurrences(
            connection,
            source=self.source.name,
            event_type=self.source.event_type,
            series=self.source.series,
            entity_ids=symbols,
        )
        # If the time is too short for all symbols, the order must change, so that it is not always the same ones that
        # are left out. The trace_id is random, so this order never falls into step with a schedule.
        first = self.trace_id.int % len(symbols)
        pool = ThreadPoolExecutor(max_workers=min(len(symbols), MAX_PARALLEL_FETCHES), thread_name_prefix="fetch")
        try:
            for batch in _batches(self._answers(pool, (*symbols[first:], *symbols[:first]))):
                self._store(connection, batch, probing=probing)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # The run does not wait for fetches that still hang.

    def skip(self, symbols: Sequence[str]) -> None:
        """Skips symbols in this run. A later run fetches their bars, too, because its window overlaps this one's."""
        self.result.failed_symbols += symbols

    def fail(self, connection: Connection[Any], breakers: Breakers) -> Breaker:
        """Counts the run as a failure of its source. If that opens the breaker, one event records the opening."""
        looks = []
        with connection.transaction():
            breaker = breakers.failed(self.source.name, str(self.outage))
            if breaker.opened_at is not None and breaker.held_by is None:
                # Every failing run makes the same look, with the instant when the breaker opened, so only one event is
                # stored.
                looks.append(
                    Look(
                        SourceFetchFailed(
                            symbol="*",
                            kind=BREAKER_OPEN,
                            reason="the source answers for no symbol: nothing is fetched until a probe is answered",
                        ),
                        source=self.source.name,
                        entity_id=None,
                        entity_type=None,
                        occurred_at=breaker.opened_at,
                        observed_at=self._clock.now(),
                        trace_id=self.trace_id,
                    )
                )
            stored = store_events(connection, [], looks)
        self._report_stored(looks, stored)
        return breaker

    def report_markets(self) -> None:
        """Counts the symbols whose markets are open, and measures how long the most silent of these markets has had no
        bar.

        A market counts as silent only if none of its symbols has a new bar, since a single symbol may just not be
        traded.
        """
        if self.answered:
            self.telemetry.count("OpenSymbols", sum(len(silences) for silences in self._silences.values()))
        if self._silences:
            self.telemetry.count("MarketSilence", max(min(silences) for silences in self._silences.values()))

    def _question(self, symbol: str) -> Question:
        newest = self._newest.get(symbol)
        return Question(symbol, None if newest is None else newest - OVERLAP, self._clock.now(), self.trace_id)

    def _fetch(self, symbol: str) -> _Answer:
        question = self._question(symbol)
        outcome: Fetched | SourceError
        try:
            outcome = self.source.fetch(symbol, question.since, question.asked_at)
        except SourceError as error:
            outcome = error
        except Exception as error:
            # A symbol whose answer breaks the source's client must not stop the other symbols.
            self.telemetry.logger.exception("the source's client failed", source=self.source.name, symbol=symbol)
            outcome = SourceError(symbol, "malformed", f"{type(error).__name__}: {error}")
        return _Answer(question, self._clock.now(), outcome)

    def _answers(self, pool: ThreadPoolExecutor, symbols: Sequence[str]) -> Iterator[_Answer | None]:
        """Yields answers as they arrive, and None when none arrived for a while; at the end, an error for each missing
        answer.

        At most as many answers wait to be yielded as are fetched at a time, because each can be large.
        """
        waiting = deque(symbols)
        missing: dict[Future[_Answer], str] = {}
        while (missing or waiting) and (seconds := self._remaining_seconds() - STORING_SECONDS) > 0:
            while waiting and len(missing) < MAX_PARALLEL_FETCHES:
                symbol = waiting.popleft()
                missing[pool.submit(self._fetch, symbol)] = symbol
            done, _ = wait(missing, timeout=min(seconds, _STORE_EVERY_SECONDS), return_when=FIRST_COMPLETED)
            for fetch in done:
                del missing[fetch]
                yield fetch.result()
            if not done:
                yield None
        for fetch, symbol in missing.items():
            yield fetch.result() if fetch.done() else self._too_late(symbol, "no answer before the run's time was up")
        for symbol in waiting:
            yield self._too_late(symbol, "the run's time was up before its turn")

    def _too_late(self, symbol: str, reason: str) -> _Answer:
        return _Answer(self._question(symbol), self._clock.now(), SourceError(symbol, "unreachable", reason))

    def _store(self, connection: Connection[Any], answers: Sequence[_Answer], *, probing: bool) -> None:
        """Judges and stores a batch in one transaction; counts and reports it once it is committed."""
        judged = [self._judge(answer) for answer in answers]
        for one in judged:
            if isinstance(one.answer.outcome, SourceError) and one.answer.outcome.kind in OUTAGE_KINDS:
                self.outage = one.answer.outcome
            else:
                self.answered = True
        # A failed probe is not stored: the event of the breaker's opening already says so, and every cool-down ends
        # with a probe.
        kept = judged if self.answered or not probing else []
        observations = [look for one in kept for look in one.judgement.observations]
        others = [look for one in kept for look in (*one.judgement.rejections, *one.judgement.notices)]
        raw_payloads = [one.raw_payload for one in kept if one.raw_payload is not None]

        fetched = sum(isinstance(one.answer.outcome, Fetched) for one in judged)

        def store() -> Stored:
            with connection.transaction():
                stored = store_events(connection, raw_payloads, [*observations, *others])
                count_fetches(connection, self.source.name, fetched=fetched, failed=len(judged) - fetched)
                return stored

        stored = retry_conflicts(store)
        for one in judged:
            if isinstance(one.answer.outcome, Fetched):
                self._measure_silence(one.answer, one.answer.outcome)
            else:
                self.result.failed_symbols.append(one.answer.question.symbol)
                self.telemetry.count("SourceFailures", 1)
        self._count_observations(
            Counter(look.outcome for look in stored.looks[: len(observations)]),
            repeated=sum(one.judgement.repeated for one in kept),
            rejected=sum(len(one.judgement.rejections) for one in kept),
        )
        self._report_stored([*observations, *others], stored, quiet=len(observations))

    def _judge(self, answer: _Answer) -> _Judged:
        """Judges an answer; an answer that cannot be judged counts as a failure of its symbol."""
        question, outcome = answer.question, answer.outcome
        stored = to_stored_raw(outcome.raw)
        if jsonb_bytes(stored) > LARGEST_RAW_PAYLOAD:
            reason = f"the answer is larger than the {LARGEST_RAW_PAYLOAD} bytes that are kept of an answer"
            stored, outcome = None, SourceError(question.symbol, "malformed", reason)
        raw_payload = None if stored is None else self._raw_payload(answer, stored)
        raw_payload_id = None if raw_payload is None else raw_payload.id
        if isinstance(outcome, Fetched):
            try:
                judgement = judge(
                    outcome,
                    question,
                    source=self.source,
                    event_types=self._event_types,
                    raw_payload_id=raw_payload_id,
                )
            except Exception as error:
                # An error because of one answer's metadata or instants must not stop the other symbols.
                self.telemetry.logger.exception(
                    "an answer cannot be judged", source=self.source.name, symbol=question.symbol
                )
                reason = f"{type(error).__name__}: {error}"
                outcome = SourceError(question.symbol, "malformed", reason, raw=outcome.raw)
            else:
                return _Judged(answer, judgement, raw_payload)
        failure = judge_failure(outcome, question, source=self.source, raw_payload_id=raw_payload_id)
        return _Judged(_Answer(question, answer.fetched_at, outcome), failure, raw_payload)

    def _raw_payload(self, answer: _Answer, payload: Json) -> RawPayload:
        question = answer.question
        return RawPayload(
            id=uuid4(),
            source=self.source.name,
            entity_id=question.symbol,
            observed_at=question.asked_at,
            window_since=question.since,
            fetched_at=answer.fetched_at,
            trace_id=self.trace_id,
            payload=payload,
        )

    def _measure_silence(self, answer: _Answer, fetched: Fetched) -> None:
        if fetched.session is None:
            return
        bars = [one.occurred_at for one in fetched.observations if one.event_type == self.source.event_type][-1:]
        stored = self._newest.get(answer.question.symbol)
        last_sign_of_life = max([fetched.session.start, *bars, *([stored] if stored else [])])
        silence = answer.fetched_at - last_sign_of_life
        self._silences.setdefault(fetched.session, []).append(silence.total_seconds())

    def _count_observations(self, outcomes: Mapping[LookOutcome, int], *, repeated: int, rejected: int) -> None:
        result = self.result
        ingested, stale = outcomes.get(LookOutcome.NEW, 0), outcomes.get(LookOutcome.STALE, 0)
        duplicates = outcomes.get(LookOutcome.DUPLICATE, 0) + repeated
        result.fetched += ingested + duplicates + stale + rejected
        result.ingested += ingested
        result.duplicates += duplicates
        result.stale += stale
        result.rejected += rejected
        self.telemetry.count("DuplicateEvents", duplicates)
        self.telemetry.count("StaleLooks", stale)

    def _report_stored(self, looks: Sequence[Look], stored: Stored, *, quiet: int = 0) -> None:
        """Counts and logs the stored events, and names topics that have no subscription.

        The events of the first ``quiet`` looks, the run's ordinary observations, are not logged one by one.
        """
        self.telemetry.count("EventsIngested", len(stored.events))
        for look, one in list(zip(looks, stored.looks, strict=True))[quiet:]:
            if one.event is not None:
                self.telemetry.logger.warning(
                    one.event.event_type,
                    event_id=str(one.event.event_id),
                    source=one.event.source,
                    topic=look.payload.topic,
                    error=one.event.payload,
                )
        for topic, messages in stored.unsubscribed.items():
            self.telemetry.count("UnsubscribedMessages", messages)
            self.telemetry.logger.warning(
                "no subscription: nobody gets these messages", topic=topic, source=self.source.name, messages=messages
            )


def ingest(
    connection: Connection[Any],
    source: Source,
    symbols: Sequence[str],
    telemetry: Telemetry,
    policy: BreakerPolicy,
    *,
    event_types: EventTypes,
    remaining_seconds: Callable[[], float] = lambda: math.inf,
) -> IngestionResult:
    """Fetches all symbols in parallel, each from its overlap on, and stores each symbol's answer whole or not at all.

    A symbol that fails becomes an event, and so does a bar that breaks the contract and a gap that cannot be filled. A
    run in which every symbol fails with one of OUTAGE_KINDS counts as one failure of the source's breaker. While the
    breaker is open nothing is fetched. When a probe is due, one symbol is fetched first, and the others only if the
    source answered.

    ``remaining_seconds`` returns the time before the run is cut off. A symbol without an answer when only
    STORING_SECONDS are left fails, too, so a request that hangs does not delay the others. Each run starts with another
    symbol. Raises psycopg.Error if the database refuses; the next run's overlap fetches again what was not committed.
    """
    run = _Run(
        source,
        symbols,
        telemetry,
        event_types=event_types,
        clock=_Clock(connection),
        remaining_seconds=remaining_seconds,
    )
    telemetry.logger.append_keys(trace_id=str(run.trace_id))
    breakers = Breakers(lambda: connection, policy)
    before = breakers.read([source.name])[source.name]
    if before.is_closed:
        run.ingest(connection, symbols)
    elif before.probe_is_due and breakers.try_probe(source.name):
        # Each probe takes another symbol: one symbol that always fails by its own fault must not keep the breaker open
        # for ever.
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


def _batches(answers: Iterator[_Answer | None]) -> Iterator[list[_Answer]]:
    """Yields answers in groups that one transaction can store; a group is often a single answer.

    No answer waits long for its group, so that a run that is killed loses little.
    """
    batch: list[_Answer] = []
    looks = size = 0
    handed_on = time.monotonic()
    for answer in answers:
        more_looks, more_bytes = (0, 0) if answer is None else (_count_looks(answer), jsonb_bytes(answer.outcome.raw))
        is_full = looks + more_looks > _LOOKS_PER_TRANSACTION or size + more_bytes > _BYTES_PER_TRANSACTION
        is_due = time.monotonic() - handed_on >= _STORE_EVERY_SECONDS
        if batch and (is_full or len(batch) == MAX_ENTITIES or is_due):
            yield batch
            batch, looks, size, handed_on = [], 0, 0, time.monotonic()
        if answer is not None:
            batch.append(answer)
            looks += more_looks
            size += more_bytes
    if batch:
        yield batch


def _count_looks(answer: _Answer) -> int:
    return 1 + len(answer.outcome.observations) if isinstance(answer.outcome, Fetched) else 1


def jsonb_bytes(stored: Json) -> int:
    """Returns an upper bound for the bytes of this JSON as jsonb text.

    Postgres writes 1e300 with all its digits there.
    """
    text = json.dumps(stored, ensure_ascii=False)
    return len(text.encode("utf-8", "surrogatepass")) + _DIGITS_OF_A_DOUBLE * len(_EXPONENT.findall(text))


def to_stored_raw(raw: Json) -> Json:
    """Returns an answer as it is stored: where jsonb would refuse the value, its JSON text as a string."""
    try:
        stored: Json = storable(raw, field="raw")
    except ContractViolation:
        return {"status": None, "content_type": "application/json", "body": json.dumps(raw)}
    return stored
