"""The drills. Each makes something fail, watches the messages, and reports for each claim whether it held."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from control_plane.ingestion.service import BREAKER_OPEN
from control_plane.model.backoff import DELAYS_SECONDS
from drills.stage import COOL_DOWN_SECONDS, LEASE_SECONDS, NotSeenError, process_behind
from local_cloud.errors import AcpError
from local_cloud.market import MarketChoice

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from control_plane.platform.breakers import Breaker
    from drills.stage import Look, Stage
    from queue_endpoint import QueueEndpoint

EVENTS = 20
_SLOW_SECONDS = 2.0
_TOO_SLOW_SECONDS = 10.0
"""Seconds: an answer that takes longer than the relay waits."""
_LONG_WAIT_SECONDS = 3.0
"""Waits longer than this, those of later retries, are cut short by the drill."""
_RUNS_AT_MOST = 10
_EVERY_SYMBOL = "*"
_NEWEST_BAR_SECONDS = 180
"""The greatest age of the newest bar: it lasts a minute, and only closed bars are stored."""


@dataclass(frozen=True, slots=True)
class Drill:
    """One drill: its name, the guarantee that it shows, and the function that plays it."""

    name: str
    guarantee: str
    play: Callable[[Stage], None]
    is_of_source: bool = False
    """Whether it makes the source fail instead of the queue."""


def _queue_outage(stage: Stage) -> None:
    with stage.endpoint() as endpoint:
        endpoint.set(stage.queue, answer="error")
        stage.say("the queue is down: it answers every send with 500")
        event_ids = stage.store(stage.make(EVENTS))
        stage.until(lambda look: look.breaker.state == "open", what="the breaker to open")
        opened, asked = time.monotonic(), len(endpoint.requests())
        stage.watch(2.2 * COOL_DOWN_SECONDS, what="the outage to last a while")
        lasted = time.monotonic() - opened
        probes = sum(request.queue == stage.queue for request in endpoint.requests()[asked:])
        endpoint.heal()
        stage.say("the queue is back")
        healed = time.monotonic()
        stage.until(lambda look: any(message.delivered_at for message in look.messages), what="a probe to find it back")
        recovered = time.monotonic() - healed
        look = _until_consumed(stage)
        _claim_nothing_is_lost(stage, endpoint, look, event_ids)
        _claim_no_attempts(stage, look, "the outage")
        stage.claim(
            "an open breaker lets one probe through per cool-down",
            held=0 < probes <= int(lasted / COOL_DOWN_SECONDS) + 1,
            seen=f"{probes} sends in {lasted:.1f} s",
        )
        stage.claim(
            "the queue is found back within a cool-down",
            held=recovered <= COOL_DOWN_SECONDS + 3 and look.breaker.is_closed,  # The next relay may just be starting.
            seen=f"after {recovered:.1f} s, and the breaker is {look.breaker.state}",
        )


def _slow_queue(stage: Stage) -> None:
    begun = time.time()
    with stage.endpoint() as endpoint:
        endpoint.set(stage.queue, latency_ms=_SLOW_SECONDS * 1000)
        stage.say(f"the queue is slow: every answer takes {_SLOW_SECONDS:.0f} s")
        slow = stage.store(stage.make(EVENTS))
        stage.until(lambda look: look.all("delivered"), what="all delivered, slowly")
        endpoint.set(stage.queue, latency_ms=_TOO_SLOW_SECONDS * 1000)
        stage.say(
            f"it gets worse: it takes the messages, and {_TOO_SLOW_SECONDS:.0f} s to answer; no relay waits so long"
        )
        too_slow = stage.store(stage.make(EVENTS // 2))
        stage.until(
            # If earlier sends occupy the relay's threads, these messages are given back unsent; the breaker has then
            # opened.
            lambda look: not look.breaker.is_closed or any(one.last_error for one in look.of(too_slow).messages),
            what="the relay to give up waiting",
        )
        endpoint.heal()
        stage.say("the queue is well again")
        look = _until_consumed(stage)
        event_ids = [*slow, *too_slow]
        _claim_nothing_is_lost(stage, endpoint, look, event_ids)
        _claim_no_attempts(stage, look, "slowness")
        _claim_duplicates(stage, endpoint, event_ids, in_flight=too_slow, since=begun)


def _failing_entries(stage: Stage) -> None:
    with stage.endpoint() as endpoint:
        batch = stage.make(EVENTS)
        failing, others = batch.ids[::3], [event_id for event_id in batch.ids if event_id not in batch.ids[::3]]
        endpoint.set(stage.queue, fail_events=failing, fail_code="InternalError")
        stage.say(f"the queue takes each batch but for {len(failing)} entries, which fail by its own fault")
        stage.store(batch)
        stage.until(
            lambda look: all(len(message.failed_at) >= 2 for message in look.of(failing).messages),
            what="the entries to fail twice",
        )
        endpoint.heal()
        stage.say("the queue takes every entry again")
        look = _until_consumed(stage)
        _claim_nothing_is_lost(stage, endpoint, look, batch.ids)
        at_once, late = look.of(others).messages, look.of(failing).messages
        stage.claim(
            "an entry that fails costs its neighbours nothing",
            held=all(message.attempts == 1 and not message.failed_at for message in at_once),
            seen=f"{len(at_once)} delivered at the first attempt",
        )
        stage.claim(
            "each failed attempt is spent and recorded",
            held=all(message.attempts == len(message.failed_at) + 1 for message in late),
            seen=f"{sum(len(message.failed_at) for message in late)} recorded of {len(late)} messages, then delivered",
        )
        waits = [
            (message.failed_at[1] - message.failed_at[0]).total_seconds()
            for message in late
            if len(message.failed_at) > 1
        ]
        stage.claim(
            f"a retry waits {DELAYS_SECONDS[0]} s or a little longer",
            held=bool(waits) and min(waits) >= DELAYS_SECONDS[0],
            seen=f"{min(waits, default=0):.1f} to {max(waits, default=0):.1f} s between the first two attempts",
        )
        twice = _accepted_twice(stage, endpoint, batch.ids)
        stage.claim("what the queue took is not sent again", held=not twice, seen=f"{len(twice)} came twice")


def _poison(stage: Stage) -> None:
    with stage.endpoint() as endpoint:
        most = int(stage.environ["MAX_DELIVERY_ATTEMPTS"])
        refused, unlucky = stage.make(EVENTS // 2), stage.make(EVENTS // 2)
        endpoint.set(stage.queue, fail_events=refused.ids[:1], fail_code="InvalidMessageContents", sender_fault=True)
        stage.say("one message is poison: the queue refuses it for what it holds")
        stage.store(refused)
        stage.until(
            lambda look: look.of(refused.ids[:1]).all("dead_lettered"), what="the poison to be dead-lettered at once"
        )
        endpoint.set(stage.queue, fail_events=[*refused.ids[:1], *unlucky.ids[:1]], fail_code="PoisonousMessage")
        stage.say("another kind: a message on which the queue stumbles each time, for no reason that the relay knows")
        stage.store(unlucky)
        look = _until_given_up(stage, unlucky.ids[0])
        poison = look.of([refused.ids[0], unlucky.ids[0]]).messages
        neighbours = look.of([*refused.ids[1:], *unlucky.ids[1:]]).messages
        for message, attempts in zip(poison, (1, most), strict=True):
            stage.claim(
                f"poison is dead-lettered with its reason, attempts: {attempts}",
                held=(message.state, message.attempts, len(message.failed_at)) == ("dead_lettered", attempts, attempts),
                seen=f"{message.attempts} spent, {len(message.failed_at)} recorded: {message.last_error}",
            )
        second_try = poison[1].failed_at[1]
        in_time = [message for message in neighbours if message.delivered_at and message.delivered_at < second_try]
        stage.claim(
            "its neighbours are not delayed",
            held=len(in_time) == len(neighbours) and all(message.attempts == 1 for message in neighbours),
            seen=f"{len(in_time)} of {len(neighbours)} delivered at attempt 1, before the poison's second",
        )
        endpoint.heal()
        redriven = stage.redrive()
        stage.say(f"the cause is mended; {redriven} dead letters are redriven")
        look = _until_consumed(stage)
        _claim_nothing_is_lost(stage, endpoint, look, [*refused.ids, *unlucky.ids])


def _until_given_up(stage: Stage, event_id: UUID) -> Look:
    """Waits until the message is dead-lettered; cuts its longer waits short, which would add up to a minute."""

    def is_given_up(look: Look) -> bool:
        (message,) = look.of([event_id]).messages
        if message.state == "retrying" and message.due_in_seconds > _LONG_WAIT_SECONDS:
            stage.say(
                f"the drill makes attempt {message.attempts + 1} due now, in place of {message.due_in_seconds:.1f} s"
            )
            stage.make_due([message.id])
        return message.state == "dead_lettered"

    return stage.until(is_given_up, what="the poison to be dead-lettered when its attempts are spent")


def _relay_killed(stage: Stage) -> None:
    begun = time.time()
    with stage.endpoint() as endpoint:
        endpoint.set(stage.queue, hold=True)
        stage.say("the queue takes the messages and keeps its answers back")
        event_ids = stage.store(stage.make(EVENTS))
        stage.until(
            lambda look: look.all("in_flight") and all(stage.accepted(endpoint, event_ids).values()),
            what="all to be in the queue and the relay not to know",
        )
        for process in {process_behind(port, endpoint.port) for port in endpoint.held_ports()}:
            process.kill()
            stage.say(f"kill -9 {process.pid}: the relay is dead, and its claims are nobody's")
        endpoint.heal()
        killed = time.monotonic()
        stage.until(lambda look: any(message.failed_at for message in look.messages), what="the lease to end")
        returned = time.monotonic() - killed
        look = _until_consumed(stage)
        _claim_nothing_is_lost(stage, endpoint, look, event_ids)
        stage.claim(
            "the lease returns the rows, and not before it ends",
            held=all(
                message.delivered_at is not None
                and (message.delivered_at - message.created_at).total_seconds() >= LEASE_SECONDS
                for message in look.messages
            ),
            seen=f"claimed again {returned:.1f} s after the kill, under a lease of {LEASE_SECONDS} s",
        )
        stage.claim(
            "the attempt that died with the relay is recorded and given back",
            held=all((message.attempts, len(message.failed_at)) == (1, 1) for message in look.messages),
            seen=f"{sum(len(message.failed_at) for message in look.messages)} recorded, one of each message",
        )
        _claim_duplicates(stage, endpoint, event_ids, in_flight=event_ids, since=begun)


def _source_down(stage: Stage) -> None:
    if stage.run.market_source != MarketChoice.REPLAY:
        msg = "source-down makes the market replay fail; this local cloud reads Yahoo, which nobody can switch off."
        raise AcpError(
            msg,
            remedy="Try it on the replay: scripts/acp up --market replay, or beside this cloud with "
            "ACP_STATE=/tmp/drill scripts/acp up --market replay",
        )
    baseline = stage.invoke("ingestion", {})
    well = [symbol for symbol in baseline["symbols"] if symbol not in baseline["failed_symbols"]]
    if not well:
        msg = "The source is down already: no symbol could be fetched before the drill began."
        raise AcpError(msg, remedy="See scripts/acp status and scripts/acp logs ingestion")
    symbol, before = well[0], stage.newest_bar(well[0])
    stage.set_market_fault(_EVERY_SYMBOL, {"status": 503})
    stage.say(f"the source is down: {stage.breaker} answers 503 to everything")
    runs, opened = _ingest_until_open(stage, symbol)
    skipped = stage.invoke("ingestion", {"symbols": [symbol]})
    stage.say(
        f"a run while it is open: {skipped['fetched']} bars fetched, {', '.join(skipped['failed_symbols'])} left out"
    )
    stage.end_market_fault(_EVERY_SYMBOL)
    stage.say("the source is back")
    healed = time.monotonic()
    failures = _until_delivered(stage, what="the failures to be delivered as events")
    stage.until(
        lambda look: look.breaker.probe_is_due or look.breaker.is_closed, what="the cool-down to end", seconds=120
    )
    recovered = _ingest_until_closed(stage, symbol)
    seconds = time.monotonic() - healed
    look = _until_delivered(stage, what="the bars of the outage to be delivered")

    of_symbol = [message for message in failures.messages if message.entity_id == symbol]
    stage.claim(
        "each failed fetch is an event, delivered on system.events",
        held=len(of_symbol) == runs and all(message.topic == "system.events" for message in of_symbol),
        seen=f"{len(of_symbol)} SOURCE_FETCH_FAILED of {runs} runs",
    )
    threshold = int(stage.environ["BREAKER_FAILURE_THRESHOLD"])
    said = stage.openings(opened)
    stage.claim(
        f"the source's breaker opens after {threshold} failed runs in a row, which is an event, once",
        held=opened.consecutive_failures >= threshold >= runs and said == 1,
        seen=f"open after {opened.consecutive_failures} failures, {said} event of kind {BREAKER_OPEN}",
    )
    stage.claim(
        "while it is open nothing is fetched and nothing more is written",
        held=skipped["fetched"] == 0 and stage.stored_by(UUID(skipped["trace_id"])) == 0,
        seen=f"{skipped['fetched']} bars, {stage.stored_by(UUID(skipped['trace_id']))} events",
    )
    stage.claim(
        "a probe after the cool-down finds the source back",
        held=look.breaker.is_closed and recovered["fetched"] > 0,
        seen=f"{seconds:.0f} s after it was back the breaker is {look.breaker.state}",
    )
    after = stage.newest_bar(symbol)
    minutes, bars = int((after - before).total_seconds()) // 60 + 1, stage.bars(symbol, before, after)
    stage.claim(
        "no bar of the outage is missing",
        held=bars == minutes and stage.age(after) < _NEWEST_BAR_SECONDS,
        seen=f"{bars} of {minutes} since before it, the newest {stage.age(after):.0f} s old",
    )


def _ingest_until_open(stage: Stage, symbol: str) -> tuple[int, Breaker]:
    """Invokes ingestion until the source's breaker opens; returns the number of runs and the breaker."""
    for run in range(1, _RUNS_AT_MOST + 1):
        result = stage.invoke("ingestion", {"symbols": [symbol]})
        stage.follow(UUID(result["trace_id"]))
        stage.say(f"ingestion run {run}: {', '.join(result['failed_symbols']) or 'nothing'} failed")
        breaker = stage.watch(0, what="the breaker to open").breaker
        if not breaker.is_closed:
            return run, breaker
    msg = f"Not seen within {_RUNS_AT_MOST} failed runs: the source's breaker open."
    raise NotSeenError(msg, remedy="See scripts/acp logs ingestion")


