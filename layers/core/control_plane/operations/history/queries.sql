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
