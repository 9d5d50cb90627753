-- name: open_subscriptions
-- The database's time, and the subscriptions that have pending deliveries: one probe of each of the two indexes per
-- subscription.
WITH RECURSIVE ordinary AS (
    (
        SELECT subscription
        FROM pending_deliveries
        WHERE suspect_since IS NULL
        ORDER BY subscription
        LIMIT 1
    )
    UNION ALL
    SELECT (
        SELECT subscription
        FROM pending_deliveries
        WHERE suspect_since IS NULL AND subscription > ordinary.subscription
        ORDER BY subscription
        LIMIT 1
    )
    FROM ordinary
    WHERE ordinary.subscription IS NOT NULL
),
suspect AS (
    (
        SELECT subscription
        FROM pending_deliveries
        WHERE suspect_since IS NOT NULL
        ORDER BY subscription
        LIMIT 1
    )
    UNION ALL
    SELECT (
        SELECT subscription
        FROM pending_deliveries
        WHERE suspect_since IS NOT NULL AND subscription > suspect.subscription
        ORDER BY subscription
        LIMIT 1
    )
    FROM suspect
    WHERE suspect.subscription IS NOT NULL
)
SELECT
    clock_timestamp(),
    ARRAY(
        SELECT subscription FROM ordinary WHERE subscription IS NOT NULL
        UNION
        SELECT subscription FROM suspect WHERE subscription IS NOT NULL
    )

-- name: claim
-- Takes due deliveries under a fresh token and a lease, in one short transaction of its own. Returns what became of each
-- row it took: claimed, with the message; exhausted, which is claimed to be dead-lettered; or lost, which is not claimed:
-- its relay did not report back, so it gets its attempt back and is suspect from now on.
WITH lane AS (
    SELECT *
    FROM unnest(
        %(subscriptions)s::text[], %(since)s::timestamptz[], %(row_limits)s::integer[], %(suspect_limits)s::integer[],
        %(byte_limits)s::bigint[]
    ) AS lane (subscription, since, row_limit, suspect_limit, byte_limit)
),
ordinary AS MATERIALIZED (
    -- Rows that another relay is claiming right now are skipped, not waited for.
    -- Each lane is read from where its last claim ended: what lies before is done, and would only be waded through.
    SELECT due.*, lane.byte_limit
    FROM lane
    CROSS JOIN LATERAL (
        SELECT ctid AS place, *
        FROM pending_deliveries
        WHERE subscription = lane.subscription
            AND suspect_since IS NULL
            AND next_attempt_at BETWEEN lane.since AND now()
        ORDER BY next_attempt_at, outbox_id
        LIMIT lane.row_limit
        FOR UPDATE SKIP LOCKED
    ) AS due
),
suspect AS MATERIALIZED (
    SELECT due.*, lane.byte_limit
    FROM lane
    CROSS JOIN LATERAL (
        SELECT ctid AS place, *
        FROM pending_deliveries
        WHERE subscription = lane.subscription
            AND suspect_since IS NOT NULL
            AND next_attempt_at <= now()
        ORDER BY next_attempt_at, outbox_id
        LIMIT lane.suspect_limit
        FOR UPDATE SKIP LOCKED
    ) AS due
),
due AS (
    SELECT
        *,
        coalesce(
            payload_bytes, (SELECT octet_length(payload_json::text) FROM outbox WHERE outbox.id = outbox_id)
        ) AS body_bytes,
        -- A lease that ran out is the relay's failure. It counts against a suspect only if the queue took others
        -- meanwhile, and only so often: a relay that is killed takes with it whatever it held, again and again the same.
        delivery_attempts - (
            claim_token IS NOT NULL
            AND (
                suspect_since IS NULL
                OR NOT delivered_since(subscription, suspect_since)
                OR (
                    SELECT mod(count(*) + 1, %(leases_per_attempt)s)
                    FROM delivery_failures AS earlier
                    WHERE earlier.outbox_id = found.outbox_id
                        AND earlier.subscription = found.subscription
                        AND earlier.operation_id IS NOT DISTINCT FROM found.operation_id
                        AND earlier.error = %(lost)s
                ) <> 0
            )
        )::integer AS attempts_made
    FROM (SELECT * FROM ordinary UNION ALL SELECT * FROM suspect) AS found
),
decided AS (
    -- As many bytes as fit the lane's limit, and always the first row.
    SELECT
        *,
        CASE
            WHEN claim_token IS NOT NULL AND suspect_since IS NULL THEN 'lost'
            WHEN attempts_made >= %(max_attempts)s THEN 'exhausted'
            ELSE 'claimed'
        END AS fate
    FROM (
        SELECT
            *,
            sum(body_bytes) OVER running AS bytes_so_far,
            row_number() OVER running AS nth
        FROM due
        WINDOW running AS (PARTITION BY subscription, suspect_since IS NULL ORDER BY next_attempt_at, outbox_id)
    ) AS measured
    WHERE bytes_so_far <= byte_limit OR nth = 1
),
lost AS (
    INSERT INTO delivery_failures (outbox_id, subscription, operation_id, attempt, claimed_by, error)
    SELECT outbox_id, subscription, operation_id, delivery_attempts, claimed_by, %(lost)s
    FROM decided
    WHERE claim_token IS NOT NULL
),
taken AS (
    UPDATE pending_deliveries AS pending
    SET
        claim_token = CASE WHEN fate <> 'lost' THEN %(claim_token)s::uuid END,
        claimed_by = CASE WHEN fate <> 'lost' THEN %(claimed_by)s END,
        delivery_attempts = attempts_made + (fate = 'claimed')::integer,
        next_attempt_at = CASE
            WHEN fate = 'lost' THEN pending.next_attempt_at
            ELSE now() + make_interval(secs => %(lease_seconds)s)
        END,
        suspect_since = CASE
            WHEN decided.claim_token IS NOT NULL THEN coalesce(pending.suspect_since, now())
            ELSE pending.suspect_since
        END,
        last_error = CASE WHEN decided.claim_token IS NOT NULL THEN %(lost)s ELSE pending.last_error END
    FROM decided
    WHERE pending.ctid = decided.place
    RETURNING
        decided.fate, pending.outbox_id, pending.subscription, pending.operation_id, decided.next_attempt_at AS due_at,
        pending.delivery_attempts, pending.suspect_since IS NOT NULL AS is_suspect, pending.last_error
)
SELECT
    fate,
    outbox_id,
    subscription,
    operation_id,
    due_at,
    delivery_attempts,
    is_suspect,
    last_error,
    coalesce(event_id::text, ''),
    coalesce(trace_id::text, ''),
    coalesce(topic, ''),
    coalesce(event_type, ''),
    coalesce(schema_version, 0),
    CASE WHEN fate = 'claimed' THEN payload_json::text END AS body
