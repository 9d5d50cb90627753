-- name: event_life
-- An event's whole life as JSON: the event, its raw payload, each promise with its failed attempts, each processing.
SELECT
    to_jsonb(event) - 'payload_json' || jsonb_build_object('payload', event.payload_json) AS event,
    to_jsonb(raw) AS raw_payload,
    coalesce(
        (
            SELECT
                jsonb_agg(
                    to_jsonb(promise) || jsonb_build_object(
                        'failures',
                        coalesce(
                            (
                                SELECT jsonb_agg(to_jsonb(failure) - 'outbox_id' ORDER BY failure.failed_at)
                                FROM delivery_failures AS failure
                                WHERE failure.outbox_id = promise.id
                            ),
                            '[]'
                        )
                    )
                    ORDER BY promise.id
                )
            FROM outbox_states AS promise
            WHERE promise.event_id = event.event_id
        ),
        '[]'
    ) AS promises,
    coalesce(
        (
            SELECT jsonb_agg(to_jsonb(processed) - 'event_id' ORDER BY processed.processed_at)
            FROM processed_events AS processed
            WHERE processed.event_id = event.event_id
        ),
        '[]'
    ) AS processing
FROM events AS event
LEFT JOIN raw_payloads AS raw ON raw.id = event.raw_payload_id
WHERE event.event_id = %(event_id)s

-- name: health
-- The age in seconds of the oldest open promise (0 where there is none) and how many breakers are not closed. Of each
-- topic only the thousand that are due first are looked at, so that asking costs the same whatever the backlog.
WITH RECURSIVE open_topic AS (
    (
        SELECT topic
        FROM outbox
        WHERE delivered_at IS NULL AND dead_lettered_at IS NULL
        ORDER BY topic
        LIMIT 1
    )
    UNION ALL
    SELECT (
        SELECT topic
        FROM outbox
        WHERE delivered_at IS NULL AND dead_lettered_at IS NULL AND topic > open_topic.topic
        ORDER BY topic
        LIMIT 1
    )
    FROM open_topic
    WHERE open_topic.topic IS NOT NULL
)
SELECT
    coalesce(extract(epoch FROM now() - min(due.created_at)), 0)::double precision AS oldest_pending_age_seconds,
    (SELECT count(*) FROM circuit_breakers WHERE state <> 'closed') AS open_breakers
FROM open_topic
CROSS JOIN LATERAL (
    SELECT created_at
    FROM outbox
    WHERE topic = open_topic.topic AND delivered_at IS NULL AND dead_lettered_at IS NULL
    ORDER BY next_attempt_at, id
    LIMIT 1000
) AS due

-- name: promises_by_state
-- How many outbox rows are in each state, per topic, with the age in seconds of the oldest.
SELECT
    topic,
    state,
    count(*),
    extract(epoch FROM now() - min(created_at))::double precision
FROM outbox_states
GROUP BY topic, state
ORDER BY topic, state

-- name: events_by_type
-- How many events are stored, per source and type, with the newest of each.
SELECT
    source,
    event_type,
    count(*),
    max(ingested_at)
FROM events
GROUP BY source, event_type
ORDER BY source, event_type

-- name: processed_by_consumer
-- How many events each consumer has processed, with the newest.
SELECT
    consumer,
    count(*),
    max(processed_at)
FROM processed_events
GROUP BY consumer
ORDER BY consumer

-- name: relay_on_duty
-- The relay that lingers, and since when. One that was killed stays until the next one comes, or its longest life is over.
SELECT name, since
FROM relay_duty
WHERE since > now() - interval '15 minutes'

-- name: recent_promises
-- The newest promises with their events, newest last; processed_by names the consumers that have acted.
SELECT *
FROM (
    SELECT
        promise.id,
        promise.state,
        promise.topic,
        promise.delivery_attempts,
        promise.created_at,
        promise.delivered_at,
        promise.last_error,
        event.event_id,
        event.event_type,
        event.source,
        event.entity_id,
        event.occurred_at,
        event.payload_json,
        event.trace_id,
        ARRAY(
            SELECT consumer FROM processed_events AS processed WHERE processed.event_id = event.event_id ORDER BY consumer
        ) AS processed_by
    FROM outbox_states AS promise
    JOIN events AS event USING (event_id)
    ORDER BY promise.id DESC
    LIMIT %(limit)s
) AS newest
ORDER BY id