def _ingest_until_closed(stage: Stage, symbol: str) -> Mapping[str, Any]:
    """Invokes ingestion until a run fetches again; returns its result. A scheduled run may have made the probe."""
    for _ in range(_RUNS_AT_MOST):
        result: Mapping[str, Any] = stage.invoke("ingestion", {"symbols": [symbol]})
        if not result["failed_symbols"]:
            stage.follow(UUID(result["trace_id"]))
            stage.say(f"the next run probes: {result['fetched']} bars fetched, {result['ingested']} of them new")
            return result
        stage.watch(1, what="the probe to come back")
    msg = f"Not seen within {_RUNS_AT_MOST} runs: the source fetched from again."
    raise NotSeenError(msg, remedy="See scripts/acp logs ingestion")


def _until_delivered(stage: Stage, *, what: str) -> Look:
    """Invokes a relay and waits until all is delivered; the schedule's next relay may be a minute away."""
    stage.invoke("relay", {"linger_seconds": 0})
    return stage.until(lambda look: look.all("delivered"), what=what)


def _until_consumed(stage: Stage) -> Look:
    return stage.until(
        # A message may be consumed before the relay has recorded that it is delivered, and again after.
        lambda look: look.all("delivered") and all(message.is_consumed for message in look.messages),
        what="all delivered and consumed",
        seconds=60,
    )


