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
-- How far the pipeline has come: symbols with ticks, deliveries, finished deliveries, ticks, and ticks that SignalLab
-- has processed.
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

-- name: runs_by_id
-- The ingestion runs whose trace ids are between two ids, with how many events each has stored.
SELECT trace_id, count(*) AS count
FROM events
WHERE trace_id BETWEEN %(lowest)s AND %(highest)s
GROUP BY trace_id
ORDER BY trace_id
LIMIT %(limit)s

-- name: anomalies
-- What the detector has on record, newest first, each with how the entities of its source moved at that instant.
SELECT
    anomaly.source,
    anomaly.entity_id,
    anomaly.series,
    anomaly.occurred_at,
    anomaly.kind,
    anomaly.state,
    anomaly.score,
    anomaly.threshold,
    anomaly.bar_event_id,
    anomaly.bar_revision,
    anomaly.told,
    anomaly.told_event_id,
    anomaly.details,
    market.entities,
    market.fell,
    exp(least(market.median_log_return, 30)) - 1 AS market_return
FROM detector_anomalies AS anomaly
LEFT JOIN LATERAL (
    SELECT *
    FROM detector_market
    WHERE source = anomaly.source AND bar_interval = anomaly.series AND occurred_at = anomaly.occurred_at
) AS market ON true
ORDER BY anomaly.occurred_at DESC, anomaly.source, anomaly.entity_id, anomaly.series, anomaly.kind
LIMIT %(limit)s

-- name: demo_detector
-- How far the detector has come: the newest bar that it has seen, and how many events it is still to see.
SELECT
    (SELECT max(occurred_at) FROM detector_bars) AS newest,
    count(*) FILTER (WHERE processed.event_id IS NULL) AS unseen
FROM outbox_states AS delivery
LEFT JOIN processed_events AS processed
    ON processed.event_id = delivery.event_id AND processed.consumer = delivery.subscription
WHERE delivery.subscription = 'detector'
