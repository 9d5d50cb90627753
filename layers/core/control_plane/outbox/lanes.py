"""Lanes: a lane is a relay's view of one subscription.

Each lane has its own room, threads and breaker, so that no lane waits for another.
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
"""How far back a claim looks after a survey found nothing pending. Transactions that were under way during the survey
commit rows that are dated before it."""
OVERLAP: Final = timedelta(seconds=2)
"""How far back a claim looks if the previous claim took everything that was due. A transaction dates its rows by its
start, and commits them later."""


@dataclass(slots=True)
class Lane:
    """One subscription's cursor, room, messages in flight, threads and breaker; only the deciding thread uses it."""

    subscription: str
    queue_url: str
    claim_size: int
    """The most messages that one claim takes; no more are claimed while this many are in flight."""
    byte_room: int
    """The most bytes of bodies that may be claimed and not settled. A claim's first message may be larger than that."""
    claim_bytes: int
    """The most bytes of bodies that one claim takes. It is limited because no other lane claims while they are read."""
    suspect_room: int
    """The most suspect messages that may be claimed and not settled."""
    health: QueueHealth
    make_workers: Callable[[str], Workers]
    cursor: datetime = BEGINNING
    """The next claim starts here: deliveries that were due earlier are settled or have a later due time."""
    has_pending: bool = False
    """Whether the last survey found anything pending."""
    probes: bool = False
    """Whether the next claim asks for the breaker's probe."""
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
        """Returns what the next claim may take. Call it only if :meth:`has_room`."""
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
        """Moves the cursor to the beginning, or, if nothing is pending, to the earliest possible late commit."""
        self._oldest_late_commit = database_now - LATE_COMMIT
        self.has_pending = has_pending
        self.cursor = BEGINNING if has_pending else self._oldest_late_commit

    def claimed(self, rows: Iterable[ClaimedRow], limits: LaneLimits) -> None:
        """Moves the cursor past the rows that a claim with these limits took."""
        ordinary = [row.due_at for row in rows if not row.is_suspect or row.fate == "lost"]
        if not ordinary:
            self.cursor = max(limits.since, self._oldest_late_commit)
        elif len(ordinary) >= limits.row_limit:
            # Other rows may be due at the same instant as the last one taken, so the cursor stays at that instant.
            self.cursor = max(ordinary)
        else:
            self.cursor = max(limits.since, max(ordinary) - OVERLAP)

    def start(self, deliveries: Sequence[ClaimedDelivery]) -> list[Sequence[Message]]:
        """Counts claimed messages and returns the batches to send: suspects come last, one to a batch."""
        for delivery in deliveries:
            self.bytes_claimed += delivery.message.size
            self.suspects += delivery.message.is_suspect
        sendable = [delivery.message for delivery in deliveries if delivery.verdict is None]
        to_send = list(batches([message for message in sendable if not message.is_suspect]))
        to_send += [[message] for message in sendable if message.is_suspect]
        return to_send

    def settled(self, message: Message) -> None:
        """Frees the room of a message that is settled, or that another claim has taken over."""
        self.bytes_claimed -= message.size
        self.suspects -= message.is_suspect

    def hand_out[R](self, job: Callable[[], R], then: Callable[[R], None]) -> None:
        """Gives a job to one of the lane's publishing threads, which are started with the first job."""
        if self._workers is None:
            self._workers = self.make_workers(f"publish-{self.subscription}")
        self._workers.hand_out(job, then)

    def close(self) -> None:
        """Drops the jobs that have not started, and returns when the others are done."""
        if self._workers is not None:
            self._workers.close()
            self._workers = None