def _accepted_twice(stage: Stage, endpoint: QueueEndpoint, event_ids: Sequence[UUID]) -> list[UUID]:
    return [event_id for event_id, ids in stage.accepted(endpoint, event_ids).items() if len(ids) > 1]


def _claim_nothing_is_lost(stage: Stage, endpoint: QueueEndpoint, look: Look, event_ids: Sequence[UUID]) -> None:
    """Claims that no event is lost, as the outbox, the queue and the consumer record it independently."""
    accepted = stage.accepted(endpoint, event_ids)
    kept = [
        message
        for message in look.of(event_ids).messages
        if message.state == "delivered" and message.message_id in accepted[message.event_id]
    ]
    effects = stage.effects(event_ids)
    stage.claim(
        "nothing is lost, and each event takes effect once",
        held=len(kept) == effects == len(event_ids),
        seen=f"{len(kept)} of {len(event_ids)} delivered, {effects} effects in SignalLab",
    )


def _claim_no_attempts(stage: Stage, look: Look, what: str) -> None:
    stage.claim(
        f"{what} costs no message an attempt",
        held=look.attempts_spent == 0,
        seen=f"{look.attempts_spent} attempts spent",
    )


def _claim_duplicates(
    stage: Stage, endpoint: QueueEndpoint, event_ids: Sequence[UUID], *, in_flight: Sequence[UUID], since: float
) -> None:
    twice = _accepted_twice(stage, endpoint, event_ids)
    stage.claim(
        "only what was in flight without an answer comes twice",
        held=bool(twice) and set(twice) <= set(in_flight),
        seen=f"{len(twice)} of {len(in_flight)} in flight, {len(set(twice) - set(in_flight))} of all others",
    )
    absorbed = stage.absorbed(twice, since=since)
    stage.claim(
        "the second delivery changes nothing",
        held=len(absorbed) == len(twice),
        seen=f"SignalLab's log calls {len(absorbed)} of {len(twice)} a duplicate",
    )


DRILLS: Final[Sequence[Drill]] = (
    Drill("queue-outage", "an outage of the queue costs no message an attempt", _queue_outage),
    Drill("slow-queue", "a slow queue loses nothing; what comes twice changes nothing", _slow_queue),
    Drill(
        "failing-entries",
        "failed entries are retried alone, all others delivered at once",
        _failing_entries,
    ),
    Drill("poison", "a poisonous message is dead-lettered and delays no neighbour", _poison),
    Drill(
        "source-down",
        "a source that is down is an event, left alone and found back",
        _source_down,
        is_of_source=True,
    ),
    Drill("relay-killed", "a killed relay loses nothing: its lease returns the rows", _relay_killed),
)
