"""Types whose validators are built on their first use."""

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
from pydantic import ValidationError

from control_plane.model.late import LateModel

THREADS = 8


@pytest.fixture
def eager_switches() -> Iterator[None]:
    """Has the interpreter switch threads as often as it can."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(usual)


@pytest.mark.usefixtures("eager_switches")
def test_threads_that_use_a_type_first_at_the_same_time_each_get_their_value() -> None:
    with ThreadPoolExecutor(THREADS) as threads:
        for _ in range(200):

            class Inner(LateModel):
                amount: int

            class Outer(LateModel):
                inner: Inner
                names: dict[str, list[int]]

            begin = Barrier(THREADS)

            def use(_: int, kind: type[LateModel] = Outer, begin: Barrier = begin) -> LateModel:
                begin.wait()
                return kind.model_validate({"inner": {"amount": 1}, "names": {"a": [1]}})

            assert set(map(str, threads.map(use, range(THREADS)))) == {"inner=Inner(amount=1) names={'a': [1]}"}


def test_it_takes_no_other_fields_and_is_not_changed() -> None:
    class Small(LateModel):
        amount: int

    with pytest.raises(ValidationError):
        Small.model_validate({"amount": 1, "other": 2})
    with pytest.raises(ValidationError):
        Small(amount=1).amount = 2
