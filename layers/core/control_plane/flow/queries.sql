-- name: fold
-- Folds what was counted more than a minute ago, so many rows at most. Returns how many it was.
SELECT fold_flow(%(most)s)

-- name: now
-- The database's time, at the beginning of the transaction.
SELECT now()

-- name: bounds
-- The upper bounds of the buckets of durations, in seconds.
SELECT flow_bounds()

-- name: counts
-- How much ever happened, by what it was and by bucket of its duration, in one snapshot.
SELECT stage, name, outcome, bucket, n, seconds, newest_at
FROM flow_counts
ORDER BY stage, name, outcome, bucket NULLS FIRST

-- name: examples
-- Of each kind and bucket the trace of one of those that were counted, and its duration: of the last minute's where it has
-- any. However much is not folded, this looks at 10,000 rows of it at most.
SELECT DISTINCT ON (stage, name, outcome, bucket) stage, name, outcome, bucket, trace_id, trace_seconds
FROM (
    SELECT stage, name, outcome, bucket, trace_id, trace_seconds, traced_at
    FROM flow_totals
    WHERE trace_id IS NOT NULL
    UNION ALL
    (
        SELECT stage, name, outcome, bucket, trace_id, trace_seconds, at
        FROM flow_deltas
        WHERE trace_id IS NOT NULL AND at > now() - interval '1 minute'
        LIMIT 10000
    )
) AS traced
ORDER BY stage, name, outcome, bucket, traced_at DESC

-- name: unfolded
-- What is counted and not folded yet, by minute: how much, how much of it in the last sixty seconds, and when the newest
-- was. The minute 0 is the one that is not over yet. It is read once, because a minute of a busy flow is many rows.
SELECT
    stage,
    name,
    outcome,
    (extract(epoch FROM date_trunc('minute', now()) - minute) / 60)::integer,
    n::bigint,
    n_last_minute::bigint,
    newest_at
FROM (
    SELECT
        stage,
        name,
        outcome,
        date_bin('1 minute', at, 'epoch'::timestamptz) AS minute,
        sum(n) AS n,
        coalesce(sum(n) FILTER (WHERE at > now() - interval '1 minute'), 0) AS n_last_minute,
        max(at) AS newest_at
    FROM flow_deltas
    GROUP BY stage, name, outcome, minute
) AS counted

-- name: folded_minutes
-- How much happened in each of the last sixty minutes, as far as it is folded. The subqueries are evaluated once, which
-- now() in a condition is not.
SELECT
    stage,
    name,
    outcome,
    (date_part('epoch', (SELECT date_trunc('minute', now())) - minute) / 60)::integer,
    n
FROM flow_minutes
WHERE minute >= (SELECT date_trunc('minute', now()) - interval '60 minutes')

-- name: folded_parts
-- The parts of each stage, as far as they are folded: when something last happened to each, and when it last succeeded.
SELECT stage, name, max(newest_at), max(newest_at) FILTER (WHERE outcome = 'fetched')
FROM flow_totals
GROUP BY stage, name

-- name: fold_age
-- The age in seconds of the oldest count that is not folded yet, 0 if there is none.
SELECT coalesce(extract(epoch FROM clock_timestamp() - min(at)), 0)::double precision
FROM flow_deltas

-- name: subscriptions
-- Per subscription what is open: at most 10,000 pending deliveries and 1,000 dead letters are counted, so that the cost
-- does not grow with a backlog. BETWEEN and the order leave Postgres the one index that has no other's letters. The age is
-- of the live flow: what an operation has promised may be paced over hours.
SELECT
    subscription.name AS subscription,
    subscription.topic,
    subscription.removed_at IS NULL AS is_active,
    pending.count AS pending,
    extract(epoch FROM clock_timestamp() - pending.oldest)::double precision AS oldest_pending_age_seconds,
    (
        SELECT count(*)
        FROM (
            SELECT FROM dead_letters AS letter
            WHERE letter.subscription BETWEEN subscription.name AND subscription.name AND letter.resolution IS NULL
            ORDER BY letter.subscription, letter.id
            LIMIT 1000
        ) AS letters
    ) AS dead_letters,
    coalesce(breaker.state, 'closed') AS breaker,
    breaker.held_by
FROM subscriptions AS subscription
LEFT JOIN circuit_breakers AS breaker USING (name)
CROSS JOIN LATERAL (
    SELECT count(*), min(promised_at) FILTER (WHERE operation_id IS NULL) AS oldest
    FROM (
        (
            SELECT promised_at, operation_id FROM pending_deliveries AS due
            WHERE due.subscription = subscription.name AND due.suspect_since IS NULL
            ORDER BY next_attempt_at, outbox_id
            LIMIT 10000
        )
        UNION ALL
        (
            SELECT promised_at, operation_id FROM pending_deliveries AS due
            WHERE due.subscription = subscription.name AND due.suspect_since IS NOT NULL
            ORDER BY next_attempt_at, outbox_id
            LIMIT 1000
        )
    ) AS open
) AS pending
ORDER BY subscription.name

