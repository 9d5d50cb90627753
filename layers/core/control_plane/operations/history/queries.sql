-- name: count_erasable
-- How many rows of what an erasure would remove now, and how many decisions it has to wait for.
SELECT what, counted
FROM count_erasable(%(operation_id)s::uuid)

-- name: erase_step
-- Removes one bounded batch of what an erasure is about; no row once nothing is left.
SELECT what, removed, event_ids
FROM erase_step(%(operation_id)s::uuid, %(most)s::integer)

-- name: finish_erasure
-- Puts the counts on the erasure's tombstone, and takes what it was about out of its operation.
SELECT finish_erasure(%(operation_id)s::uuid, %(removed)s::jsonb)

-- name: plan_rebuild
-- How many events a consumer has processed (in the row without a table), and per table how many rows there are and of how many the
-- event, or the record of its processing, is gone.
SELECT table_name, held, without_event
FROM plan_rebuild(%(consumer)s)

-- name: begin_rebuild
-- Makes the shadow tables and has the consumer write to both; returns up to where events are to be folded.
SELECT begin_rebuild(%(operation_id)s::uuid)

-- name: rebuild_state
-- Where a rebuild stands; no row before it has begun, and after it has ended.
SELECT until_seq, is_equal, accepted_by, spoiled_by
FROM rebuilds
WHERE operation_id = %(operation_id)s

-- name: rebuild_events
-- The next events of a rebuild as they were published, with their sequence numbers; null for what the consumer has not processed.
SELECT seq, body
FROM rebuild_events(
    %(operation_id)s::uuid, %(topic)s, %(event_types)s::text[], %(after_seq)s::bigint, %(most)s::integer
)

-- name: compare_rebuild
-- Each table beside its shadow, in one snapshot: their rows, and a digest of those.
SELECT table_name, live_rows, live_digest, shadow_rows, shadow_digest
FROM compare_rebuild(%(operation_id)s::uuid)

-- name: judge_rebuild
-- Notes whether tables and shadows were equal.
SELECT judge_rebuild(%(operation_id)s::uuid, %(is_equal)s)

-- name: accept_rebuild
-- Accepts that tables and shadows differ; false where no rebuild of this id waits for it.
SELECT accept_rebuild(%(operation_id)s::uuid, %(accepted_by)s)

-- name: swap_rebuild
-- Puts the shadows in the tables' place.
SELECT swap_rebuild(%(operation_id)s::uuid)

-- name: end_rebuild
-- Gives a rebuild up: its shadow tables are dropped, and the consumer writes to its own alone.
SELECT end_rebuild(%(operation_id)s::uuid)
