-- name: make_events
-- Stores ``count`` events of one topic with their outbox messages, pending or delivered for each given subscription.
-- They are market ticks like those of the pipeline, but ``padding`` bytes longer. An ``event_id`` may be given for a
-- single event. Every 20 events share a trace and an instant, like those of one ingestion run. Delivered messages are a
-- day older than pending ones.
WITH made AS (
    INSERT INTO events (
        event_id, event_type, source, entity_id, entity_type, series, occurred_at, observed_at, ingested_at,
        schema_version, trace_id, payload_json
    )
    SELECT
        coalesce(%(event_id)s::uuid, gen_random_uuid()),
        'MARKET_TICK_INGESTED', 'bench', 'AAPL', 'equity', %(topic)s::text,
        run.at + tick.number %% 20 * interval '1 microsecond', run.at, run.at, 1, md5(run.at::text)::uuid,
        jsonb_build_object(
            'price', 100.5 + tick.number, 'open', 100.0, 'high', 101.0, 'low', 99.5, 'volume', 1200, 'currency', 'USD',
            'interval', '1m', 'padding', repeat('x', %(padding)s::integer)
        )
    FROM generate_series(1, %(count)s::integer) AS tick (number)
    CROSS JOIN LATERAL (
        SELECT
            now() - make_interval(secs => (%(count)s::integer - tick.number) / 20 * 0.001)
            - CASE WHEN %(delivered)s::boolean THEN interval '1 day' ELSE interval '0' END AS at
    ) AS run
    RETURNING *
),
messages AS (
    INSERT INTO outbox (event_id, topic, event_type, schema_version, trace_id, created_at, payload_json)
    SELECT
        event_id, %(topic)s::text, event_type, schema_version, trace_id, ingested_at,
        (
            (to_jsonb(made) - ARRAY['payload_json', 'raw_payload_id', 'seq', 'stored_by'])
            || jsonb_build_object('payload', payload_json)
        )::text::json
    FROM made
    RETURNING id, created_at, octet_length(payload_json::text) AS payload_bytes
),
delivered AS (
    INSERT INTO deliveries (outbox_id, subscription, delivered_at, delivery_attempts, message_id)
    SELECT id, subscription, created_at, 1, gen_random_uuid()::text
    FROM messages
    CROSS JOIN unnest(%(subscriptions)s::text[]) AS subscription
    WHERE %(delivered)s::boolean
)
INSERT INTO pending_deliveries (outbox_id, subscription, promised_at, next_attempt_at, payload_bytes)
SELECT id, subscription, created_at, created_at, payload_bytes
FROM messages
CROSS JOIN unnest(%(subscriptions)s::text[]) AS subscription
WHERE NOT %(delivered)s::boolean

-- name: make_old_events
-- Stores ``count`` market ticks of some time ago, as they are once their messages have been let go.
INSERT INTO events (
    event_id, event_type, source, entity_id, entity_type, series, occurred_at, observed_at, ingested_at, schema_version,
    trace_id, payload_json
)
SELECT
    gen_random_uuid(), 'MARKET_TICK_INGESTED', 'bench', 'E' || number %% 200, 'equity', '1m', run.at, run.at, run.at, 1,
    md5(run.at::text)::uuid,
    '{"price": 100.5, "open": 100.0, "high": 101.0, "low": 99.5, "volume": 1200, "currency": "USD", "interval": "1m"}'
FROM generate_series(1, %(count)s::integer) AS tick (number)
CROSS JOIN LATERAL (
    SELECT now() - interval '2 days' - (%(count)s::integer - number) / 200 * interval '1 minute' AS at
) AS run

