-- name: messages_of_runs
-- The outbox messages of these runs for these subscriptions, as they are now. Each has its failed attempts, and whether
-- the subscription's consumer has processed it. A message that was redriven has its latest delivery.
SELECT
    delivery.id,
    events.event_id,
    events.event_type,
    events.entity_id,
    topic,
    subscription,
    state,
    delivery_attempts AS attempts,
    coalesce(extract(epoch FROM next_attempt_at - now()), 0)::double precision AS due_in_seconds,
    claimed_by,
    last_error,
    message_id,
    created_at,
    delivered_at,
    dead_lettered_at,
    ARRAY(
        SELECT failed_at
        FROM delivery_failures AS failure
        WHERE failure.outbox_id = delivery.id AND failure.subscription = delivery.subscription
        ORDER BY failed_at
    ) AS failed_at,
    EXISTS (
        SELECT
        FROM processed_events AS processed
        WHERE processed.event_id = events.event_id AND processed.consumer = delivery.subscription
    ) AS is_consumed
FROM events
JOIN outbox_states AS delivery ON delivery.event_id = events.event_id
WHERE events.trace_id = ANY (%(trace_ids)s::uuid[])
    AND delivery.subscription = ANY (%(subscriptions)s::text[])
    AND delivery.state <> 'redriven'
ORDER BY delivery.id

-- name: make_due
-- Makes retries due now, without their wait; messages that are claimed meanwhile are not changed.
UPDATE pending_deliveries
SET next_attempt_at = now()
WHERE outbox_id = ANY (%(ids)s::bigint[]) AND subscription = %(subscription)s AND claim_token IS NULL

-- name: dead_letters_of_drills
-- The open dead letters of the messages of all drills.
SELECT letter.id
FROM dead_letters AS letter
JOIN outbox AS message ON message.id = letter.outbox_id
JOIN events ON events.event_id = message.event_id
WHERE letter.resolution IS NULL
    AND events.entity_id = %(entity_id)s
    AND events.source = %(source)s
ORDER BY letter.id

-- name: unfinished
-- For a subscription: how many messages of drills are pending, how many recent ones its consumer has not processed, and
-- how many messages of any kind are pending.
SELECT
    count(*) FILTER (WHERE pending.outbox_id IS NOT NULL),
    count(DISTINCT events.event_id) FILTER (
        WHERE processed.event_id IS NULL AND events.ingested_at > now() - interval '10 minutes'
    ),
    (SELECT count(*) FROM pending_deliveries WHERE subscription = %(subscription)s)
FROM events
JOIN outbox AS message ON message.event_id = events.event_id
LEFT JOIN pending_deliveries AS pending
    ON pending.outbox_id = message.id AND pending.subscription = %(subscription)s
LEFT JOIN processed_events AS processed
    ON processed.event_id = events.event_id AND processed.consumer = %(subscription)s
WHERE events.entity_id = %(entity_id)s AND events.source = %(source)s

-- name: relays_begun_before
-- How many relays connected before an instant, and so still have that time's settings, and made a query lately.
SELECT count(*)
FROM pg_stat_activity
WHERE application_name = 'acp-relay'
    AND backend_start < %(since)s
    AND state_change > clock_timestamp() - make_interval(secs => %(quiet_seconds)s)

-- name: effects
-- How many effects these events had: the bars that SignalLab keeps of them.
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
-- Removes the drills' bars from SignalLab; events, messages and processed_events stay readable.
DELETE FROM signal_lab_bars WHERE source = %(source)s

-- name: forget_prices
-- Removes the drills' prices from SignalLab.
DELETE FROM signal_lab_latest_prices WHERE source = %(source)s

-- name: forget_detector_bars
-- Removes the drills' bars from the detector: those of several drills would be enough to call one of them unusual.
DELETE FROM detector_bars WHERE source = %(source)s
