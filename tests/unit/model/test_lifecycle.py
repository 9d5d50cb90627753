"""What becomes of a delivery by each outcome of its attempt."""

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control_plane.model.lifecycle import (
    Accepted,
    Disposition,
    Failed,
    MessageFault,
    NotSent,
    Outcome,
    QueueFault,
    Settlement,
    settle,
)

COOL_DOWN = timedelta(seconds=30)
attempts = st.integers(1, 100)


def settled(outcome: Outcome, *, attempt: int = 1, max_attempts: int = 5, luck: float = 0.0) -> Settlement:
    return settle(outcome, attempt=attempt, max_attempts=max_attempts, cool_down=COOL_DOWN, random=lambda: luck)


@given(attempts, attempts)
def test_an_accepted_message_is_published_at_whatever_attempt(attempt: int, max_attempts: int) -> None:
    settlement = settled(Accepted("m-1"), attempt=attempt, max_attempts=max_attempts)
    assert settlement == Settlement(Disposition.PUBLISHED, message_id="m-1", error=None)


@given(attempts, attempts)
def test_message_fault_is_dead_lettered_at_once_with_reason(attempt: int, max_attempts: int) -> None:
    settlement = settled(MessageFault("too large"), attempt=attempt, max_attempts=max_attempts)
    assert settlement == Settlement(Disposition.DEAD_LETTERED, error="too large")


@given(attempts, attempts)
def test_queue_fault_costs_no_attempt_not_even_the_last(attempt: int, max_attempts: int) -> None:
    settlement = settled(QueueFault("throttled"), attempt=attempt, max_attempts=max_attempts)
    assert settlement == Settlement(Disposition.RELEASED, error="throttled", delay=COOL_DOWN)


@given(attempts, attempts)
def test_unsent_message_is_released_at_once_without_error(attempt: int, max_attempts: int) -> None:
    assert settled(NotSent(), attempt=attempt, max_attempts=max_attempts) == Settlement(Disposition.RELEASED)


@pytest.mark.parametrize(("attempt", "seconds"), [(1, 2), (2, 5), (3, 15), (4, 30)])
def test_a_failed_attempt_is_tried_again_after_its_delay(attempt: int, seconds: int) -> None:
    settlement = settled(Failed("odd answer"), attempt=attempt)
    assert settlement == Settlement(Disposition.FAILED, error="odd answer", delay=timedelta(seconds=seconds))


def test_a_failed_attempts_delay_is_jittered() -> None:
    assert settled(Failed("odd answer"), luck=0.5).delay == timedelta(seconds=2.2)


@given(st.integers(1, 20), st.integers(0, 20))
def test_last_failed_attempt_dead_letters_with_attempts_and_reason(max_attempts: int, beyond: int) -> None:
    attempt = max_attempts + beyond  # an attempt beyond the limit, which was lowered meanwhile
    settlement = settled(Failed("odd answer"), attempt=attempt, max_attempts=max_attempts)
    assert settlement == Settlement(Disposition.DEAD_LETTERED, error=f"gave up after {attempt} attempts: odd answer")
