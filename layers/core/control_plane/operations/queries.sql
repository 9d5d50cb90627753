-- name: request_operation
-- Records what somebody wants. Planning begins with the engine's next look.
SELECT request_operation(
    %(operation_id)s, %(kind)s, %(subscription)s, %(filter)s::jsonb, %(rate)s, %(requested_by)s, %(reason)s
)

-- name: operation
-- One operation, as it stands.
SELECT operation.*, is_stalled(operation)
FROM operations AS operation
WHERE operation_id = %(operation_id)s

-- name: operations
-- The operations of a kind, a subscription and some states, newest first; null is any. A page goes on after the last one
-- of the page before. A filter and a plan of more than 4,000 bytes are left out, and their size is told instead.
SELECT
    operation_id, kind, subscription,
    CASE
        WHEN octet_length(filter::text) > 4000 THEN jsonb_build_object('left_out_bytes', octet_length(filter::text))
        ELSE filter
    END AS filter,
    CASE
        WHEN octet_length(plan::text) > 4000 THEN jsonb_build_object('left_out_bytes', octet_length(plan::text))
        ELSE plan
    END AS plan,
    plan_hash, state, progress, rate, requested_by, reason, requested_at,
    planned_at, started_by, started_at, finished_at, next_step_at, last_step_at, failures, error,
    is_stalled(operation)
FROM operations AS operation
WHERE (%(kind)s::text IS NULL OR kind = %(kind)s)
    AND (%(subscription)s::text IS NULL OR subscription = %(subscription)s)
    AND (%(states)s::text[] IS NULL OR state = ANY (%(states)s::text[]))
    AND (
        %(after_id)s::uuid IS NULL
        OR (requested_at, operation_id) < (%(after_at)s::timestamptz, %(after_id)s::uuid)
    )
ORDER BY requested_at DESC, operation_id DESC
LIMIT %(limit)s

-- name: queue_for_operation
-- Waits for whoever works on an operation, or commands it, in the order of arrival: the row's lock alone would let an
-- engine make one step after the other while a command waits.
SELECT pg_advisory_xact_lock(hashtextextended('operation ' || %(operation_id)s::text, 0))

-- name: lock_operation
-- Locks an operation until the transaction ends: a step that is under way is waited for.
SELECT lock_operation(%(operation_id)s)

-- name: start_operation
-- Starts a planned operation by its plan's hash; false where the plan is too old.
SELECT start_operation(%(operation_id)s, %(plan_hash)s, %(by)s, %(reason)s, %(rate)s)

-- name: pause_operation
-- Pauses an operation: no further step is made.
SELECT pause_operation(%(operation_id)s, %(by)s)

-- name: resume_operation
-- Lets a paused or failed operation go on.
SELECT resume_operation(%(operation_id)s, %(by)s)

-- name: set_operation_rate
-- Sets an operation's rate. The next step is due at once.
SELECT set_operation_rate(%(operation_id)s, %(by)s, %(rate)s)

-- name: cancel_operation
-- Ends an operation, and takes from what is done what was taken back.
SELECT cancel_operation(%(operation_id)s, %(by)s, %(taken_back)s)

-- name: active_operations
-- The operations beside which others may not run, oldest first: those that are running or paused, and failed rebuilds.
SELECT operation_id, kind, subscription, state
FROM operations
WHERE state IN ('running', 'paused') OR state = 'failed' AND kind = 'rebuild' AND started_at IS NOT NULL
ORDER BY started_at

-- name: claim_operation
-- Takes the operation that has been due for longest, under a lease and a fence.
UPDATE operations
SET fence = fence + 1, lease_until = now() + make_interval(secs => %(lease_seconds)s)
WHERE operation_id = (
    SELECT operation_id
    FROM operations
    WHERE state IN ('planning', 'running')
        AND kind = ANY (%(kinds)s::text[])
        AND (%(only)s::uuid IS NULL OR operation_id = %(only)s)
        AND next_step_at <= now()
        AND (lease_until IS NULL OR lease_until <= now())
    ORDER BY next_step_at
    LIMIT 1
    FOR UPDATE SKIP LOCKED
)
RETURNING operation_id, fence, kind

-- name: operation_to_prepare
-- The operation that is to make a step, under a lease that lasts until what the step waits for is there; no row if the
-- claim was superseded, or it is due no longer.
UPDATE operations AS operation
SET lease_until = clock_timestamp() + make_interval(secs => %(lease_seconds)s)
WHERE operation_id = %(operation_id)s
    AND fence = %(fence)s
    AND state IN ('planning', 'running')
    AND next_step_at <= clock_timestamp()
RETURNING operation.*, is_stalled(operation)

-- name: claimed_operation
-- The operation that is to make a step, locked; no row if the claim was superseded, or it is due no longer.
SELECT operation.*, is_stalled(operation)
FROM operations AS operation
WHERE operation_id = %(operation_id)s
    AND fence = %(fence)s
    AND state IN ('planning', 'running')
    AND next_step_at <= clock_timestamp()
FOR UPDATE

-- name: record_plan
-- Keeps what a step of planning has come to; a complete plan has a hash.
UPDATE operations
SET
    plan = %(plan)s::jsonb,
    plan_hash = %(plan_hash)s::text,
    planned_at = CASE WHEN %(plan_hash)s::text IS NOT NULL THEN now() END,
    state = CASE WHEN %(plan_hash)s::text IS NOT NULL THEN 'planned' ELSE state END,
    progress = %(progress)s::jsonb,
    last_step_at = clock_timestamp(),
    next_step_at = clock_timestamp(),
    lease_until = clock_timestamp() + make_interval(secs => %(lease_seconds)s),
    failures = 0,
    error = NULL
