-- name: open_topics
-- The database's time, and the topics that have open rows: one probe of outbox_claimable for each.
WITH RECURSIVE open_topic AS (
    (
        SELECT topic
        FROM outbox
        WHERE delivered_at IS NULL AND dead_lettered_at IS NULL
        ORDER BY topic
        LIMIT 1
    )
    UNION ALL
    SELECT (
        SELECT topic
        FROM outbox
        WHERE delivered_at IS NULL AND dead_lettered_at IS NULL AND topic > open_topic.topic
        ORDER BY topic
        LIMIT 1
    )
    FROM open_topic
    WHERE open_topic.topic IS NOT NULL
)
SELECT clock_timestamp(), ARRAY(SELECT topic FROM open_topic WHERE topic IS NOT NULL)

-- name: claim
-- Takes due rows under a fresh token and a lease, in one short transaction of its own. A row that is still claimed has
-- lost its relay: that attempt is recorded as failed, and the row ends dead-lettered where it was the last one.
-- Returns the claimed rows (state in_flight, with the message) and those given up on (state dead_lettered).
WITH due AS MATERIALIZED (
    -- Rows that another relay is claiming right now are skipped, not waited for.
    -- Each topic is read from where its last claim ended: what lies before is done, and would only be waded through.
    SELECT claimable.*
    FROM unnest(%(topics)s::text[], %(since)s::timestamptz[], %(limits)s::integer[]) AS lane (topic, since, row_limit)
    CROSS JOIN LATERAL (
        SELECT
            id, event_id, topic, payload_bytes, delivery_attempts, claim_token, claimed_by, next_attempt_at
        FROM outbox
        WHERE topic = lane.topic
            AND delivered_at IS NULL
            AND dead_lettered_at IS NULL
            AND next_attempt_at BETWEEN lane.since AND now()
        ORDER BY next_attempt_at, id
        LIMIT lane.row_limit
        FOR UPDATE SKIP LOCKED
    ) AS claimable
),
spent AS (
    UPDATE outbox
    SET
        dead_lettered_at = now(),
        claim_token = NULL,
        claimed_by = NULL,
        last_error = format(
            'gave up after %%s attempts: %%s',
            due.delivery_attempts,
            coalesce(
                CASE WHEN due.claim_token IS NOT NULL THEN 'the lease ran out, the relay did not report back' END,
                outbox.last_error,
                'the limit is lower than the attempts made'
            )
        )
    FROM due
    WHERE outbox.id = due.id AND due.delivery_attempts >= %(max_attempts)s
    RETURNING
        outbox.event_id, outbox.id, outbox.topic, NULL::text AS body, outbox.delivery_attempts, outbox.last_error,
        due.next_attempt_at
),
bounded AS (
    -- As many as fit the byte limit, and always the first.
    SELECT id, next_attempt_at
    FROM (
        SELECT
            id,
            next_attempt_at,
            sum(payload_bytes) OVER (ORDER BY next_attempt_at, id) AS bytes_so_far,
            row_number() OVER (ORDER BY next_attempt_at, id) AS place
        FROM due
        WHERE delivery_attempts < %(max_attempts)s
    ) AS open_rows
    WHERE bytes_so_far <= %(claim_bytes)s OR place = 1
),
lost AS (
    -- Once each: a row that there is no room for stays as it is.
    INSERT INTO delivery_failures (outbox_id, attempt, claimed_by, error)
    SELECT id, delivery_attempts, claimed_by, 'the lease ran out: the relay did not report what became of this attempt'
    FROM due
    WHERE claim_token IS NOT NULL AND (delivery_attempts >= %(max_attempts)s OR id IN (SELECT id FROM bounded))
),
claimed AS (
    UPDATE outbox
    SET
        delivery_attempts = outbox.delivery_attempts + 1,
        claim_token = %(claim_token)s,
        claimed_by = %(claimed_by)s,
        next_attempt_at = now() + make_interval(secs => %(lease_seconds)s)
    FROM bounded
    WHERE outbox.id = bounded.id
    RETURNING
        outbox.event_id, outbox.id, outbox.topic, outbox.payload_json::text AS body, outbox.delivery_attempts,
        NULL::text AS last_error, bounded.next_attempt_at
)
SELECT
    taken.state, taken.id, event_id, taken.topic, taken.body, taken.delivery_attempts, taken.last_error,
    taken.next_attempt_at, events.event_type, events.schema_version, events.trace_id
