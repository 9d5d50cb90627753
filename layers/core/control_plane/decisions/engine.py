"""The decision engine: carries a decision on, step by step, until it has to wait for somebody.

Messages are hints. Whoever gets one claims the decision's lease, reads its record, and does what follows from that; so
one that comes twice, late or in another order changes nothing. Each step is one transaction with its messages.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Final
from uuid import UUID

import psycopg
from psycopg import Connection
from psycopg.types.json import Jsonb

from control_plane.decisions import announcements, moves
from control_plane.decisions.calls import end_lost_calls, intend
from control_plane.decisions.emit import emit
from control_plane.decisions.moves import (
    BEFORE_RELEASE,
    Append,
    Circumstances,
    Collect,
    Intend,
    Model,
    Move,
    Observe,
    Wait,
)
from control_plane.decisions.next_move import awaited_verdict, find_version, move_without_playbook, next_move
from control_plane.decisions.opening import Opened, find_playbook, find_shadows, join_decided, open_or_join
from control_plane.decisions.overlooked import dismiss, read_anomaly
from control_plane.decisions.record import Loaded, load
from control_plane.decisions.steps import EnginePolicy, Hold, append, begin, has_record_grown, is_fence_lost
from control_plane.model.contract import Event
from control_plane.model.deciding import Deciding, Patient, Playbook
from control_plane.model.errors import PlaybookFault
from control_plane.model.text import LONGEST, visible
from control_plane.platform.conflicts import retry_conflicts
from control_plane.platform.queries import load_queries
from control_plane.platform.telemetry import Telemetry

QUERIES: Final = load_queries(__package__)
ANOMALY: Final = "ANOMALY_DETECTED"
LOOK_SECONDS: Final = 0.1
"""Between two looks whether evidence is complete."""
MOST_KNOWN: Final = 16
"""Records of open decisions that an engine keeps; one takes about half a megabyte."""
OVERLOOKED: Final = "ANOMALY_OVERLOOKED"


class Engine:
    """Decides with the plug-ins of the given domains. ``name`` says in leases who holds a decision."""

    def __init__(
        self, deciding: Mapping[str, Deciding], *, policy: EnginePolicy, telemetry: Telemetry, name: str
    ) -> None:
        self._deciding = deciding
        self._policy = policy
        self._telemetry = telemetry
        self._name = name
        self._known: dict[UUID, Loaded] = {}
        """The records that were read last, oldest first."""

    def consume(self, connection: Connection[Any], event: Event) -> bool:
        """Acts on an event of the topic decisions.work; returns whether that added to a record.

        Raises psycopg.Error, PlaybookFault, and what a playbook raises: the message then comes again.
        """
        if event.event_type == ANOMALY:
            return self._take_up(connection, event)
        if event.event_type == OVERLOOKED:
            anomaly = read_anomaly(connection, event)
            return anomaly is not None and self._take_up(connection, anomaly)
        decision_id = event.payload.get("decision_id")
        return decision_id is not None and self.advance(connection, UUID(decision_id))

    def advance(self, connection: Connection[Any], decision_id: UUID) -> bool:
        """Carries a decision on until it has to wait; returns whether that added to its record.

        Does nothing where another holds it: that one has been told to look again before it leaves.
        """
        claim = retry_conflicts(
            lambda: connection.execute(
                QUERIES["claim_decision_alone"].sql,
                {"decision_id": decision_id, "claimant": self._name, "lease_seconds": self._policy.lease_seconds},
            ).fetchone()
        )
        return claim is not None and self._advance_claimed(connection, Hold(decision_id, claim[0], self._policy))

    def _advance_claimed(self, connection: Connection[Any], hold: Hold) -> bool:
        known = self._known.pop(hold.decision_id, None)
        try:
            has_moved, loaded = self._advance_held(connection, hold, known)
        except psycopg.Error as error:
            if is_fence_lost(error):
                self._telemetry.logger.info("fence lost", decision_id=str(hold.decision_id))
                return True
            self._give_back(connection, hold)
            raise
        except Exception:
            self._give_back(connection, hold)
            raise
        self._keep(loaded)
        return has_moved

    def _keep(self, loaded: Loaded) -> None:
        """Keeps a record for the next message about its decision: of what is stored, only what is new is read then."""
        if not loaded.is_closed:
            self._known[loaded.record.decision.decision_id] = replace(loaded, is_on_disk=True)
        while len(self._known) > MOST_KNOWN:
            del self._known[next(iter(self._known))]

    def _take_up(self, connection: Connection[Any], event: Event) -> bool:
        taken = retry_conflicts(lambda: join_decided(connection, event)) or self._open(connection, event)
        # One in shadow comes last, and its failure is its own: timers look at it again.
        in_order = sorted(taken, key=lambda opened: opened.is_shadow)
        has_added = False
        for number, opened in enumerate(in_order):
            work = partial(self._follow, connection, opened)
            is_beside = opened.is_shadow and number > 0
            has_added |= self._in_shadow(event, work, otherwise=opened.is_new) if is_beside else work()
        return has_added

    def _open(self, connection: Connection[Any], event: Event) -> Sequence[Opened]:
        """Opens the decision of an anomaly, and those of versions in shadow beside it, in one transaction."""
        found = find_playbook(self._deciding, event.payload)
        none: Sequence[tuple[str, Playbook]] = ()
        shadows = self._in_shadow(event, lambda: find_shadows(self._deciding, event.payload), otherwise=none)
        if found is None and not shadows:
            self._telemetry.logger.info("no playbook handles this", event_id=str(event.event_id))
            dismiss(connection, event)
            return ()
        row = connection.execute(QUERIES["now"].sql).fetchone()
        assert row is not None
        now: datetime = row[0]

        def open_all() -> Sequence[Opened | None]:
            # Together: once one of them is there, no message opens the others.
            with connection.transaction():
                opened = [] if found is None else [self._open_one(connection, event, *found, now)]
                for domain, playbook in shadows:
                    work = partial(self._open_one, connection, event, domain, playbook, now, is_beside=True)
                    opened.append(self._in_shadow(event, partial(_within, connection, work), otherwise=None))
                return opened

        if found is None or shadows:
            taken = retry_conflicts(open_all)
        else:
            taken = [retry_conflicts(lambda: self._open_one(connection, event, *found, now))]
        opened = [one for one in taken if one is not None]
        if not opened:
            self._telemetry.logger.info("withdrawn before it was decided on", event_id=str(event.event_id))
            dismiss(connection, event)
        return opened

    def _open_one(
        self,
        connection: Connection[Any],
        event: Event,
        domain: str,
        playbook: Playbook,
        now: datetime,
        *,
        is_beside: bool = False,
    ) -> Opened | None:
        return open_or_join(
            connection,
            event,
            domain,
            playbook,
            is_shadow=is_beside or playbook.name in self._policy.shadow_playbooks,
            now=now,
            agents=self._deciding[domain].agents,
            gate=self._deciding[domain].gate,
            claimant=self._name,
            lease_seconds=self._policy.lease_seconds,
            is_beside=is_beside,
        )

    def _in_shadow[T](self, event: Event, work: Callable[[], T], *, otherwise: T) -> T:
        """Does what is in shadow; where that fails, it is counted, and what is enforced goes on without it.

        Raises psycopg.OperationalError: a database that cannot be reached, or was busy, is not the shadow's fault.
        """
        try:
            return work()
        except psycopg.OperationalError:
            raise
        except Exception:
            self._telemetry.count("ShadowErrors", 1)
            self._telemetry.logger.exception("failed in shadow", event_id=str(event.event_id))
            return otherwise

    def _follow(self, connection: Connection[Any], opened: Opened) -> bool:
        """Goes on with a decision that an anomaly opened or joined; returns whether that added to its record."""
        if opened.is_new:
            self._telemetry.count("DecisionsOpened", 1)
        elif opened.supersedes and opened.state not in BEFORE_RELEASE:
            self._telemetry.logger.warning(
                "superseded after its release", decision_id=str(opened.decision_id), state=opened.state
            )
        if opened.fence is not None:
            self._advance_claimed(connection, Hold(opened.decision_id, opened.fence, self._policy))
            return True
        return self.advance(connection, opened.decision_id) or opened.is_new

    def _advance_held(self, connection: Connection[Any], hold: Hold, known: Loaded | None) -> tuple[bool, Loaded]:
        """Makes moves until there is nothing left to do that nobody has asked for meanwhile.

        Returns whether it made one, and the record as it left it.
        """
        has_moved, ends_lost, asks_again = False, True, True
        loaded = _read(connection, hold, known)
        while True:
            if ends_lost:
                ends_lost = False  # those that are lost now were lost when it was claimed
                if moves.has_open_calls(loaded.record) and self._end_lost(connection, hold):
                    loaded = _read(connection, hold, loaded)
                    continue
            if (moved := self._move(connection, hold, loaded)) is not None:
                has_moved, loaded = True, moved
                if loaded.is_left:
                    return True, loaded
            elif asks_again and self._ask_again(connection, loaded):
                asks_again = False
                loaded = _read(connection, hold, loaded)
            elif self._leave(connection, hold, loaded):
                return has_moved, loaded
            else:
                ends_lost = True
                loaded = _read(connection, hold, loaded)

    def _move(self, connection: Connection[Any], hold: Hold, loaded: Loaded) -> Loaded | None:
        """Makes the next move, and returns the record after it; None where there is nothing to do but wait."""
        if loaded.is_closed or loaded.waits:
            return None
        try:
            given = _circumstances(loaded)
            try:
                return self._move_by_playbook(connection, hold, loaded, given)
            except psycopg.Error:
                raise
            except Exception as error:
                move = move_without_playbook(loaded.record, replace(given, fault=_fault(error)))
                if move is None:
                    raise
                return self._move_without_playbook(connection, hold, loaded, move)
        except psycopg.Error as error:
            if has_record_grown(error):
                return _read(connection, hold, loaded)
            raise

    def _move_by_playbook(
        self, connection: Connection[Any], hold: Hold, loaded: Loaded, given: Circumstances
    ) -> Loaded | None:
        plug_ins = self._plug_ins(loaded)
        playbook, agents = find_version(plug_ins, loaded.record), {agent.name: agent for agent in plug_ins.agents}
        move = next_move(loaded.record, playbook, agents, given)
        return self._make(connection, hold, loaded, playbook, _without_calls_of(move, given.switched_off))

    def _move_without_playbook(
        self, connection: Connection[Any], hold: Hold, loaded: Loaded, move: Append | Wait
    ) -> Loaded | None:
        if isinstance(move, Wait):
            return None
        if move.kind == "closed":
            decision_id = str(loaded.record.decision.decision_id)
            self._telemetry.logger.error("given up", decision_id=decision_id, reason=move.body["reason"])
        return self._append(connection, hold, loaded, move)

    def _make(
        self, connection: Connection[Any], hold: Hold, loaded: Loaded, playbook: Playbook, move: Move
    ) -> Loaded | None:
        record = loaded.record
        match move:
            case Append():
                return self._append(connection, hold, loaded, move)
            case Intend(calls_seq, calls):
                _transact(connection, lambda: intend(connection, hold, loaded, calls_seq, calls))
                return _read(connection, hold, loaded)
            case Collect(wait_until):
                return self._collect(connection, hold, loaded, playbook, wait_until)
            case Model(spec):
                result = playbook.simulate(record.without_shadow(), spec)
                return self._append(connection, hold, loaded, moves.simulation(record, result))
            case Observe():
                return self._observe(connection, hold, loaded, playbook, move)
            case Wait(until, kind):
                if until is not None:
                    self._set_timer(connection, hold, kind, until)
                return None

    def _collect(
        self, connection: Connection[Any], hold: Hold, loaded: Loaded, playbook: Playbook, wait_until: datetime | None
    ) -> Loaded | None:
        if wait_until is not None and not self._is_complete(connection, loaded, playbook, wait_until):
            again = loaded.now + timedelta(seconds=self._policy.gather_again_seconds)
            self._set_timer(connection, hold, "gather", min(again, wait_until))
            return None
        with connection.transaction():
            gathered = playbook.gather(connection, loaded.record.without_shadow())
        return self._append(connection, hold, loaded, moves.evidence(loaded.record, gathered))

    def _append(self, connection: Connection[Any], hold: Hold, loaded: Loaded, step: Append) -> Loaded:
        def with_outcome() -> Loaded:
            grown = append(connection, hold, loaded, step, seen_seq=loaded.head_seq)
            _store_outcome(connection, hold, step, grown.head_seq)
            return grown

        if step.kind == "outcome":
            return _transact(connection, with_outcome)
        # One statement is a transaction of its own.
        if step.calls:
            grown = retry_conflicts(lambda: begin(connection, hold, loaded, step))
            # Where all of its calls are open, nobody needs to read their steps now.
            return grown if grown.waits else _read(connection, hold, grown)
        grown = retry_conflicts(lambda: append(connection, hold, loaded, step, seen_seq=loaded.head_seq))
        if step.kind == "closed":
            self._count_closed(loaded, step)
        return grown

    def _observe(
        self, connection: Connection[Any], hold: Hold, loaded: Loaded, playbook: Playbook, move: Observe
    ) -> Loaded | None:
        with connection.transaction():
            observed = playbook.observe(connection, loaded.record.without_shadow(), move.bars, loaded.now)
        if observed is None and loaded.now >= move.ends_at:
            observed = {"state": "unobservable", "forecasts": []}
        if observed is not None:
            return self._append(connection, hold, loaded, moves.outcome(loaded.record, observed))
        self._set_timer(connection, hold, "observe", _next_look(loaded.now, move, self._policy.observe_seconds))
        return None

    def _is_complete(
        self, connection: Connection[Any], loaded: Loaded, playbook: Playbook, wait_until: datetime
    ) -> bool:
        """Whether evidence is gathered now: all of it is there, its playbook does not wait, or the wait is over."""
        if not isinstance(playbook, Patient):
            return True
        left = min(self._policy.gather_seconds, (wait_until - loaded.now).total_seconds())
        ends = time.monotonic() + left
        while left > 0:
            with connection.transaction():
                if playbook.is_complete(connection, loaded.record):
                    return True
            if time.monotonic() >= ends:
                return loaded.now + timedelta(seconds=left) >= wait_until
            time.sleep(min(LOOK_SECONDS, left))
        return True

    def _set_timer(self, connection: Connection[Any], hold: Hold, kind: str, due_at: datetime) -> None:
        """Has the decision looked at again, unless a timer of the kind is set already."""
        timer = {"decision_id": hold.decision_id, "fence": hold.fence, "kind": kind}
        row = connection.execute(QUERIES["has_timer"].sql, timer).fetchone()
        if row is None or not row[0]:
            connection.execute(QUERIES["set_timer"].sql, {**timer, "due_at": due_at})

    def _end_lost(self, connection: Connection[Any], hold: Hold) -> int:
        ended = retry_conflicts(lambda: end_lost_calls(connection, hold))
        if ended:
            self._telemetry.count("AgentCallsLost", ended)
        return ended

    def _ask_again(self, connection: Connection[Any], loaded: Loaded) -> bool:
        """Asks again for a verdict that has not come for a while; returns whether it did."""
        waited = (loaded.now - loaded.record.steps[-1].at).total_seconds()
        nth = awaited_verdict(loaded.record)
        if nth is None or waited < self._policy.ask_again_seconds:
            return False
        asked = announcements.verdict_requested_again(loaded.record, nth, loaded.now)
        _transact(connection, lambda: emit(connection, asked))
        return True

    def _plug_ins(self, loaded: Loaded) -> Deciding:
        domain = loaded.record.decision.domain
        if domain not in self._deciding:
            raise PlaybookFault(f"decision {loaded.record.decision.decision_id} is of domain {domain}, which is gone")
        return self._deciding[domain]

    def _leave(self, connection: Connection[Any], hold: Hold, loaded: Loaded) -> bool:
        """Gives the lease back; returns False where a message came since the record was read.

        All that was appended is on disk then: the message that led to it does not come again.
        """
        query = "leave_decision_alone" if loaded.is_on_disk else "leave_decision"
        row = connection.execute(
            QUERIES[query].sql,
            {"decision_id": hold.decision_id, "fence": hold.fence, "wake_seq": loaded.wake_seq},
        ).fetchone()
        return row is None or row[0] != "woken"

    def _give_back(self, connection: Connection[Any], hold: Hold) -> None:
        """Gives the lease back after a failure, whatever came meanwhile: the failed message comes again."""
        with suppress(psycopg.Error):
            loaded = load(connection, hold.decision_id)
            if loaded is not None:
                self._leave(connection, hold, loaded)

    def _count_closed(self, loaded: Loaded, step: Append) -> None:
        decision = loaded.record.decision
        self._telemetry.count("DecisionsClosed", 1)
        self._telemetry.count("DecisionDuration", (loaded.now - decision.opened_at).total_seconds() * 1000)
        if step.state == "abandoned":
            self._telemetry.count("DecisionsAbandoned", 1)
        self._telemetry.logger.info(
            "closed",
            decision_id=str(decision.decision_id),
            state=step.state,
            reason=step.body["reason"],
            trace_id=str(decision.trace_id),
        )


def _circumstances(loaded: Loaded) -> Circumstances:
    is_overdue = loaded.now >= moves.ends_at(loaded.record)
    if loaded.record.decision.state not in BEFORE_RELEASE:
        return Circumstances(is_overdue=is_overdue, now=loaded.now)
    expiry = moves.approval_expiry(loaded.record)
    return Circumstances(
        is_overdue=is_overdue,
        is_expired=expiry is not None and loaded.now >= expiry,
        switched_off=loaded.switched_off,
        now=loaded.now,
    )


def _fault(error: Exception) -> str:
    """What the record says of a fault: another exception's text may be anything, and is in the log."""
    return visible(str(error)[:LONGEST]) if isinstance(error, PlaybookFault) else type(error).__name__


