-- name: newest_occurrence
-- The instant of the newest stored event of a type per entity; each is one probe of events_by_entity.
SELECT
    wanted.entity_id,
    newest.occurred_at
FROM unnest(%(entity_ids)s::text[]) AS wanted (entity_id)
CROSS JOIN LATERAL (
    SELECT occurred_at
    FROM events
    WHERE entity_id = wanted.entity_id AND source = %(source)s AND event_type = %(event_type)s
    ORDER BY occurred_at DESC
    LIMIT 1
) AS newest

-- name: database_time
-- The one clock that all functions share.
SELECT clock_timestamp()

-- name: insert_raw_payloads
-- All answers of a batch at once.
INSERT INTO raw_payloads (id, source, fetched_at, trace_id, payload_json)
SELECT id, source, fetched_at, trace_id, payload_json
FROM jsonb_to_recordset(%(raw_payloads)s::jsonb)
    AS raw (id uuid, source text, fetched_at timestamptz, trace_id uuid, payload_json jsonb)

-- name: insert_events
-- All events of a batch at once; one that is stored already is left as it is and not returned. They arrive sorted by
-- id, lest two runs that store the same events wait for each other in a circle.
INSERT INTO events (
    event_id, event_type, source, entity_id, entity_type, occurred_at, ingested_at, schema_version, trace_id,
    raw_payload_id, payload_json
)
SELECT
    event_id, event_type, source, entity_id, entity_type, occurred_at, ingested_at, schema_version, trace_id,
    raw_payload_id, payload
FROM jsonb_to_recordset(%(events)s::jsonb) AS event (
    event_id uuid, event_type text, source text, entity_id text, entity_type text, occurred_at timestamptz,
    ingested_at timestamptz, schema_version integer, trace_id uuid, raw_payload_id uuid, payload jsonb
)
ON CONFLICT (event_id) DO NOTHING
RETURNING event_id

-- name: insert_promises
-- The outbox rows of a batch at once: each holds the message as it will be published.
INSERT INTO outbox (event_id, topic, payload_json)
SELECT (message ->> 'event_id')::uuid, topic, message
FROM jsonb_to_recordset(%(promises)s::jsonb) AS promise (topic text, message jsonb)
