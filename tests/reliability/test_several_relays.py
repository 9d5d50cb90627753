"""Several relays at once, one of them killed, frozen beyond its lease, or wrong about the time."""

import pytest
from tests.reliability.conftest import Finish
from tests.reliability.pipeline import CONCURRENCY, Pipeline, RelayProcess

_SETTLED = "SELECT outbox_id, delivered_at, message_id, delivery_attempts FROM deliveries ORDER BY outbox_id"


@pytest.mark.parametrize("relays", [2, 8])
def test_relays_share_the_work_and_send_nothing_twice(pipeline: Pipeline, finish: Finish, relays: int) -> None:
    pipeline.endpoint.set(latency_ms=50)
    _all_at_work(pipeline, pipeline.team(relays, claim_size=50, concurrency=2, lease_seconds=20))
    pipeline.recover()
    result = finish(f"{relays} relays at once")
    assert result.duplicated == result.attempts_spent == result.dead_lettered == 0


def test_three_relays_take_over_from_a_killed_fourth(pipeline: Pipeline, finish: Finish) -> None:
    pipeline.endpoint.set(latency_ms=50)
    team = pipeline.team(4, claim_size=50)
    _all_at_work(pipeline, team)
    pipeline.endpoint.set(hold=True)
    pipeline.wait(lambda: pipeline.endpoint.held() > 3 * CONCURRENCY, "each waits for an answer")
    pipeline.stand_still()
    claimed = pipeline.kill(team[0])
    assert pipeline.in_flight
    pipeline.recover()
    result = finish("one of four relays killed")
    assert pipeline.duplicates() <= pipeline.in_flight
    assert pipeline.tried_again() <= claimed
    assert result.dead_lettered == 0


def test_a_relay_frozen_beyond_its_lease_is_fenced(pipeline: Pipeline, finish: Finish) -> None:
    # With one sender, all that it is about to send has been sent when its answer is held.
    slow = pipeline.relay(concurrency=1)
    pipeline.work_until(delivered=500)
    pipeline.hold_sends(accepted=True, senders=1)
    slow.freeze()
    pipeline.stand_still()  # What it had sent is still executed.
    claimed = pipeline.note_sent(slow)
    pipeline.recover()
    quick = pipeline.relay()
    pipeline.wait(
        lambda: not pipeline.claimed(slow) and pipeline.pending() == 0, "the other one takes over", seconds=60
    )
    settled = pipeline.query(_SETTLED)
    sends = len(pipeline.requests())
    quick.kill()
    slow.thaw()
    pipeline.wait(lambda: slow.has_counted("LeaseLost"), "it learns that it lost its lease")
    result = finish("lease ran out under a frozen relay")
    assert pipeline.duplicates() <= pipeline.in_flight
    assert pipeline.tried_again() <= claimed
    assert result.dead_lettered == 0
    # Its late settlement changed nothing, and it sent no more of a claim that it had lost.
    assert pipeline.query(_SETTLED) == settled
    assert len(pipeline.requests()) == sends


@pytest.mark.parametrize("hours", [-30, 30])
def test_relay_with_a_wrong_clock_claims_nothing_early(pipeline: Pipeline, finish: Finish, hours: float) -> None:
    # By that relay's clock, every lease has run out, or none ever will.
    pipeline.endpoint.set(latency_ms=50)
    right, wrong = pipeline.team(2, claim_size=50, clock_hours=hours)
    _all_at_work(pipeline, [right, wrong])
    assert pipeline.tried_again() == set()
    pipeline.endpoint.set(hold=True)
    pipeline.wait(lambda: pipeline.endpoint.held() > CONCURRENCY, "each waits for an answer")
    pipeline.stand_still()
    claimed = pipeline.kill(right)
    assert pipeline.in_flight
    pipeline.recover()
    result = finish(f"clock {hours:+} hours wrong, its neighbour killed")
    assert pipeline.duplicates() <= pipeline.in_flight
    assert pipeline.tried_again() <= claimed
    assert result.dead_lettered == 0
    assert result.seconds < 60


def _all_at_work(pipeline: Pipeline, team: list[RelayProcess]) -> None:
    seen: set[str] = set()

    def all_seen() -> bool:
        seen.update(pipeline.claimants())
        return seen >= {relay.name for relay in team}

    pipeline.wait(all_seen, "all at work")
