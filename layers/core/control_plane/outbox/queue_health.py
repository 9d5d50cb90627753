"""A queue's health as one relay sees it: its breaker, the failures not stored yet, and whether to send at all."""

from control_plane.platform.breakers import Breaker


class QueueHealth:
    """One lane's view of its breaker. Any thread may read it and note a fault; the deciding thread does the rest."""

    def __init__(self, name: str, *, failure_threshold: int) -> None:
        self._failure_threshold = failure_threshold
        self.breaker = Breaker(name)
        self._probe_at: float | None = None
        """By ``time.monotonic()``; None where no probe is to come."""
        self._unstored_faults = 0
        self._is_shut = False
        self._reason = ""
        self._silent: set[int] = set()
        """Outbox ids whose silence was counted as their own since the queue's last verdict."""

    @property
    def shut_reason(self) -> str | None:
        """Why nothing more is to be sent, or None."""
        return self._reason if self._is_shut else None

    @property
    def is_closed(self) -> bool:
        """Whether everything may be sent."""
        return self.breaker.is_closed and not self._is_shut

    def note_fault(self, reason: str) -> None:
        """Counts a failure at once: at the breaker's threshold nothing more is sent, before Postgres knows."""
        self._unstored_faults += 1
        self._reason = reason
        if self.breaker.consecutive_failures + self._unstored_faults >= self._failure_threshold:
            self._is_shut = True

    def refresh(self, breaker: Breaker, now: float) -> None:
        """Takes the breaker as just read, unless this view holds failures not stored yet, and so is newer."""
        if not self._unstored_faults:
            self.replace(breaker, now)

    def replace(self, breaker: Breaker, now: float) -> None:
        """Takes the breaker as it is after what this relay has just reported to it."""
        self.breaker = breaker
        self._unstored_faults = 0
        self._probe_at = None if breaker.retry_in_seconds is None else now + breaker.retry_in_seconds
        self._is_shut = not breaker.is_closed
        self._reason = f"held by {breaker.held_by}" if breaker.held_by else breaker.last_error or "the breaker is open"

    def probe_is_due(self, now: float) -> bool:
        """Whether to ask for the one probe that a breaker that is not closed lets through."""
        return not self.breaker.is_closed and self._probe_at is not None and now >= self._probe_at

    def probe_won(self) -> None:
        """Lets one message through; whether it or nothing came of it, no other before the breaker is read again."""
        self._is_shut = False
        self._probe_at = None

    def probe_lost(self) -> None:
        """Another relay probes."""
        self._probe_at = None

    def probe_returned(self, now: float) -> None:
        """Nothing was sent: the probe is due again at once."""
        self._is_shut = True
        self._probe_at = now

    def heard_verdict(self) -> None:
        """The queue gave an entry a verdict of its own."""
        self._silent.clear()

    def silence_may_be_its_own(self, outbox_id: int) -> bool:
        """Whether nothing but this message speaks against the queue since its last verdict.

        A second message without a verdict makes it an outage: then no message is charged.
        """
        return (
            self.breaker.is_closed
            and not self.breaker.consecutive_failures
            and not self._unstored_faults
            and self._silent <= {outbox_id}
        )

    def count_silence(self, outbox_id: int) -> None:
        """Remembers that a message was charged for its silence."""
        self._silent.add(outbox_id)
