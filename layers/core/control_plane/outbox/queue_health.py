"""A queue's health as one relay sees it: its breaker, the failures not stored yet, and whether to send."""

from control_plane.platform.breakers import Breaker


class QueueHealth:
    """One lane's view of its breaker.

    Any thread may read it and note a fault; only the deciding thread changes the rest.
    """

    def __init__(self, name: str, *, failure_threshold: int) -> None:
        self._failure_threshold = failure_threshold
        self.breaker = Breaker(name)
        self._probe_at: float | None = None
        """When to ask for the next probe, by ``time.monotonic()``; None where there is none to ask for."""
        self._unstored_faults = 0
        self._is_shut = False
        self._reason = ""
        self._silent: set[int] = set()
        """Outbox ids that were charged for getting no verdict, since the queue's last verdict on any message."""

    @property
    def shut_reason(self) -> str | None:
        """The reason why nothing more may be sent, or None."""
        return self._reason if self._is_shut else None

    @property
    def is_closed(self) -> bool:
        """Whether everything may be sent."""
        return self.breaker.is_closed and not self._is_shut

    def note_fault(self, reason: str) -> None:
        """Counts a failure before Postgres stores it: at the breaker's threshold, sending stops at once."""
        self._unstored_faults += 1
        self._reason = reason
        if self.breaker.consecutive_failures + self._unstored_faults >= self._failure_threshold:
            self._is_shut = True

    def refresh(self, breaker: Breaker, now: float) -> None:
        """Takes over the breaker as just read, unless this view is newer because it counts unstored failures."""
        if not self._unstored_faults:
            self.replace(breaker, now)

    def replace(self, breaker: Breaker, now: float) -> None:
        """Takes over the breaker as the database returned it after this relay's own report."""
        self.breaker = breaker
        self._unstored_faults = 0
        self._probe_at = None if breaker.retry_in_seconds is None else now + breaker.retry_in_seconds
        self._is_shut = not breaker.is_closed
        self._reason = f"held by {breaker.held_by}" if breaker.held_by else breaker.last_error or "the breaker is open"

    def probe_is_due(self, now: float) -> bool:
        """Whether to ask for the one probe that an open or half-open breaker lets through."""
        return not self.breaker.is_closed and self._probe_at is not None and now >= self._probe_at

    def probe_won(self) -> None:
        """Lets one message through, and asks for no other probe until the breaker has been read again."""
        self._is_shut = False
        self._probe_at = None

    def probe_lost(self) -> None:
        """Asks for no probe for now, because another relay has won it."""
        self._probe_at = None

    def probe_returned(self, now: float) -> None:
        """Makes the probe due again at once, because nothing was sent."""
        self._is_shut = True
        self._probe_at = now

    def heard_verdict(self) -> None:
        """Forgets which messages were charged, because the queue gave a verdict on a message."""
        self._silent.clear()

    def silence_may_be_its_own(self, outbox_id: int) -> bool:
        """Whether this is the only message that got no verdict since the queue's last verdict.

        If a second message got none either, it counts as an outage of the queue, and no message is charged.
        """
        return (
            self.breaker.is_closed
            and not self.breaker.consecutive_failures
            and not self._unstored_faults
            and self._silent <= {outbox_id}
        )

    def count_silence(self, outbox_id: int) -> None:
        """Remembers that a message was charged for getting no verdict."""
        self._silent.add(outbox_id)
