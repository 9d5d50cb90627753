-- name: make_events
-- Stores that many events with their outbox messages, delivered or pending, made the way the pipeline makes them: a market
-- tick, its body longer by `padding` bytes. With an `event_id`, that one event. Every 20 share a trace and an instant,
-- as those of one ingestion run do.
WITH made AS (
    INSERT INTO events (
        event_id, event_type, source, entity_id, entity_type, occurred_at, ingested_at, schema_version, trace_id,
        payload_json
    )
    SELECT
        coalesce(%(event_id)s::uuid, gen_random_uuid()),
        'MARKET_TICK_INGESTED', 'bench', 'AAPL', 'equity', run.at, run.at, 1, md5(run.at::text)::uuid,
        jsonb_build_object(
            'price', 100.5 + tick.number, 'open', 100.0, 'high', 101.0, 'low', 99.5, 'volume', 1200, 'currency', 'USD',
            'interval', '1m', 'padding', repeat('x', %(padding)s::integer)
        )
    FROM generate_series(1, %(count)s::integer) AS tick (number)
    CROSS JOIN LATERAL (
        SELECT now() - make_interval(secs => (%(count)s::integer - tick.number) / 20 * 0.001) AS at
    ) AS run
    RETURNING *
)
INSERT INTO outbox (
    event_id, topic, payload_json, created_at, next_attempt_at, delivery_attempts, delivered_at, message_id
)
SELECT
    event_id,
    'market.ticks',
    (to_jsonb(made) - 'payload_json' - 'raw_payload_id') || jsonb_build_object('payload', payload_json),
    ingested_at,
    ingested_at,
    CASE WHEN %(delivered)s::boolean THEN 1 ELSE 0 END,
    CASE WHEN %(delivered)s::boolean THEN now() END,
    CASE WHEN %(delivered)s::boolean THEN gen_random_uuid()::text END
FROM made

-- name: pending_messages
-- Bodies and what their attributes are made of, for the loop that publishes without an outbox.
SELECT message.payload_json::text, event.event_id, event.event_type, event.schema_version, event.trace_id
FROM outbox AS message
JOIN events AS event USING (event_id)
WHERE message.delivered_at IS NULL
ORDER BY message.id
