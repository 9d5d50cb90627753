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
-- For each key, the latest revision, its event, and when its instant was last looked at; a key without events is left
-- out. Returns the key's position among those given, from 1 on. Entities that are null need a separate branch, here and
-- below, because neither IS NOT DISTINCT FROM nor an OR would use the index.
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
-- The answers about one entity in the order in which they were stored, after a given one, so many at a time.
SELECT seq, id, observed_at, window_since, trace_id, payload_json
FROM raw_payloads
WHERE source = %(source)s AND entity_id = %(entity_id)s AND seq > %(after)s
ORDER BY seq
LIMIT %(limit)s

-- name: insert_raw_payloads
-- Stores all answers of a batch at once, in order.
INSERT INTO raw_payloads (id, source, entity_id, observed_at, window_since, fetched_at, trace_id, payload_json)
SELECT id, source, entity_id, observed_at, window_since, fetched_at, trace_id, payload_json
FROM jsonb_to_recordset(%(raw_payloads)s::jsonb) AS raw (
    id uuid, source text, entity_id text, observed_at timestamptz, window_since timestamptz, fetched_at timestamptz,
    trace_id uuid, payload_json jsonb
)

-- name: insert_events
-- Stores events, their messages, and one pending delivery per message and subscription. Returns per topic how many
-- messages have no subscription.
SELECT topic, unsubscribed
FROM insert_events(%(events)s::json)

-- name: insert_unpromised_events
-- Stores events and their messages, and promises the messages to nobody. Returns per topic how many messages have no
-- subscription.
SELECT topic, unsubscribed
FROM insert_unpromised_events(%(events)s::json)

-- name: count_fetches
-- Counts how many fetches of a source succeeded and failed.
SELECT count_fetches(%(source)s, %(fetched)s, %(failed)s)

-- name: piece_of_file
-- One piece of an uploaded file.
SELECT body
FROM backfill_pieces
WHERE file_sha256 = %(file_sha256)s AND number = %(number)s

-- name: advance_repeated_looks
-- Records when observations were last looked at and found unchanged; a recorded instant never moves back.
INSERT INTO repeated_looks AS kept (source, event_type, entity_id, series, occurred_at, observed_at)
SELECT *
FROM unnest(
    %(sources)s::text[], %(event_types)s::text[], %(entity_ids)s::text[], %(series)s::text[],
    %(occurred_at)s::timestamptz[], %(observed_at)s::timestamptz[]
)
ON CONFLICT ON CONSTRAINT repeated_looks_key DO UPDATE
SET observed_at = greatest(kept.observed_at, excluded.observed_at)

-- name: erased_places
-- Which of these looks are at something that was erased and is refused since; their positions, from 1 on.
SELECT erased_places(
    %(sources)s::text[], %(entity_ids)s::text[], %(event_types)s::text[], %(series)s::text[], %(occurred_at)s::timestamptz[]
)
