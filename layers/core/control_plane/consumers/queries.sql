-- name: mark_processed
-- Returns a row where this consumer sees the event for the first time. Waits for another delivery of it under way.
INSERT INTO processed_events (consumer, event_id)
VALUES (%(consumer)s, %(event_id)s)
ON CONFLICT DO NOTHING
RETURNING event_id