FROM (
    SELECT 'in_flight' AS state, * FROM claimed
    UNION ALL
    SELECT 'dead_lettered' AS state, * FROM spent
) AS taken
JOIN events USING (event_id)
ORDER BY taken.id

-- name: settle
-- Records outcomes, of one claim or of several. A row whose token no longer matches belongs to another claim: it is left
-- alone and not returned. Returns id, disposition and the row's age in seconds.
WITH outcome AS (
    SELECT *
    FROM unnest(
        %(ids)s::bigint[], %(claim_tokens)s::uuid[], %(dispositions)s::text[], %(message_ids)s::text[],
        %(errors)s::text[], %(delays_seconds)s::double precision[]
    ) AS outcome (id, claim_token, disposition, message_id, error, delay_seconds)
),
settled AS (
    UPDATE outbox
    SET
        claim_token = NULL,
        claimed_by = NULL,
        delivered_at = CASE WHEN outcome.disposition = 'published' THEN now() END,
        message_id = outcome.message_id,
        dead_lettered_at = CASE WHEN outcome.disposition = 'dead_lettered' THEN now() END,
        -- A release without an error leaves the reason of an earlier failure standing.
        last_error = CASE
            WHEN outcome.disposition <> 'published' THEN coalesce(outcome.error, outbox.last_error)
        END,
        delivery_attempts = outbox.delivery_attempts - (outcome.disposition = 'released')::integer,
        next_attempt_at = now() + make_interval(secs => outcome.delay_seconds)
    FROM outcome
    WHERE outbox.id = outcome.id AND outbox.claim_token = outcome.claim_token
    RETURNING outbox.id, outbox.created_at, outbox.delivery_attempts, outcome.disposition, outcome.error
),
failures AS (
    INSERT INTO delivery_failures (outbox_id, attempt, claimed_by, error)
    SELECT id, delivery_attempts, %(claimed_by)s, error
    FROM settled
    WHERE disposition IN ('failed', 'dead_lettered')
)
SELECT id, disposition, extract(epoch FROM now() - created_at)::double precision FROM settled

-- name: settled_before
-- Which of these messages are settled as published, by the very ids that the queue gave them: where the answer to a
-- settlement was lost. Returns as settle does.
SELECT outbox.id, 'published', extract(epoch FROM outbox.delivered_at - outbox.created_at)::double precision
FROM unnest(%(ids)s::bigint[], %(message_ids)s::text[]) AS sent (id, message_id)
JOIN outbox ON outbox.id = sent.id AND outbox.message_id = sent.message_id

-- name: backlog
-- How many promises are open, and the age in seconds of the oldest (0 where there is none).
SELECT
    count(*),
    coalesce(extract(epoch FROM now() - min(created_at)), 0)::double precision
FROM outbox
WHERE delivered_at IS NULL AND dead_lettered_at IS NULL

-- name: take_over
-- Puts a relay on duty in the place of whoever was.
INSERT INTO relay_duty AS duty (token, name)
VALUES (%(token)s, %(name)s)
ON CONFLICT (only_one) DO UPDATE
SET token = excluded.token, name = excluded.name, since = now()

-- name: is_on_duty
-- Returns a row while the post is this relay's.
SELECT name
FROM relay_duty
WHERE token = %(token)s

-- name: leave
-- Leaves the post empty, if it is still this relay's.
DELETE FROM relay_duty
WHERE token = %(token)s
