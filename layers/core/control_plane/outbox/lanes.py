"""Lanes: a relay's view of one subscription each. No lane waits for another: its room, its threads and its breaker are
its own.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

from control_plane.outbox.claims import BEGINNING, ClaimedDelivery, ClaimedRow, LaneLimits
from control_plane.outbox.publisher import Message, batches
from control_plane.outbox.queue_health import QueueHealth
from control_plane.outbox.workers import Workers

LATE_COMMIT: Final = timedelta(seconds=30)
"""How far back a claim looks where a survey found nothing pending: transactions then under way commit late."""
OVERLAP: Final = timedelta(seconds=2)
"""How far back a claim looks where the last one took all: transactions commit later than they date their rows."""


@dataclass(slots=True)
class Lane:
    """One subscription's cursor, room, messages in flight, threads and breaker; the deciding thread's own."""

    subscription: str
    queue_url: str
    claim_size: int
    """Most messages that may be in flight when more are claimed, and most that a claim takes."""
    byte_room: int
    """Most bytes of bodies that may be claimed and not settled; a first message is claimed whatever its size."""
    claim_bytes: int
    """Most bytes of bodies that one claim takes: while they are on their way, no other lane's are claimed."""
    suspect_room: int
    """Most suspect messages that may be claimed and not settled."""
    health: QueueHealth
    make_workers: Callable[[str], Workers]
    cursor: datetime = BEGINNING
    """Deliveries that were due before it are done, or not due any more."""
    has_pending: bool = False
    """Whether the last survey found anything pending."""
    probes: bool = False
    """The next claim asks for the breaker's probe."""
    in_flight: int = 0
    """Messages handed to the publishing threads whose outcome is not known."""
    suspects: int = 0
    """Suspect messages claimed and not settled."""
    bytes_claimed: int = 0
    """Bytes of the messages claimed and not settled."""
    _oldest_late_commit: datetime = BEGINNING
    _workers: Workers | None = field(default=None, repr=False)

    def has_room(self, now: float) -> bool:
        """Whether a claim may take anything for this lane."""
        if not self.health.is_closed:
            return self.has_pending and not self.in_flight and self.health.probe_is_due(now)
        most_bytes = self.byte_room - min(self.claim_bytes, self.byte_room // 2)
        return self.in_flight < self.claim_size and self.bytes_claimed <= most_bytes

    def limits(self) -> LaneLimits:
        """What the next claim may take. Call it where :meth:`has_room`."""
        if not self.health.is_closed:
            self.probes = True
            return LaneLimits(row_limit=1, suspect_limit=1, byte_limit=self.byte_room)
        return LaneLimits(
            row_limit=self.claim_size,
            suspect_limit=max(self.suspect_room - self.suspects, 0),
            byte_limit=max(min(self.byte_room - self.bytes_claimed, self.claim_bytes), 0),
            since=self.cursor,
        )

    def surveyed(self, database_now: datetime, *, has_pending: bool) -> None:
        """Starts from the beginning where there is anything pending; else from where a late commit may still come."""
        self._oldest_late_commit = database_now - LATE_COMMIT
        self.has_pending = has_pending
        self.cursor = BEGINNING if has_pending else self._oldest_late_commit

    def claimed(self, rows: Iterable[ClaimedRow], limits: LaneLimits) -> None:
        """Moves the cursor behind what a claim with these limits took."""
        ordinary = [row.due_at for row in rows if not row.is_suspect or row.fate == "lost"]
        if not ordinary:
            self.cursor = max(limits.since, self._oldest_late_commit)
        elif len(ordinary) >= limits.row_limit:
            # Rows of one instant may not have had room together: what lies at it is looked at again.
            self.cursor = max(ordinary)
        else:
            self.cursor = max(limits.since, max(ordinary) - OVERLAP)

    def start(self, deliveries: Sequence[ClaimedDelivery]) -> list[Sequence[Message]]:
        """Takes claimed messages in; returns the batches to send, each suspect alone and behind the others."""
        for delivery in deliveries:
            self.bytes_claimed += delivery.message.size
            self.suspects += delivery.message.is_suspect
        sendable = [delivery.message for delivery in deliveries if delivery.verdict is None]
        to_send = list(batches([message for message in sendable if not message.is_suspect]))
        to_send += [[message] for message in sendable if message.is_suspect]
        return to_send

    def settled(self, message: Message) -> None:
        """Gives back the room of a message that is settled, or that another claim has taken over."""
        self.bytes_claimed -= message.size
        self.suspects -= message.is_suspect

    def hand_out[R](self, job: Callable[[], R], then: Callable[[R], None]) -> None:
        """Has one of the lane's publishing threads do a job; they are started when there is a first one."""
        if self._workers is None:
            self._workers = self.make_workers(f"publish-{self.subscription}")
        self._workers.hand_out(job, then)

    def close(self) -> None:
        """Forgets the jobs that wait, and returns when those under way are done."""
        if self._workers is not None:
            self._workers.close()
            self._workers = None