-- name: give_up_on
-- Makes the oldest pending deliveries of a subscription dead letters, so many.
WITH gone AS (
    DELETE FROM pending_deliveries
    WHERE (outbox_id, subscription) IN (
        SELECT outbox_id, subscription
        FROM pending_deliveries
        WHERE subscription = %(subscription)s
        ORDER BY outbox_id
        LIMIT %(count)s
    )
    RETURNING outbox_id, subscription, promised_at
)
INSERT INTO dead_letters (outbox_id, subscription, promised_at, delivery_attempts, reason)
SELECT outbox_id, subscription, promised_at, 3, 'the queue refused it' FROM gone

-- name: process_delivered
-- Records each delivered message as processed.
INSERT INTO processed_events (consumer, event_id)
SELECT delivery.subscription, message.event_id
FROM deliveries AS delivery
JOIN outbox AS message ON message.id = delivery.outbox_id

-- name: sample_events
-- The ids of events at random: so many of those that have a message, and as many of all.
(SELECT event_id FROM outbox ORDER BY random() LIMIT %(count)s)
UNION ALL
(SELECT event_id FROM events ORDER BY random() LIMIT %(count)s)

-- name: make_subscriptions
-- Makes subscriptions as MigrationFunction does.
INSERT INTO subscriptions (name, topic)
SELECT name, %(topic)s::text
FROM unnest(%(subscriptions)s::text[]) AS name
ON CONFLICT (name) DO NOTHING

-- name: pending_messages
-- The pending messages: their bodies, and the values of their attributes, for the loop that publishes without an
-- outbox.
SELECT payload_json::text, event_id, event_type, schema_version, trace_id
FROM outbox
WHERE id IN (SELECT outbox_id FROM pending_deliveries)
ORDER BY id

-- name: pending_bodies
-- The bodies of the pending messages, for queues of others that are to have the same ones.
SELECT payload_json::text AS body
FROM outbox
WHERE id IN (SELECT outbox_id FROM pending_deliveries)
ORDER BY id

-- name: written_rows
-- How many dead row versions the updates and deletes of these tables have made, vacuumed or not, and how many bytes the
-- tables and their indexes take on disk.
SELECT coalesce(sum(n_tup_upd + n_tup_del), 0)::bigint, coalesce(sum(pg_total_relation_size(relid)), 0)::bigint
FROM pg_stat_user_tables
WHERE format('%%s.%%s', schemaname, relname) = ANY (%(tables)s::text[])

-- name: make_market
-- Makes daily bars of some entities, with one entity's unusual move at each instant after the first 330: a fall at one in
-- four, a rise at the others. Noise is even, so a move of 5 % or 12 % is many times the usual one.
WITH moves AS (
    SELECT
        entity_id,
        number,
        CASE
            WHEN number <= 330 OR number %% entities <> place THEN (hashint4(number * 31 + place)::bigint %% 10000) / 1e6
            WHEN number / entities %% 4 = 0 THEN -0.12
            ELSE 0.05
        END AS move
    FROM unnest(%(entities)s::text[]) WITH ORDINALITY AS entity (entity_id, nth)
    CROSS JOIN LATERAL (SELECT nth::integer - 1 AS place, cardinality(%(entities)s::text[]) AS entities) AS of_entity
    CROSS JOIN generate_series(1, 330 + %(anomalies)s::integer) AS number
),
bars AS (
    SELECT
        *,
        round((100 * exp(sum(move) OVER (PARTITION BY entity_id ORDER BY number)))::numeric, 4)::float8 AS price,
        timestamptz '2015-01-01 14:30+00' + number * interval '1 day' AS occurred_at
    FROM moves
)
INSERT INTO detector_bars (
    source, entity_id, bar_interval, occurred_at, open, high, low, price, volume, currency, revision, event_id, previous_at,
    follows_gap, log_return, adjustment, excursion
)
SELECT
    'bench', entity_id, '1d', occurred_at, price, price * 1.005, price * 0.995, price, 1000, 'USD', 0, gen_random_uuid(),
    occurred_at - interval '1 day', false, move, 0, 0.005
FROM bars