-- name: events
-- When the newest event was stored, and how many were in the last minute, up to 10,000. No index serves a condition on
-- clock_timestamp(), so this asks now().
SELECT
    (SELECT ingested_at FROM events ORDER BY seq DESC LIMIT 1) AS newest_ingested_at,
    (
        SELECT count(*)
        FROM (SELECT FROM events WHERE ingested_at > now() - interval '1 minute' LIMIT 10000) AS newest
    ) AS ingested_last_minute

-- name: open_dead_letters
-- How many dead letters of each kind are open, up to 1,000 of each.
SELECT
    kind,
    (
        SELECT count(*)
        FROM (
            SELECT FROM dead_letters
            WHERE dead_letters.kind BETWEEN one.kind AND one.kind AND resolution IS NULL
            ORDER BY dead_letters.kind, id
            LIMIT 1000
        ) AS letter
    )
FROM unnest(ARRAY['consumer', 'invocation', 'relay']) AS one (kind)

-- name: newest_dead_letters
-- The three newest of the open dead letters, with the beginnings of their reasons, and the age in seconds of the oldest one.
SELECT
    letter.id,
    letter.kind,
    letter.subscription,
    letter.dead_lettered_at,
    left(letter.reason, 300) AS reason,
    (
        SELECT extract(epoch FROM clock_timestamp() - oldest.dead_lettered_at)::double precision
        FROM dead_letters AS oldest
        WHERE oldest.resolution IS NULL
        ORDER BY oldest.id
        LIMIT 1
    ) AS oldest_age_seconds
FROM dead_letters AS letter
WHERE letter.resolution IS NULL
ORDER BY letter.id DESC
LIMIT 3

-- name: spending
-- What agents have cost on this day (UTC), and may cost, in millionths of a US dollar; null where none was asked.
SELECT sum(spent_micros)::bigint AS spent_micros, sum(limit_micros)::bigint AS limit_micros
FROM budgets
WHERE day = (clock_timestamp() AT TIME ZONE 'UTC')::date

-- name: open_decisions
-- Of the decisions that are open, up to 10,000: per playbook how many, and the age in seconds of the oldest that is at work.
-- One that waits for a person's answer or for what the market does is as old as they take.
SELECT
    playbook,
    count(*),
    extract(
        epoch FROM clock_timestamp() - min(opened_at) FILTER (WHERE state NOT IN ('awaiting_approval', 'observing'))
    )::double precision
FROM (SELECT playbook, state, opened_at FROM decisions WHERE closed_at IS NULL LIMIT 10000) AS open
GROUP BY playbook
ORDER BY playbook

-- name: open_actions
-- Of the decisions that are open, up to 10,000: the actions that are released and not executed, with the oldest one's age in
-- seconds, per type.
SELECT action_type, count(*), extract(epoch FROM clock_timestamp() - min(released_at))::double precision
FROM (SELECT decision_id FROM decisions WHERE closed_at IS NULL LIMIT 10000) AS open
JOIN actions AS action USING (decision_id)
WHERE NOT EXISTS (SELECT FROM executions AS done WHERE done.action_id = action.action_id)
GROUP BY action_type
ORDER BY action_type

-- name: waiting_approvals
-- Of the decisions that are open, up to 10,000: how many approvals a person is asked for, and the oldest one's age in
-- seconds; null for none.
SELECT count(*), extract(epoch FROM clock_timestamp() - min(requested_at))::double precision
FROM (
    SELECT decision_id FROM decisions WHERE closed_at IS NULL AND state IN ('proposed', 'awaiting_approval') LIMIT 10000
) AS open
JOIN approval_requests AS request USING (decision_id)
WHERE request.expires_at > clock_timestamp()
    AND NOT EXISTS (SELECT FROM approvals WHERE approvals.approval_id = request.approval_id)

-- name: breakers
-- The breakers that are in use.
SELECT name, state, opened_at, retry_at, held_by, held_reason, last_error
FROM circuit_breakers
WHERE guarded_at > now() - interval '15 minutes'
ORDER BY name

-- name: switches_off
-- What is switched off, the newest first, 100 at most.
SELECT scope, set_at AS since, reason, set_by AS "by"
FROM switches
WHERE is_off
ORDER BY set_at DESC
LIMIT 100

-- name: operations
-- The operations that are under way, or failed within a day: how far they are, and whether they should be at work and have
-- made no step for five minutes.
SELECT
    operation_id,
    kind,
    state,
    coalesce((progress ->> 'done')::bigint, 0) AS done,
    coalesce((progress ->> 'total')::bigint, 0) AS total,
    is_stalled(operation)
FROM operations AS operation
WHERE state IN ('planning', 'planned', 'running', 'paused') OR state = 'failed' AND finished_at > now() - interval '1 day'
ORDER BY requested_at DESC
LIMIT 100