FROM taken
LEFT JOIN outbox ON outbox.id = outbox_id -- no foreign key says that its message is there
ORDER BY outbox_id

-- name: settle
-- Records outcomes, of one claim or of several, and returns those that took effect: what another claim has taken over is
-- left out. Returns key, disposition and the age in seconds since the promise.
SELECT outbox_id, subscription, operation_id, disposition, age_seconds
FROM settle_deliveries(
    %(settled_by)s, %(outbox_ids)s::bigint[], %(subscriptions)s::text[], %(operation_ids)s::uuid[],
    %(claim_tokens)s::uuid[], %(dispositions)s::text[], %(message_ids)s::text[], %(errors)s::text[],
    %(delays_seconds)s::double precision[], %(are_suspect)s::boolean[]
)

-- name: settled_before
-- Which of these messages are delivered under the very ids that the queue gave them: where the answer to a settlement
-- was lost. Returns as settle does.
SELECT
    deliveries.outbox_id, deliveries.subscription, deliveries.operation_id, 'published',
    extract(epoch FROM delivered_at - created_at)::double precision
FROM unnest(%(outbox_ids)s::bigint[], %(subscriptions)s::text[], %(message_ids)s::text[])
    AS sent (outbox_id, subscription, message_id)
JOIN deliveries
    ON deliveries.outbox_id = sent.outbox_id
    AND deliveries.subscription = sent.subscription
    AND deliveries.message_id = sent.message_id
JOIN outbox ON outbox.id = deliveries.outbox_id

-- name: others_were_delivered
-- Whether the queue has accepted another message of the subscription since this claimed one became suspect.
SELECT delivered_since(subscription, suspect_since)
FROM pending_deliveries
WHERE outbox_id = %(outbox_id)s AND subscription = %(subscription)s AND claim_token = %(claim_token)s

-- name: take_over
-- Makes this relay the one that lingers, in the place of whoever did.
INSERT INTO relay_handover AS handover (token, name)
VALUES (%(token)s, %(name)s)
ON CONFLICT (only_one) DO UPDATE
SET token = excluded.token, name = excluded.name, since = now()

-- name: is_current
-- Returns a row while no other relay has taken over.
SELECT name
FROM relay_handover
WHERE token = %(token)s

-- name: leave
-- Takes this relay's name away, if no other has taken over.
DELETE FROM relay_handover
WHERE token = %(token)s
