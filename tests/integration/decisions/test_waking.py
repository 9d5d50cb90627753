"""Whatever dies or is lost, and whenever: a decision is looked at again, and one that cannot go on is closed."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from tests.integration.decisions.world import World, anomaly

from control_plane.model.decision_events import GATEKEEPER_WORK
from control_plane.platform.database import connect

type MakeWorld = Callable[..., World]


def test_a_message_while_the_holder_leaves_is_not_lost(world: World) -> None:
    world.deaf = {GATEKEEPER_WORK}
    world.detect(anomaly())
    world.run()
    decision_id = world.record().decision.decision_id
    claim = "SELECT fence FROM claim_decision(%s, 'holder', 60)"
    row = world.decide.execute(claim, [decision_id]).fetchone()
    ((wake_seq,),) = world.rows("SELECT wake_seq FROM decisions")
    assert row is not None
    with (
        connect(world.database.url("acp_decide"), application_name="other") as other,
        ThreadPoolExecutor(1) as executor,
    ):
        with world.decide.transaction():
            left = world.decide.execute("SELECT leave_decision(%s, %s, %s)", [decision_id, row[0], wake_seq]).fetchone()
            assert left == ("left",)
            # It sees the lease as held until this commits, and waits for the row in the end.
            claimed = executor.submit(lambda: other.execute(claim, [decision_id]).fetchone())
            while world.rows("SELECT cardinality(pg_blocking_pids(%s))", other.info.backend_pid) != [(1,)]:
                assert not claimed.done()
        assert claimed.result() == (row[0] + 1,), "nobody looks at what the message was about"
