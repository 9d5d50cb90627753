-- name: record_failure
-- Records that a consumer failed on a message, and keeps the newest failures of that message alone.
SELECT record_consume_failure(
    %(subscription)s::text, %(message_id)s::text, %(event_id)s::uuid, %(trace_id)s::uuid, %(attempt)s::integer, %(error)s::text
)

-- name: store_dead_letters
-- Stores messages of dead-letter queues, given as a JSON array, each once. Returns a row for each that is new.
SELECT * FROM store_dead_letters(%(letters)s::json)

-- name: mark_processed
-- Tells whether this consumer sees the event for the first time, and counts it as processed or as a duplicate. Waits for
-- another delivery of it under way.
WITH marked AS (
    INSERT INTO processed_events (consumer, event_id)
    VALUES (%(consumer)s, %(event_id)s)
    ON CONFLICT DO NOTHING
    RETURNING event_id
)
SELECT count_consumed(%(consumer)s, %(event_id)s, EXISTS (SELECT FROM marked), false)

-- name: mark_replayed
-- Tells whether this consumer sees the event for the first time under this operation, if that is a replay; under any other
-- operation it is an event like any other. Counts it, and waits for another delivery of it under way.
WITH marked AS (
    INSERT INTO processed_events (consumer, event_id, operation_id)
    VALUES (
        %(consumer)s,
        %(event_id)s,
        (SELECT operation_id FROM operations WHERE operation_id = %(operation_id)s AND kind = 'replay')
    )
    ON CONFLICT DO NOTHING
    RETURNING operation_id
)
SELECT count_consumed(
    %(consumer)s, %(event_id)s, EXISTS (SELECT FROM marked), EXISTS (SELECT FROM marked WHERE operation_id IS NOT NULL)
)

-- name: is_rebuilding
-- Whether a consumer is being rebuilt; until the transaction ends, no rebuild of it begins or ends.
SELECT is_rebuilding(%(consumer)s)

-- name: spoil_rebuild
-- Notes that a consumer could not write to the shadows of its tables.
SELECT spoil_rebuild(%(consumer)s, %(error)s)
