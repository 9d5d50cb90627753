-- name: open_subscriptions
-- The database's time, and the subscriptions that have pending deliveries. This costs one probe of each of the two
-- indexes per subscription.
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
-- row it took: claimed, with the message; exhausted, which is claimed to be dead-lettered; or lost, which is not claimed.
SELECT
    fate, outbox_id, subscription, operation_id, due_at, delivery_attempts, is_suspect, last_error, event_id, trace_id,
    topic, event_type, schema_version, body
FROM claim_deliveries(
    %(claim_token)s::uuid, %(claimed_by)s, %(subscriptions)s::text[], %(since)s::timestamptz[],
    %(row_limits)s::integer[], %(suspect_limits)s::integer[], %(byte_limits)s::bigint[], %(lease_seconds)s,
    %(max_attempts)s, %(leases_per_attempt)s, %(lost)s
)

-- name: settle
-- Records and counts outcomes, of one claim or of several, and returns those that took effect. A delivery that another claim has
-- taken over is left out. Returns key, disposition and the age in seconds since the promise.
SELECT outbox_id, subscription, operation_id, disposition, age_seconds
FROM settle_deliveries(
    %(settled_by)s, %(outbox_ids)s::bigint[], %(subscriptions)s::text[], %(operation_ids)s::uuid[],
    %(claim_tokens)s::uuid[], %(dispositions)s::text[], %(message_ids)s::text[], %(errors)s::text[],
    %(delays_seconds)s::double precision[], %(are_suspect)s::boolean[], %(send_seconds)s::double precision[],
    %(waited_seconds)s::double precision[]
)

-- name: settled_before
-- Finds which of these messages are delivered under the ids that the queue gave them, for a settlement whose answer was
-- lost. Returns the same columns as settle.
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
SELECT coalesce(others_were_delivered(%(outbox_id)s, %(subscription)s, %(claim_token)s), false)

-- name: take_over
-- Makes this relay the one that lingers, in place of any other.
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
-- Removes this relay's name, if no other relay has taken over.
DELETE FROM relay_handover
WHERE token = %(token)s
