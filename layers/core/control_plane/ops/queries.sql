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
