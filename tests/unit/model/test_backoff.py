from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control_plane.model.backoff import retry_delay


@pytest.mark.parametrize(("attempt", "seconds"), [(1, 2), (2, 5), (3, 15), (4, 30), (5, 60), (6, 60), (99, 60)])
def test_waits_grow_with_each_failure_up_to_a_minute(attempt: int, seconds: int) -> None:
    assert retry_delay(attempt, random=lambda: 0.0) == timedelta(seconds=seconds)


@given(st.integers(1, 1000), st.floats(0, 1, exclude_max=True))
def test_jitter_adds_at_most_a_fifth(attempt: int, luck: float) -> None:
    plain = retry_delay(attempt, random=lambda: 0.0)
    assert plain <= retry_delay(attempt, random=lambda: luck) <= plain * 1.2


def test_messages_that_failed_together_do_not_return_together() -> None:
    assert len({retry_delay(1) for _ in range(20)}) > 1
