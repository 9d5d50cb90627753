"""The ledger does all of the relay's work in Postgres, one job at a time, on a thread of its own."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import uuid4

import psycopg
from psycopg import Connection

from control_plane.model.errors import DatabaseUnavailable
from control_plane.model.lifecycle import Settlement
from control_plane.outbox import claims, handover, settlements
from control_plane.outbox.claims import Claim, LaneLimits
from control_plane.outbox.publisher import Message
from control_plane.outbox.session import Session
from control_plane.outbox.settlements import Measured, SettledRow
from control_plane.platform.backlog import count_open_dead_letters, count_pending, oldest_pending_age
from control_plane.platform.breakers import Breaker, BreakerPolicy, Breakers
from control_plane.platform.telemetry import Telemetry

COUNT_SECONDS = 1.0
"""How long the count of pending deliveries may take; if it takes longer, no count is reported."""


@dataclass(frozen=True, slots=True)
class RelayPolicy:
    """The settings that a relay works by; durations are in seconds."""

    claim_size: int
    lease_seconds: float
    max_attempts: int
    publish_concurrency: int
    breaker: BreakerPolicy


@dataclass(frozen=True, slots=True)
class Survey:
    """Which subscriptions have work, and which queues may be sent to."""

    database_now: datetime
    open_subscriptions: Sequence[str]
    """Subscriptions with pending deliveries, including those that this relay does not know."""
    breakers: Mapping[str, Breaker]


@dataclass(frozen=True, slots=True)
class Look:
    """What one look for work found."""

    claim: Claim
    probes_won: frozenset[str]
    """Subscriptions whose breaker lets this relay's probe through."""


@dataclass(frozen=True, slots=True)
class Backlog:
    """The deliveries that are pending when an invocation ends."""

    pending: int | None
    """None if there are too many to count in time."""
    oldest_age_seconds: float
    open_dead_letters: int
    """Of every kind, counted up to MOST_DEAD_LETTERS."""


class Ledger:
    """Surveys, claims, settlements, breakers and handover over one session; for the database's thread."""

    def __init__(
        self, session: Session, *, subscriptions: Sequence[str], policy: RelayPolicy, telemetry: Telemetry, name: str
    ) -> None:
        self._session = session
        self._subscriptions = tuple(subscriptions)
        self._policy = policy
        self._telemetry = telemetry
        self._name = name
        self._breakers = Breakers(session.connection, policy.breaker)
        self._handover_token = uuid4()

    def open(self, *, lingers: bool) -> None:
        """Begins an invocation; one that lingers takes over from the relay that lingers now.

        Raises DatabaseUnavailable.
        """
        self._session.open()
        if lingers:
            self._handover_token = uuid4()
            self._session.execute(
                lambda connection: handover.take_over(connection, token=self._handover_token, name=self._name)
            )

    def close(self, *, lingered: bool) -> Backlog | None:
        """Ends an invocation and returns what is pending, or None if Postgres does not answer.

        A failure here is only logged, because the invocation's work is committed already.
        """
        try:
            connection = self._session.connection()
            if lingered:
                handover.leave(connection, token=self._handover_token)
            return Backlog(
                count_pending(connection, timeout_seconds=COUNT_SECONDS),
                oldest_pending_age(connection),
                count_open_dead_letters(connection),
            )
        except (psycopg.Error, DatabaseUnavailable) as error:
            self._telemetry.logger.warning("the backlog is unknown", error=str(error))
            return None

    def was_taken_over(self) -> bool:
        """Whether another lingering relay has taken over."""
        return not self._session.execute(lambda connection: handover.is_current(connection, token=self._handover_token))

    def survey(self) -> Survey:
        """Reads which subscriptions have pending deliveries, and every breaker."""
        database_now, open_subscriptions = self._session.execute(claims.open_subscriptions)
        breakers = self._session.execute(lambda _: self._breakers.read(self._subscriptions))
        return Survey(database_now, open_subscriptions, breakers)

    def look(self, lanes: Mapping[str, LaneLimits], probes: Sequence[str]) -> Look:
        """Claims what is due in these lanes; a lane that probes takes part only if this relay wins the probe."""
        won = frozenset(name for name in probes if self._win_probe(name))
        taking_part = {name: limits for name, limits in lanes.items() if name not in probes or name in won}
        if not taking_part:
            return Look(Claim(uuid4()), won)

        def claim(connection: Connection[Any]) -> Claim:
            return claims.claim(
                connection,
                token=uuid4(),
                claimed_by=self._name,
                lanes=taking_part,
                lease_seconds=self._policy.lease_seconds,
                max_attempts=self._policy.max_attempts,
            )

        return Look(self._session.execute(claim), won)

    def _win_probe(self, subscription: str) -> bool:
        return self._session.execute(lambda _: self._breakers.try_probe(subscription))

    def return_probe(self, subscription: str) -> None:
        """Gives back a probe without a send: it is due again at once."""
        self._session.execute(lambda _: self._breakers.give_back_probe(subscription))

    def report_failure(self, subscription: str, reason: str) -> Breaker:
        """Counts a failure of a subscription's queue and returns its breaker."""
        breaker = self._session.execute(lambda _: self._breakers.failed(subscription, reason))
        if not breaker.is_closed:
            self._telemetry.logger.warning("breaker_open", state=breaker.state, error=reason, subscription=subscription)
        return breaker

    def report_success(self, subscription: str, *, began_seconds_ago: float) -> Breaker:
        """Closes and returns the breaker of a queue that gave a verdict, if the send began after the breaker opened."""
        return self._session.execute(
            lambda _: self._breakers.succeeded(subscription, began_seconds_ago=began_seconds_ago)
        )

    def is_sound(self, subscription: str) -> bool:
        """Whether the breaker is closed and counts no failure, so that a success need not be reported.

        Any thread may ask.
        """
        return self._breakers.is_sound(subscription)

    def others_were_delivered(self, message: Message) -> bool:
        """Whether the queue has accepted other messages of the subscription since this one became suspect."""
        return self._session.execute(lambda connection: claims.others_were_delivered(connection, message))

    def settle(
        self, outcomes: Sequence[tuple[Message, Settlement]], measured: Sequence[Measured]
    ) -> Sequence[SettledRow]:
        """Records outcomes and returns those that took effect, even where Postgres's first answer was lost."""
        tries = 0

        def record(connection: Connection[Any]) -> Sequence[SettledRow]:
            nonlocal tries
            tries += 1
            settled = settlements.settle(connection, settled_by=self._name, settlements=outcomes, measured=measured)
            if tries == 1 or len(settled) == len(outcomes):
                return settled
            # The first try may have been committed although its answer was lost.
            return [*settled, *settlements.settled_before(connection, outcomes)]

        return self._session.execute(record)
