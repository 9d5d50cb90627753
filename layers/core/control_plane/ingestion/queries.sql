-- name: newest_occurrence
-- The instant of the newest stored event of a type and series per entity; each is one probe of events_one_per_revision.
SELECT
    wanted.entity_id,
    newest.occurred_at
FROM unnest(%(entity_ids)s::text[]) AS wanted (entity_id)
CROSS JOIN LATERAL (
    SELECT occurred_at
    FROM events
    WHERE entity_id = wanted.entity_id
        AND source = %(source)s
        AND event_type = %(event_type)s
        AND series = %(series)s
    ORDER BY occurred_at DESC
    LIMIT 1
) AS newest

-- name: database_time
-- The one clock that all functions share.
SELECT clock_timestamp()

-- name: lock_entities
-- Locks each source and entity until the transaction ends, in the order of the locks' keys.
SELECT pg_advisory_xact_lock(key)
FROM (
    SELECT DISTINCT hashtextextended(source || chr(10) || coalesce(entity_id, ''), 1) AS key
    FROM unnest(%(sources)s::text[], %(entity_ids)s::text[]) AS entity (source, entity_id)
    ORDER BY key
) AS ordered

-- name: chain_heads
-- Per key the latest revision, its event, and when its instant was last looked at; a key without any is left out.
-- Returns the key's place among those given, from 1 on. Entities that are null are asked for apart, here and below:
-- neither IS NOT DISTINCT FROM nor an OR would use the index.
SELECT
    wanted.place,
    latest.revision,
    latest.event_id,
    greatest(
        latest.observed_at,
        (
            SELECT observed_at
            FROM repeated_looks
            WHERE entity_id = wanted.entity_id
                AND source = wanted.source
                AND event_type = wanted.event_type
                AND series = wanted.series
                AND occurred_at = wanted.occurred_at
        ),
        (
            SELECT observed_at
            FROM repeated_looks
            WHERE wanted.entity_id IS NULL
                AND entity_id IS NULL
                AND source = wanted.source
                AND event_type = wanted.event_type
                AND series = wanted.series
                AND occurred_at = wanted.occurred_at
        )
    )
FROM unnest(
    %(sources)s::text[], %(event_types)s::text[], %(entity_ids)s::text[], %(series)s::text[],
    %(occurred_at)s::timestamptz[]
) WITH ORDINALITY AS wanted (source, event_type, entity_id, series, occurred_at, place)
CROSS JOIN LATERAL (
    (
        SELECT revision, event_id, observed_at
        FROM events
        WHERE entity_id = wanted.entity_id
            AND source = wanted.source
            AND event_type = wanted.event_type
            AND series = wanted.series
            AND occurred_at = wanted.occurred_at
        ORDER BY revision DESC
        LIMIT 1
    )
    UNION ALL
    (
        SELECT revision, event_id, observed_at
        FROM events
        WHERE wanted.entity_id IS NULL
            AND entity_id IS NULL
            AND source = wanted.source
            AND event_type = wanted.event_type
            AND series = wanted.series
            AND occurred_at = wanted.occurred_at
        ORDER BY revision DESC
        LIMIT 1
    )
) AS latest

-- name: raw_payloads_in_order
-- The answers about one entity in the order in which they were stored, after a place in it, so many at a time.
SELECT seq, id, observed_at, window_since, trace_id, payload_json
FROM raw_payloads
WHERE source = %(source)s AND entity_id = %(entity_id)s AND seq > %(after)s
ORDER BY seq
LIMIT %(limit)s

-- name: insert_raw_payloads
-- All answers of a batch at once, in order.
INSERT INTO raw_payloads (id, source, entity_id, observed_at, window_since, fetched_at, trace_id, payload_json)
SELECT id, source, entity_id, observed_at, window_since, fetched_at, trace_id, payload_json
FROM jsonb_to_recordset(%(raw_payloads)s::jsonb) AS raw (
    id uuid, source text, entity_id text, observed_at timestamptz, window_since timestamptz, fetched_at timestamptz,
    trace_id uuid, payload_json jsonb
)

-- name: insert_events
-- Events, their messages, and one pending delivery per message and subscription, in one statement: a subscription that
-- is added meanwhile waits for it, or is seen by it. Returns per topic how many messages have no subscription.
WITH given AS MATERIALIZED (
    SELECT topic, raw_payload_id, message, json_to_record.*
    FROM json_to_recordset(%(events)s::json) AS given (topic text, raw_payload_id uuid, message json)
    CROSS JOIN LATERAL json_to_record(message) AS json_to_record (
        event_id uuid, event_type text, source text, entity_id text, entity_type text, series text,
        occurred_at timestamptz, revision integer, observed_at timestamptz, ingested_at timestamptz,
        schema_version integer, trace_id uuid, payload jsonb
    )
),
stored AS (
    INSERT INTO events (
        event_id, event_type, source, entity_id, entity_type, series, occurred_at, revision, observed_at, ingested_at,
        schema_version, trace_id, raw_payload_id, payload_json
    )
    SELECT
        event_id, event_type, source, entity_id, entity_type, series, occurred_at, revision, observed_at, ingested_at,
        schema_version, trace_id, raw_payload_id, payload
    FROM given
),
messages AS (
    INSERT INTO outbox (event_id, topic, event_type, schema_version, trace_id, payload_json)
    SELECT event_id, topic, event_type, schema_version, trace_id, message
    FROM given
    RETURNING id, topic, octet_length(payload_json::text) AS payload_bytes
),
pending AS (
    INSERT INTO pending_deliveries (outbox_id, subscription, payload_bytes)
    SELECT messages.id, subscriptions.name, messages.payload_bytes
    FROM messages
    JOIN subscriptions ON subscriptions.topic = messages.topic AND subscriptions.removed_at IS NULL
)
SELECT topic, count(*)::integer
FROM messages
WHERE NOT EXISTS (
    SELECT FROM subscriptions WHERE subscriptions.topic = messages.topic AND subscriptions.removed_at IS NULL
)
GROUP BY topic

-- name: advance_repeated_looks
-- Notes for observations that were found unchanged when they were last looked at; a note never moves back.
INSERT INTO repeated_looks AS kept (source, event_type, entity_id, series, occurred_at, observed_at)
SELECT *
FROM unnest(
    %(sources)s::text[], %(event_types)s::text[], %(entity_ids)s::text[], %(series)s::text[],
    %(occurred_at)s::timestamptz[], %(observed_at)s::timestamptz[]
)
ON CONFLICT ON CONSTRAINT repeated_looks_key DO UPDATE
SET observed_at = greatest(kept.observed_at, excluded.observed_at)
