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
-- How far the pipeline has come: symbols with ticks, deliveries, those done, ticks, and those that SignalLab has processed.
SELECT
    count(DISTINCT event.entity_id) FILTER (WHERE delivery.topic = 'market.ticks') AS symbols,
    count(*) AS deliveries,
    count(delivery.delivered_at) AS delivered,
    count(*) FILTER (WHERE delivery.state = 'dead_lettered') AS dead_lettered,
    count(*) FILTER (WHERE delivery.subscription = 'signal_lab') AS ticks,
    count(processed.event_id) FILTER (WHERE delivery.subscription = 'signal_lab') AS consumed
FROM outbox_states AS delivery
JOIN events AS event ON event.event_id = delivery.event_id
LEFT JOIN processed_events AS processed
    ON processed.event_id = event.event_id AND processed.consumer = delivery.subscription

-- name: newest_consumed_event
-- An event whose timeline is complete: the newest tick that a consumer has processed.
SELECT event_id
FROM processed_events
JOIN events USING (event_id)
ORDER BY processed_at DESC, occurred_at DESC
LIMIT 1
