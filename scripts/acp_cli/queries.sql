-- name: run_events
-- What one ingestion run stored, per entity: new ticks, and what went wrong with the reason.
SELECT
    entity_id,
    event_type,
    count(*) AS count,
    max(occurred_at) AS newest,
    (array_agg(payload_json ORDER BY occurred_at DESC))[1] AS newest_payload
FROM events
WHERE trace_id = %(trace_id)s
GROUP BY entity_id, event_type
ORDER BY entity_id, event_type

-- name: demo_progress
-- How far the pipeline has come: symbols with ticks, their outbox messages, those delivered, those that a consumer has processed.
SELECT
    count(DISTINCT event.entity_id) FILTER (WHERE message.topic = 'market.ticks') AS symbols,
    count(*) AS promised,
    count(message.delivered_at) AS delivered,
    count(message.dead_lettered_at) AS dead_lettered,
    count(*) FILTER (WHERE message.topic = 'market.ticks') AS ticks,
    count(*) FILTER (
        WHERE message.topic = 'market.ticks'
        AND EXISTS (SELECT FROM processed_events AS processed WHERE processed.event_id = event.event_id)
    ) AS consumed
FROM outbox AS message
JOIN events AS event USING (event_id)

-- name: newest_consumed_event
-- An event whose timeline is complete: the newest tick that a consumer has processed.
SELECT event_id
FROM processed_events
JOIN events USING (event_id)
ORDER BY processed_at DESC, occurred_at DESC
LIMIT 1
