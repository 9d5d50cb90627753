"""What /health does if its look at the database fails in an unforeseen way."""

from http import HTTPStatus

from control_plane.api.health import HealthReporter
from control_plane.platform.database import Database

FAILURE = KeyError("nobody foresaw this")


def test_a_failure_that_nobody_foresaw_is_kept_like_an_answer() -> None:
    opened = []

    def open_database() -> Database:
        opened.append(1)
        raise FAILURE

    now = [0.0]
    health = HealthReporter(open_database, max_pending_age_seconds=60, patience_seconds=60, monotonic=lambda: now[0])
    answers = [health.answer() for _ in range(20)]
    assert {answer.status for answer in answers} == {HTTPStatus.INTERNAL_SERVER_ERROR}
    assert [answer.cause for answer in answers] == [FAILURE, *[None] * 19]
    assert len(opened) == 1
    now[0] += 5
    assert health.answer().cause is FAILURE
    assert len(opened) == 2


def test_a_look_that_fails_so_is_kept_too() -> None:
    class Broken(Database):
        looks = 0

        def connection(self) -> None:  # type: ignore[override]  # it never returns
            Broken.looks += 1
            raise FAILURE

    health = HealthReporter(
        lambda: Broken(lambda: "", application_name="test"),
        max_pending_age_seconds=60,
        patience_seconds=60,
        monotonic=lambda: 0.0,
    )
    assert [health.answer().cause for _ in range(20)] == [FAILURE, *[None] * 19]
    assert Broken.looks == 1