-- name: make_account
-- An account with as much cash as it has of each entity: 100,000 dollars at the first price.
WITH account AS (
    INSERT INTO paper_accounts (account, currency, opening_cash_micros, cash_micros)
    VALUES (%(account)s, 'USD', 100000000000, 100000000000)
    ON CONFLICT (account) DO UPDATE
    SET opening_cash_micros = excluded.opening_cash_micros, cash_micros = excluded.cash_micros
    RETURNING account
)
INSERT INTO paper_positions (account, source, entity_id, quantity_micros)
SELECT account, 'bench', entity_id, 1000000000
FROM account
CROSS JOIN unnest(%(entities)s::text[]) AS entity_id

-- name: unusual_bars
-- The bars of some entities that moved unusually, in order.
SELECT source, entity_id, occurred_at, event_id, log_return
FROM detector_bars
WHERE source = 'bench' AND entity_id = ANY (%(entities)s::text[]) AND abs(log_return) > 0.04
ORDER BY occurred_at

-- name: new_messages
-- Messages about some entities that were stored after one of them, in order.
SELECT message.id, message.topic, message.payload_json::text
FROM outbox AS message
JOIN events AS event USING (event_id)
WHERE message.id > %(after)s AND message.topic = ANY (%(topics)s::text[]) AND event.entity_id = ANY (%(entities)s::text[])
ORDER BY message.id

-- name: decided
-- How many decisions about some entities are in which state.
SELECT state, count(*)
FROM decisions
WHERE entity_id = ANY (%(entities)s::text[])
GROUP BY state

-- name: bytes_on_disk
-- How many bytes the database takes on disk.
SELECT pg_database_size(current_database())

-- name: process_bars
-- Records every stored bar as processed by SignalLab, with the rows that it keeps of them.
WITH processed AS (
    INSERT INTO processed_events (consumer, event_id) SELECT 'signal_lab', event_id FROM events
),
prices AS (
    INSERT INTO signal_lab_latest_prices (source, entity_id, price, currency, occurred_at, series, revision, event_id)
    SELECT DISTINCT ON (entity_id)
        source, entity_id, (payload_json ->> 'price')::float8, payload_json ->> 'currency', occurred_at, series, revision, event_id
    FROM events
    ORDER BY entity_id, occurred_at DESC
)
INSERT INTO signal_lab_bars (
    source, entity_id, bar_interval, occurred_at, open, high, low, price, volume, revision, event_id
)
SELECT
    source, entity_id, series, occurred_at, (payload_json ->> 'open')::float8, (payload_json ->> 'high')::float8,
    (payload_json ->> 'low')::float8, (payload_json ->> 'price')::float8, (payload_json ->> 'volume')::bigint, revision, event_id
FROM events

-- name: definition
-- The text that makes a function again.
SELECT pg_get_functiondef(%(name)s::regproc)

-- name: count_no_consumed
-- Makes consumers count nothing.
CREATE OR REPLACE FUNCTION count_consumed(of_consumer text, of_event uuid, is_new boolean, is_replay boolean) RETURNS boolean
LANGUAGE sql IMMUTABLE SECURITY INVOKER
RETURN is_new

-- name: count_for_an_hour
-- Counts so many rows in the last hour, as relays and consumers do: of three kinds, in all buckets.
INSERT INTO flow_deltas (at, stage, name, outcome, bucket, n, seconds, trace_id, trace_seconds)
SELECT
    clock_timestamp() - make_interval(secs => 3600.0 * number / %(rows)s::integer),
    (ARRAY['outbox', 'send', 'consumer'])[1 + number %% 3],
    (ARRAY['signal_lab', 'detector', 'decisions', 'system_events'])[1 + number %% 4],
    (ARRAY['published', 'sent', 'processed'])[1 + number %% 3],
    number %% 17,
    1 + number %% 100,
    1.5,
    gen_random_uuid(),
    1.5
FROM generate_series(1, %(rows)s::integer) AS number