-- name: archive_delivered
-- Moves what was delivered long ago among the next rows by id to the archive. Rows are looked at in the order of the
-- primary key, which is about that of their creation: no index has to be kept for this at every settlement.
-- Returns the last id looked at, how many rows moved, and whether any of those looked at was old enough to matter.
WITH looked_at AS MATERIALIZED (
    SELECT id, created_at
    FROM outbox
    WHERE id > %(after_id)s
    ORDER BY id
    LIMIT %(batch_size)s
),
old AS MATERIALIZED (
    -- Rows that another run is moving right now are skipped, not waited for.
    SELECT id
    FROM outbox
    WHERE id IN (SELECT id FROM looked_at)
        AND delivered_at < now() - make_interval(days => %(retention_days)s)
    FOR UPDATE SKIP LOCKED
),
gone AS (
    DELETE FROM outbox
    USING old
    WHERE outbox.id = old.id
    RETURNING outbox.*
),
archived AS (
    INSERT INTO outbox_archive SELECT * FROM gone RETURNING id
)
SELECT
    max(looked_at.id),
    (SELECT count(*) FROM archived),
    coalesce(bool_or(looked_at.created_at < now() - make_interval(days => %(retention_days)s)), false)
FROM looked_at

-- name: expired_events
-- The oldest events beyond their retention, locked until the end of the transaction; one that is still promised to
-- somebody is left, and so is one that another run or a replay is busy with.
SELECT event_id
FROM events AS event
WHERE ingested_at < now() - make_interval(days => %(retention_days)s)
    AND NOT EXISTS (
        SELECT FROM outbox
        WHERE outbox.event_id = event.event_id AND delivered_at IS NULL AND dead_lettered_at IS NULL
    )
ORDER BY ingested_at
LIMIT %(batch_size)s
FOR UPDATE OF event SKIP LOCKED

-- name: delete_settled_promises
-- The outbox rows of these events that are settled, with their failed attempts. An open one stays, and with it, by its
-- foreign key, the event.
WITH gone AS (
    DELETE FROM outbox
    WHERE event_id = ANY (%(event_ids)s::uuid[]) AND (delivered_at IS NOT NULL OR dead_lettered_at IS NOT NULL)
    RETURNING id
)
DELETE FROM delivery_failures WHERE outbox_id IN (SELECT id FROM gone)

-- name: delete_archived_promises
-- The archived rows of these events, with their failed attempts. After the outbox's, so that a row on its way from
-- there to here is met at one of the two.
WITH gone AS (
    DELETE FROM outbox_archive
    WHERE event_id = ANY (%(event_ids)s::uuid[])
    RETURNING id
)
DELETE FROM delivery_failures WHERE outbox_id IN (SELECT id FROM gone)

-- name: delete_processing
-- Who has processed these events: worth knowing for as long as they are there.
DELETE FROM processed_events WHERE event_id = ANY (%(event_ids)s::uuid[])

-- name: delete_events
-- These events, inside the retention step.
DELETE FROM events WHERE event_id = ANY (%(event_ids)s::uuid[])

-- name: delete_expired_raw_payloads
-- The oldest raw payloads beyond their retention that no event was made from, or none that is left; inside the
-- retention step.
DELETE FROM raw_payloads
WHERE id = ANY (ARRAY(
    SELECT raw.id
    FROM raw_payloads AS raw
    WHERE raw.fetched_at < now() - make_interval(days => %(retention_days)s)
        AND NOT EXISTS (SELECT FROM events WHERE events.raw_payload_id = raw.id)
    ORDER BY raw.fetched_at
    LIMIT %(batch_size)s
    FOR UPDATE OF raw SKIP LOCKED
))

-- name: horizon_holder
-- Who has kept vacuum from removing dead rows of this database for too long: the oldest, if any. Of a stranger's session
-- a role without pg_read_all_stats sees no start, and a slot has none: both count by transactions instead of seconds.
SELECT kind, name, username, application, age_seconds, transactions
FROM (
    SELECT
        'session' AS kind,
        pid::text AS name,
        usename::text AS username,
        application_name AS application,
        extract(epoch FROM clock_timestamp() - xact_start)::double precision AS age_seconds,
        greatest(age(backend_xmin), age(backend_xid)) AS transactions
    FROM pg_stat_activity
    WHERE (datname = current_database() OR datname IS NULL)
        AND (backend_xmin IS NOT NULL OR backend_xid IS NOT NULL)
        AND pid <> pg_backend_pid()
        AND backend_type IS DISTINCT FROM 'autovacuum worker' -- which holds nothing back
    UNION ALL
    SELECT
        'prepared transaction',
        gid,
        owner::text,
        NULL,
        extract(epoch FROM clock_timestamp() - prepared)::double precision,
        age(transaction)
    FROM pg_prepared_xacts
    WHERE database = current_database()
    UNION ALL
    SELECT 'replication slot', slot_name::text, NULL, NULL, NULL, age(xmin)
    FROM pg_replication_slots
    WHERE xmin IS NOT NULL
) AS holder
WHERE coalesce(age_seconds >= %(seconds)s, transactions >= %(transactions)s)
ORDER BY transactions DESC, age_seconds DESC NULLS LAST
LIMIT 1
