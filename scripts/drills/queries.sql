-- name: messages_of_runs
-- The outbox messages of a drill's runs as they are at this moment, each with its failed attempts and whether a consumer has acted.
SELECT
    outbox_states.id,
    events.event_id,
    events.event_type,
    events.entity_id,
    topic,
    state,
    delivery_attempts AS attempts,
    extract(epoch FROM next_attempt_at - now())::double precision AS due_in_seconds,
    claimed_by,
    last_error,
    message_id,
    created_at,
    delivered_at,
    dead_lettered_at,
    ARRAY(
        SELECT failed_at FROM delivery_failures WHERE outbox_id = outbox_states.id ORDER BY failed_at
    ) AS failed_at,
    EXISTS (SELECT FROM processed_events AS processed WHERE processed.event_id = events.event_id) AS is_consumed
FROM events
JOIN outbox_states USING (event_id)
WHERE events.trace_id = ANY (%(trace_ids)s::uuid[])
ORDER BY outbox_states.id

-- name: make_due
-- Makes retries due now instead of after their wait; what is claimed or settled meanwhile is left alone.
UPDATE outbox
SET next_attempt_at = now()
WHERE id = ANY (%(ids)s::bigint[]) AND claim_token IS NULL AND delivered_at IS NULL AND dead_lettered_at IS NULL

-- name: redrive_drill
-- Reopens the messages of drills that were given up on, their attempts given back; delivery_failures keeps the story.
UPDATE outbox
SET dead_lettered_at = NULL, last_error = NULL, delivery_attempts = 0, next_attempt_at = now()
FROM events
WHERE events.event_id = outbox.event_id
    AND events.entity_id = %(entity_id)s
    AND events.source = %(source)s
    AND dead_lettered_at IS NOT NULL
RETURNING outbox.id

-- name: unfinished
-- How many messages of drills are open, how many recent ones no consumer has acted on, and how many are open on a topic.
SELECT
    count(*) FILTER (WHERE message.delivered_at IS NULL AND message.dead_lettered_at IS NULL),
    count(*) FILTER (WHERE processed_events.event_id IS NULL AND events.ingested_at > now() - interval '10 minutes'),
    (SELECT count(*) FROM outbox WHERE topic = %(topic)s AND delivered_at IS NULL AND dead_lettered_at IS NULL)
FROM events
JOIN outbox AS message USING (event_id)
LEFT JOIN processed_events USING (event_id)
WHERE events.entity_id = %(entity_id)s AND events.source = %(source)s

-- name: relays_begun_before
-- Relays that connected before an instant and have asked for something lately: they work with the settings of then.
SELECT count(*)
FROM pg_stat_activity
WHERE application_name = 'acp-relay'
    AND backend_start < %(since)s
    AND state_change > clock_timestamp() - make_interval(secs => %(quiet_seconds)s)

-- name: effects
-- How often consumers were affected by these events: the bars that SignalLab keeps of them.
SELECT count(*) FROM signal_lab_bars WHERE event_id = ANY (%(event_ids)s::uuid[])

-- name: openings
-- How many events say that a source's breaker opened at that instant.
SELECT count(*)
FROM events
WHERE event_type = 'SOURCE_FETCH_FAILED'
    AND occurred_at = %(opened_at)s
    AND source = %(source)s
    AND payload_json ->> 'kind' = %(kind)s

-- name: bars
-- How many minutes of an entity have a bar.
SELECT count(DISTINCT occurred_at)
FROM events
WHERE event_type = 'MARKET_TICK_INGESTED'
    AND entity_id = %(entity_id)s
    AND source = %(source)s
    AND occurred_at BETWEEN %(since)s AND %(until)s

-- name: forget_bars
-- Takes the drills' bars out of SignalLab; events, messages and what was processed stay to be read.
DELETE FROM signal_lab_bars WHERE source = %(source)s

-- name: forget_prices
-- Takes the drills' prices out of SignalLab.
DELETE FROM signal_lab_latest_prices WHERE source = %(source)s
