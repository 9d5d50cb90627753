"""The faults that a queue can have."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Final, Literal, Self, get_args

from queue_endpoint.nonsense import NONSENSE

type Accepts = Literal["before", "after", "never"]

ANSWERS: Final = ("ok", "throttled", "error", "denied", "close", "garbage", "half", "nonsense", *NONSENSE)
ACCEPTS: Final[tuple[str, ...]] = get_args(Accepts.__value__)
REFUSALS: Final = frozenset({"throttled", "error", "denied"})


@dataclass(slots=True)
class Fault:
    """How one queue answers, or every queue without a fault of its own, until another fault is set.

    ``times`` is for how many requests; None is until healed. ``answer``: "throttled" is SQS's 400 RequestThrottled,
    "error" 500, "denied" 403; "close" ends the connection without a word, "half" in the middle of the answer; "garbage"
    is 200 and no JSON; "nonsense" is every kind of NONSENSE in turn, and each kind is an answer by itself. With
    ``answer_events``, only a batch that holds one of these events is answered so; others are accepted.

    ``hold`` delays the answer until it is released, ``latency_ms`` for that long.

    ``accepts`` says when the queue accepts the messages: "before" the delay, "after" it (only if the client is still
    connected), or "never"; None is "never" for a refusal, else "before".

    Single entries fail with ``fail_code`` and ``sender_fault``: a ``fail_share`` of all entries, evenly spread (0.1 is
    every tenth), and always those whose attribute event_id is in ``fail_events``.
    """

    queue: str | None = None
    times: int | None = None
    answer: str = "ok"
    answer_events: frozenset[str] = frozenset()
    accepts: Accepts | None = None
    latency_ms: float = 0
    hold: bool = False
    fail_share: float = 0
    fail_events: frozenset[str] = frozenset()
    fail_code: str = "InternalError"
    sender_fault: bool = False
    _entries: int = field(default=0, repr=False)
    _answers: int = field(default=0, repr=False)

    def __post_init__(self) -> None:
        if self.answer not in ANSWERS:
            raise ValueError(f"answer is {self.answer!r}: one of {', '.join(ANSWERS)}")
        if self.accepts is None:
            self.accepts = "never" if self.answer in REFUSALS else "before"
        if self.accepts not in ACCEPTS:
            raise ValueError(f"accepts is {self.accepts!r}: one of {', '.join(ACCEPTS)}")
        if not 0 <= self.fail_share <= 1:
            raise ValueError(f"fail_share is {self.fail_share}: from 0 to 1")
        self.fail_events = frozenset(self.fail_events)
        self.answer_events = frozenset(self.answer_events)
        if self.answer_events and self.fail_share:
            raise ValueError("answer_events and fail_share are of no use together")

    @classmethod
    def parse(cls, said: Mapping[str, Any]) -> Self:
        """Returns a fault from parsed JSON. Raises ValueError, TypeError."""
        known = {one.name for one in fields(cls) if not one.name.startswith("_")}
        if unknown := said.keys() - known:
            raise ValueError(f"no such fault: {', '.join(sorted(unknown))}; known are {', '.join(sorted(known))}")
        return cls(**said)

    def of_batch(self, event_ids: Iterable[str | None]) -> Self:
        """Returns the fault that applies to a batch of these events."""
        if self.answer_events and self.answer_events.isdisjoint(event_ids):
            return replace(self, answer="ok", accepts="before" if self.accepts == "never" else self.accepts)
        if self.answer != "nonsense":
            return self
        kind = list(NONSENSE)[self._answers % len(NONSENSE)]
        self._answers += 1
        return replace(self, answer=kind)

    def fails(self, event_id: str | None) -> bool:
        """Returns whether the next entry fails."""
        if event_id in self.fail_events:
            return True
        if not self.fail_share:
            return False
        self._entries += 1
        # Rounded, because as floats 0.1 × 30 is a little more than 3, and 1/49 × 49 a little less than 1.
        return int(round(self._entries * self.fail_share, 9)) > int(round((self._entries - 1) * self.fail_share, 9))
