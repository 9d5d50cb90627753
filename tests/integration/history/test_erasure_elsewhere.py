"""An erasure reaches what queues still hold, and what names its subject beside the record."""

import json
from typing import Any
from uuid import UUID, uuid4

from psycopg import Connection
from tests.integration import seeds
from tests.integration.history import running
from tests.integration.history.test_erasure import ERASURE, mentions
from tests.integration.history.test_retention import count
from tests.integration.test_letters import letter

from control_plane.consumers.letters import store_letters
from control_plane.ingestion.store import store_events
from control_plane.model.domain import OnReplay
from control_plane.model.lifecycle import Accepted
from control_plane.operations.replay import Replay
from domains.finance import signal_lab

REPLAY = Replay({"signal_lab": OnReplay.SAFE})


def test_a_replayed_message_that_a_queue_still_holds_changes_nothing(
    app: Connection[Any], owner: Connection[Any], maintain: Connection[Any]
) -> None:
    with app.transaction():
        (event,) = store_events(app, [], seeds.ticks(1, entity_id="ZZERASED")).events
    seeds.settle(app, seeds.claim(app), Accepted("m"))
    assert signal_lab.consume(app, event)
    replays = [running.run(owner, maintain, REPLAY, {"subscription": "signal_lab"}).operation_id for _ in range(2)]
    owner.execute("UPDATE pending_deliveries SET next_attempt_at = now() WHERE operation_id = %s", [replays[0]])
    owner.execute("UPDATE pending_deliveries SET next_attempt_at = 'infinity' WHERE operation_id = %s", [replays[1]])
    seeds.settle(app, seeds.claim(app), Accepted("m2"))
    running.run(owner, maintain, ERASURE, {"entity_id": "ZZERASED"})
    assert [signal_lab.consume(app, event, replay) for replay in replays] == [False, False]
    assert count(owner, "signal_lab_bars") == 0


def test_a_letter_of_what_is_erased_keeps_nothing_of_it(
    app: Connection[Any], owner: Connection[Any], maintain: Connection[Any]
) -> None:
    event_ids = seeds.store(app, [*seeds.ticks(1, entity_id="ZZERASED"), seeds.tick(3)])
    seeds.settle(app, seeds.claim(app), Accepted("m"))
    bodies = dict(owner.execute("SELECT event_id, payload_json::text FROM outbox").fetchall())
    running.run(owner, maintain, ERASURE, {"entity_id": "ZZERASED"})
    unknown = uuid4()
    letters = [
        letter(
            body.encode(),
            number,
            event_id=str(event_id),
            attributes={"of": body},
            reason=f"no luck with {body}",
        )
        for number, (event_id, body) in enumerate([*bodies.items(), (unknown, "{}")])
    ]
    stored = {UUID(str(one.event_id)): one for one in store_letters(app, letters)}
    assert not stored[event_ids[0]].is_redrivable
    assert stored[event_ids[1]].is_redrivable
    lengths = dict(owner.execute("SELECT event_id, octet_length(body) FROM dead_letters").fetchall())
    assert lengths == {event_ids[0]: 0, event_ids[1]: len(bodies[event_ids[1]].encode()), unknown: 2}
    assert mentions(owner, "ZZERASED") == []


def test_other_operations_answers_and_files_forget_it(
    app: Connection[Any], owner: Connection[Any], maintain: Connection[Any]
) -> None:
    seeds.store(app, [*seeds.ticks(2, entity_id="ZZERASED"), seeds.tick(3)])
    named = running.plan(owner, maintain, REPLAY, {"subscription": "signal_lab", "entity_id": "ZZERASED"})
    sampled = running.plan(owner, maintain, REPLAY, {"subscription": "signal_lab"})
    other = running.plan(owner, maintain, REPLAY, {"subscription": "signal_lab", "entity_id": "AAPL"})
    for number, entity in enumerate(("ZZERASED", "AAPL")):
        owner.execute(
            "INSERT INTO idempotency_keys (token, key, request_sha256, status, body)"
            " VALUES ('kim', %s, sha256(''), 200, %s)",
            [entity[0], json.dumps({"filter": {"entity_id": entity}})],
        )
        body = json.dumps([{"entity_id": entity}])
        owner.execute(
            "INSERT INTO backfill_pieces (file_sha256, number, sha256, observations, body)"
            " VALUES (%s, 1, encode(sha256(convert_to(%s, 'UTF8')), 'hex'), 1, %s)",
            [str(number) * 64, body, body],
        )
    running.run(owner, maintain, ERASURE, {"entity_id": "ZZERASED"})
    assert mentions(owner, "ZZERASED") == []
    # Its filter still selects by an entity, or else it would send everything.
    assert running.read(owner, named.operation_id).filter["entity_id"].startswith("erased by ")
    assert running.read(owner, sampled.operation_id).plan["sample"] == []
    kept = running.read(owner, other.operation_id)
    assert (kept.filter, kept.plan) == (other.filter, other.plan)
    assert [row[0] for row in owner.execute("SELECT file_sha256 FROM backfill_pieces")] == ["1" * 64]
    answers = owner.execute("SELECT key, body::text FROM idempotency_keys ORDER BY key").fetchall()
    assert answers == [("A", '{"filter": {"entity_id": "AAPL"}}'), ("Z", "{}")]