def _without_calls_of(move: Move, switched_off: frozenset[str]) -> Move:
    """Leaves the calls of agents that are off to the next move, which gives up on them."""
    if not isinstance(move, Append):
        return move
    return replace(move, calls=tuple(call for call in move.calls if f"agent:{call.agent}" not in switched_off))


def _read(connection: Connection[Any], hold: Hold, known: Loaded | None = None) -> Loaded:
    """Reads the decision that is held; of what is known nothing again."""
    loaded = load(connection, hold.decision_id, known, hold.stored)
    assert loaded is not None, "a decision that is held is there"
    return loaded


def _transact[T](connection: Connection[Any], work: Callable[[], T]) -> T:
    return retry_conflicts(lambda: _within(connection, work))


def _within[T](connection: Connection[Any], work: Callable[[], T]) -> T:
    """Does work in a transaction, or a savepoint of the one that is under way."""
    with connection.transaction():
        return work()


def _next_look(now: datetime, move: Observe, shortest: float) -> datetime:
    """Later and later: a quarter of the time that has passed since the horizon began, and at its end for certain."""
    pause = max(timedelta(seconds=shortest), (now - move.since) / 4)
    return min(now + pause, max(move.ends_at, now + timedelta(seconds=1)))


def _store_outcome(connection: Connection[Any], hold: Hold, step: Append, seq: int) -> None:
    observed = dict(step.body)
    connection.execute(
        QUERIES["store_outcome"].sql,
        {"decision_id": hold.decision_id, "seq": seq, "state": observed["state"], "observed": Jsonb(observed)},
    )