WHERE operation_id = %(operation_id)s

-- name: record_step
-- Keeps the progress of a step, in the step's own transaction.
UPDATE operations
SET
    progress = %(progress)s::jsonb,
    state = CASE WHEN %(is_finished)s THEN 'done' ELSE state END,
    finished_at = CASE WHEN %(is_finished)s THEN now() END,
    last_step_at = clock_timestamp(),
    next_step_at = coalesce(%(next_at)s::timestamptz, clock_timestamp()),
    lease_until = clock_timestamp() + make_interval(secs => %(lease_seconds)s),
    failures = 0,
    error = NULL
WHERE operation_id = %(operation_id)s

-- name: record_failed_step
-- Counts an attempt at a step that failed, and puts off the next one; the last one ends the operation.
UPDATE operations
SET
    failures = failures + 1,
    error = %(error)s,
    state = CASE WHEN %(is_last)s OR failures + 1 >= %(most_failures)s THEN 'failed' ELSE state END,
    finished_at = CASE WHEN %(is_last)s OR failures + 1 >= %(most_failures)s THEN now() END,
    next_step_at = now() + make_interval(secs => least(%(delay_seconds)s * 2 ^ failures, 60)),
    lease_until = NULL
WHERE operation_id = %(operation_id)s AND fence = %(fence)s AND state IN ('planning', 'running')
RETURNING state

-- name: release_operation
-- Gives a claim back before its lease runs out.
UPDATE operations SET lease_until = NULL WHERE operation_id = %(operation_id)s AND fence = %(fence)s

-- name: next_step_at
-- In how many seconds the next step of any operation is due, or may be because a lease has run out; null for none.
SELECT extract(epoch FROM min(greatest(next_step_at, lease_until)) - clock_timestamp())::double precision
FROM operations
WHERE state IN ('planning', 'running') AND kind = ANY (%(kinds)s::text[])

-- name: cancel_old_plans
-- Cancels what was planned a day ago and not started.
UPDATE operations
SET state = 'cancelled', finished_at = now(), error = 'it was not started within a day of its planning'
WHERE state = 'planned' AND planned_at < now() - interval '1 day'

-- name: forget_items
-- Deletes the frozen items of operations that have ended for good.
DELETE FROM operation_items AS item
USING operations AS operation
WHERE operation.operation_id = item.operation_id AND operation.state IN ('done', 'cancelled')

-- name: count_operations
-- How many operations are planning, running or paused, and how many of them are stalled.
SELECT
    count(*) FILTER (WHERE state <> 'planned'),
    count(*) FILTER (WHERE is_stalled(operation))
FROM operations AS operation
WHERE state IN ('planning', 'planned', 'running', 'paused')

-- name: newest_letter
-- The id of the newest dead letter; 0 for none.
SELECT coalesce(max(id), 0) FROM dead_letters

-- name: freeze_letters
-- Freezes the next letters that a redrive's filter selects; looked_at is null when all are.
SELECT ids, chosen, inactive, unknown, looked_at
FROM freeze_letters(%(operation_id)s, %(after_id)s, %(last_id)s, %(most)s)

-- name: redrive_letters
-- Makes the next frozen letters' messages pending again. Returns how many, how many were skipped, and whether any remain.
SELECT done, skipped, remain
FROM redrive_letters(%(operation_id)s, %(most)s, %(gap_seconds)s)

-- name: subscriptions_of
-- The active subscriptions of a topic, or the one of this name, each with its topic.
SELECT name, topic
FROM subscriptions
WHERE removed_at IS NULL
    AND (%(topic)s::text IS NULL OR topic = %(topic)s)
    AND (%(name)s::text IS NULL OR name = %(name)s)
ORDER BY name

-- name: freeze_window
-- The last message, the oldest transaction that has not ended, and how many of the newest messages are left out for it.
SELECT last_outbox_id, stored_before, left_out
FROM freeze_window(%(topic)s)

-- name: oldest_writer
-- The oldest transaction that writes, other than this one.
SELECT kind, name, username, application, age_seconds
FROM (
    SELECT
        'session' AS kind,
        pid::text AS name,
        usename::text AS username,
        application_name AS application,
        extract(epoch FROM clock_timestamp() - xact_start)::double precision AS age_seconds,
        age(backend_xid) AS transactions
    FROM pg_stat_activity
    WHERE backend_xid IS NOT NULL AND pid <> pg_backend_pid()
    UNION ALL
    SELECT
        'prepared transaction', gid, owner::text, NULL,
        extract(epoch FROM clock_timestamp() - prepared)::double precision, age(transaction)
    FROM pg_prepared_xacts
) AS writer
ORDER BY transactions DESC
LIMIT 1

-- name: processed_since
-- Since when, by their storing, a consumer has a record of all events that it has processed; null for none.
SELECT processed_since(%(consumer)s)

-- name: plan_replay
-- Counts the next messages that a replay would send again; looked_at is null when its window is done.
SELECT messages, oldest, sample, looked_at
FROM plan_replay(%(operation_id)s, %(after_id)s, %(most)s, %(most_sampled)s)

-- name: promise_replay
-- Promises the next messages of a replay, spread in time; looked_at is null when its window is done.
SELECT messages, promised, looked_at
FROM promise_replay(
    %(operation_id)s, %(after_id)s, %(most)s, %(looks)s, %(first_due)s::timestamptz, %(gap_seconds)s
)

-- name: withdraw_replay
-- Takes back what a replay has promised and no relay has claimed. Returns how many deliveries that were.
SELECT withdraw_replay(%(operation_id)s)

-- name: database_now
-- The database's time at this moment.
SELECT clock_timestamp()
