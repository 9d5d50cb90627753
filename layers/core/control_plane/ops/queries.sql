-- name: event_timeline
-- An event's whole timeline as JSON: the event, its raw payload, each delivery with its failed attempts, each processing.
SELECT
    to_jsonb(event) - 'payload_json' || jsonb_build_object('payload', event.payload_json) AS event,
    raw.described AS raw_payload,
    coalesce(
        (
            SELECT
                jsonb_agg(
                    to_jsonb(delivery) || jsonb_build_object(
                        'dead_letter_id', letter.id,
                        'resolution', letter.resolution,
                        'resolved_at', letter.resolved_at,
                        'resolved_by', letter.resolved_by,
                        'redriven_by', letter.redriven_by,
                        'failures', coalesce(
                            (
                                SELECT
                                    jsonb_agg(
                                        to_jsonb(failure) - '{outbox_id,subscription,operation_id}'::text[]
                                        ORDER BY failure.failed_at, failure.attempt
                                    )
                                FROM delivery_failures AS failure
                                WHERE failure.outbox_id = delivery.id
                                    AND failure.subscription = delivery.subscription
                                    AND failure.operation_id IS NOT DISTINCT FROM delivery.operation_id
                            ),
                            '[]'
                        )
                    )
                    ORDER BY delivery.id, delivery.subscription, operation.requested_at NULLS FIRST
                )
            FROM outbox_states AS delivery
            LEFT JOIN dead_letters AS letter
                ON letter.kind = 'relay'
                AND letter.outbox_id = delivery.id
                AND letter.subscription = delivery.subscription
                AND letter.operation_id IS NOT DISTINCT FROM delivery.operation_id
            LEFT JOIN operations AS operation ON operation.operation_id = delivery.operation_id
            WHERE delivery.event_id = event.event_id
        ),
        '[]'
    ) AS deliveries,
    coalesce(
        (
            SELECT jsonb_agg(to_jsonb(processed) - 'event_id' ORDER BY processed.processed_at, processed.consumer)
            FROM processed_events AS processed
            WHERE processed.event_id = event.event_id
        ),
        '[]'
    ) AS processing,
    coalesce(
        (
            -- What it or its attributes say is not always so: a letter whose body is not the event's cannot be redriven.
            SELECT
                jsonb_agg(
                    to_jsonb(letter) - '{kind,promised_at,event_id,event_type,body,attributes}'::text[]
                        || jsonb_build_object(
                            'body_bytes', octet_length(letter.body),
                            'is_redrivable', coalesce((SELECT true FROM outbox WHERE outbox.id = letter.outbox_id), false)
                        )
                    ORDER BY letter.id
                )
            FROM dead_letters AS letter
            WHERE letter.event_id = event.event_id AND letter.kind = 'consumer'
        ),
        '[]'
    ) AS consumer_dead_letters,
    coalesce(
        (
            SELECT jsonb_agg(to_jsonb(failed) - '{id,event_id,trace_id}'::text[] ORDER BY failed.id)
            FROM (
                SELECT * FROM consume_failures AS newest WHERE newest.event_id = event.event_id ORDER BY newest.id DESC LIMIT 100
            ) AS failed
        ),
        '[]'
    ) AS consume_failures
FROM events AS event
LEFT JOIN LATERAL (
    -- The size is read first: a payload that is too large for an answer is not read, and the timeline says so.
    SELECT
        CASE
            WHEN size.bytes <= %(largest_payload)s THEN to_jsonb(stored)
            ELSE jsonb_build_object(
                'id', stored.id,
                'seq', stored.seq,
                'source', stored.source,
                'entity_id', stored.entity_id,
                'observed_at', stored.observed_at,
                'window_since', stored.window_since,
                'fetched_at', stored.fetched_at,
                'trace_id', stored.trace_id,
                'payload_json', NULL,
                'omitted', format('payload_json: %%s bytes, more than the %%s that are shown; raw_payloads has it',
                    size.bytes, %(largest_payload)s)
            )
        END AS described
    FROM raw_payloads AS stored
    CROSS JOIN LATERAL (SELECT octet_length(stored.payload_json::text) AS bytes) AS size
    WHERE stored.id = event.raw_payload_id
) AS raw ON true
WHERE event.event_id = %(event_id)s

-- name: recent_messages
-- Every delivery of the newest messages with its event, newest last; a message without a subscription has one row whose
-- subscription and state are null. processed_by names the consumers that have acted.
SELECT
    message.id,
    message.topic,
    message.created_at,
    delivery.subscription,
    delivery.operation_id,
    delivery.state,
    delivery.delivery_attempts,
    delivery.delivered_at,
    delivery.last_error,
    event.event_id,
    event.event_type,
    event.source,
    event.entity_id,
    event.occurred_at,
    event.payload_json,
    event.trace_id,
    ARRAY(
        SELECT DISTINCT consumer
        FROM processed_events AS processed
        WHERE processed.event_id = event.event_id
        ORDER BY consumer
    ) AS processed_by
FROM (SELECT id, event_id, topic, created_at FROM outbox ORDER BY id DESC LIMIT %(limit)s) AS message
JOIN events AS event ON event.event_id = message.event_id
LEFT JOIN outbox_states AS delivery ON delivery.id = message.id
LEFT JOIN operations AS operation ON operation.operation_id = delivery.operation_id
ORDER BY message.id, delivery.subscription, operation.requested_at NULLS FIRST

-- name: deliveries_by_state
-- How many deliveries of each subscription are in each state, with the age in seconds of the live flow's oldest promise;
-- the age is null where there is none, and for delivered ones. The topic is null if the table subscriptions does not
-- have the subscription.
SELECT
    delivery.subscription,
    subscriptions.topic,
    delivery.state,
    count(*),
    extract(
        epoch FROM now() - min(delivery.promised_at) FILTER (WHERE delivery.operation_id IS NULL)
    )::double precision
FROM delivery_states AS delivery
LEFT JOIN subscriptions ON subscriptions.name = delivery.subscription
GROUP BY delivery.subscription, subscriptions.topic, delivery.state
ORDER BY delivery.subscription, delivery.state

-- name: stranded_deliveries
-- The pending deliveries of subscriptions that the table does not have, or that were removed: no relay delivers them.
SELECT
    pending.subscription,
    count(*),
    bool_or(subscriptions.name IS NOT NULL)
FROM pending_deliveries AS pending
LEFT JOIN subscriptions ON subscriptions.name = pending.subscription
WHERE subscriptions.name IS NULL OR subscriptions.removed_at IS NOT NULL
GROUP BY pending.subscription
ORDER BY pending.subscription

-- name: unprocessed_deliveries
-- Which of the newest messages' deliveries the subscription's consumer has not processed: how many, the oldest one's
-- age in seconds, and its event. A subscription whose consumer has recorded nothing yet is left out, because it may
-- keep no record. So is decisions, which records only the anomalies that it dismisses: its record are the decisions' steps.
-- A delivery that its consumer has given up on is left out, too: it is a dead letter. OFFSET 0 and the scalar subqueries have
-- Postgres look each message up: a join would read whole tables at some of their sizes.
SELECT
    delivery.subscription,
    count(*),
    extract(epoch FROM now() - min(delivery.delivered_at))::double precision,
    (array_agg(message.event_id ORDER BY delivery.delivered_at))[1]
FROM (SELECT id, event_id FROM outbox ORDER BY id DESC LIMIT %(limit)s) AS message
CROSS JOIN LATERAL (
    SELECT outbox_id, subscription, operation_id, delivered_at
    FROM deliveries
    WHERE outbox_id = message.id
    OFFSET 0
) AS delivery
JOIN (
    SELECT name
    FROM subscriptions
    WHERE removed_at IS NULL
        AND name <> 'decisions'
        AND name = (SELECT consumer FROM processed_events WHERE consumer >= name ORDER BY consumer LIMIT 1)
    OFFSET 0
) AS recorded ON recorded.name = delivery.subscription
WHERE (
        SELECT true
        FROM processed_events AS processed
        WHERE processed.consumer = delivery.subscription AND processed.event_id = message.event_id
        LIMIT 1
    ) IS NULL
    AND (
        SELECT true
        FROM dead_letters AS letter
        WHERE letter.outbox_id = delivery.outbox_id
            AND letter.subscription = delivery.subscription
            AND letter.kind = 'consumer'
            AND letter.operation_id IS NOT DISTINCT FROM delivery.operation_id
        LIMIT 1
    ) IS NULL
GROUP BY delivery.subscription
ORDER BY delivery.subscription

-- name: count_stalled_operations
-- How many operations should be planned or at work, and have made no step for five minutes.
SELECT count(*)
FROM operations AS operation
WHERE state IN ('planning', 'running') AND is_stalled(operation)

-- name: active_operations
-- The operations that are planning, running or paused, or failed within a day: how far they are, and whether they are
-- stalled.
SELECT
    operation_id,
    kind,
    subscription,
    state,
    coalesce((progress ->> 'total')::bigint, 0),
    coalesce((progress ->> 'done')::bigint, 0),
    coalesce((progress ->> 'skipped')::bigint, 0),
    error,
    is_stalled(operation)
FROM operations AS operation
WHERE state IN ('planning', 'running', 'paused') OR state = 'failed' AND finished_at > now() - interval '1 day'
ORDER BY requested_at

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

-- name: lingering_relay
-- The relay that lingers, and since when. After a relay was killed, its row stays until the next one comes; it is
-- ignored once it is older than any relay can linger.
SELECT name, since
FROM relay_handover
WHERE since > now() - interval '15 minutes'

-- name: dead_letters
-- A page of the dead letters that a filter selects, newest first, from below an id on; a null in the filter selects any
-- value. Of a body only the beginning is read. Whether the outbox has a message is no EXISTS, for which Postgres may
-- read all of the outbox.
SELECT
    letter.id,
    letter.kind,
    letter.subscription,
    letter.topic,
    letter.event_id,
    letter.event_type,
    letter.trace_id,
    letter.operation_id,
    letter.delivery_attempts,
    letter.reason,
    letter.dead_lettered_at,
    extract(epoch FROM now() - letter.dead_lettered_at)::double precision AS age_seconds,
    letter.queue,
    letter.message_id,
    letter.sent_at,
    octet_length(letter.body) AS body_bytes,
    substr(letter.body, 1, 200) AS body_start,
    coalesce((SELECT true FROM outbox WHERE outbox.id = letter.outbox_id), false) AS is_redrivable,
    letter.resolution,
    letter.resolved_at,
    letter.resolved_by,
    letter.resolved_because,
    letter.redriven_by
FROM dead_letters AS letter
WHERE (letter.resolution IS NULL OR %(with_resolved)s)
    AND (%(below)s::bigint IS NULL OR letter.id < %(below)s)
    AND (%(ids)s::bigint[] IS NULL OR letter.id = ANY (%(ids)s::bigint[]))
    AND (%(kind)s::text IS NULL OR letter.kind = %(kind)s)
    AND (%(subscription)s::text IS NULL OR letter.subscription = %(subscription)s)
    AND (%(event_id)s::uuid IS NULL OR letter.event_id = %(event_id)s)
    AND (%(trace_id)s::uuid IS NULL OR letter.trace_id = %(trace_id)s)
    AND (%(since)s::timestamptz IS NULL OR letter.dead_lettered_at >= %(since)s)
    AND (%(until)s::timestamptz IS NULL OR letter.dead_lettered_at < %(until)s)
    AND (%(reason)s::text IS NULL OR strpos(lower(letter.reason), lower(%(reason)s)) > 0)
ORDER BY letter.id DESC
LIMIT %(limit)s

-- name: count_dead_letters
-- How many dead letters a filter selects, counted up to a limit.
SELECT count(*)
FROM (
    SELECT
    FROM dead_letters AS letter
    WHERE (letter.resolution IS NULL OR %(with_resolved)s)
        AND (%(ids)s::bigint[] IS NULL OR letter.id = ANY (%(ids)s::bigint[]))
        AND (%(kind)s::text IS NULL OR letter.kind = %(kind)s)
        AND (%(subscription)s::text IS NULL OR letter.subscription = %(subscription)s)
        AND (%(event_id)s::uuid IS NULL OR letter.event_id = %(event_id)s)
        AND (%(trace_id)s::uuid IS NULL OR letter.trace_id = %(trace_id)s)
        AND (%(since)s::timestamptz IS NULL OR letter.dead_lettered_at >= %(since)s)
        AND (%(until)s::timestamptz IS NULL OR letter.dead_lettered_at < %(until)s)
        AND (%(reason)s::text IS NULL OR strpos(lower(letter.reason), lower(%(reason)s)) > 0)
    LIMIT %(limit)s
) AS found

-- name: dead_letter_content
-- What a dead letter's message held, its attributes, and what its consumer recorded each time that it failed on it.
SELECT
    letter.body,
    letter.attributes,
    coalesce(
        (
            SELECT
                jsonb_agg(
                    jsonb_build_object('attempt', failed.attempt, 'failed_at', failed.failed_at, 'error', failed.error)
                    ORDER BY failed.id
                )
            FROM consume_failures AS failed
            WHERE failed.subscription = letter.subscription AND failed.message_id = letter.message_id
        ),
        '[]'
    ) AS failures
FROM dead_letters AS letter
WHERE letter.id = %(id)s

-- name: open_letters_of_queues
-- How many open dead letters came out of SQS queues, by kind and by subscription; the relay's are states of deliveries.
SELECT kind, subscription, count(*)
FROM dead_letters
WHERE resolution IS NULL AND kind <> 'relay'
GROUP BY kind, subscription
ORDER BY kind, subscription

-- name: discard_dead_letters
-- Discards these open dead letters as one operation. Returns its id and the ids of those that were open.
SELECT operation_id, discarded
FROM discard_dead_letters(%(ids)s::bigint[], %(reason)s::text, %(requested_by)s::text, %(filter)s::jsonb)

-- name: select_dead_letters
-- The ids of the open dead letters that a filter selects, with how many there are of each kind and subscription.
SELECT kind, coalesce(subscription, queue), array_agg(id ORDER BY id)
FROM dead_letters
WHERE resolution IS NULL
    AND (%(ids)s::bigint[] IS NULL OR id = ANY (%(ids)s::bigint[]))
    AND (%(kind)s::text IS NULL OR kind = %(kind)s)
    AND (%(subscription)s::text IS NULL OR subscription = %(subscription)s)
    AND (%(event_id)s::uuid IS NULL OR event_id = %(event_id)s)
    AND (%(trace_id)s::uuid IS NULL OR trace_id = %(trace_id)s)
    AND (%(since)s::timestamptz IS NULL OR dead_lettered_at >= %(since)s)
    AND (%(until)s::timestamptz IS NULL OR dead_lettered_at < %(until)s)
    AND (%(reason)s::text IS NULL OR strpos(lower(reason), lower(%(reason)s)) > 0)
GROUP BY kind, coalesce(subscription, queue)
ORDER BY kind, coalesce(subscription, queue)

-- name: record_redrive
-- Records a redrive as finished, because it happens in the same transaction as this record.
INSERT INTO operations (operation_id, kind, filter, state, progress, requested_by, reason, started_at, finished_at)
VALUES (
    %(operation_id)s, 'redrive', %(filter)s::jsonb, 'done', %(progress)s::jsonb, %(requested_by)s, %(reason)s, now(), now()
)

-- name: promise_lost_deliveries
-- Promises anew under an operation what active subscriptions' queues have accepted and their consumers have not processed,
-- unless it is pending already. A subscription whose consumer has recorded nothing is left out: it may keep no record.
-- Returns how many deliveries each subscription has been promised.
WITH promised AS (
    INSERT INTO pending_deliveries (outbox_id, subscription, operation_id)
    SELECT DISTINCT delivery.outbox_id, delivery.subscription, %(operation_id)s::uuid
    FROM deliveries AS delivery
    JOIN outbox AS message ON message.id = delivery.outbox_id
    JOIN subscriptions ON subscriptions.name = delivery.subscription AND subscriptions.removed_at IS NULL
    WHERE EXISTS (SELECT FROM processed_events WHERE consumer = delivery.subscription)
        AND NOT EXISTS (
            SELECT
            FROM processed_events AS processed
            WHERE processed.consumer = delivery.subscription AND processed.event_id = message.event_id
        )
        AND NOT EXISTS (
            SELECT
            FROM pending_deliveries AS pending
            WHERE pending.outbox_id = delivery.outbox_id AND pending.subscription = delivery.subscription
        )
    RETURNING subscription
)
SELECT subscription, count(*)
FROM promised
GROUP BY subscription
ORDER BY subscription

-- name: delete_kept_answers
-- Deletes a batch of the API's answers that were kept for a day; returns how many.
SELECT delete_kept_answers(%(batch_size)s)

-- name: horizon_holder
-- The oldest holder that has kept vacuum from removing dead rows of this database for too long, if any. A role without
-- pg_read_all_stats cannot see since when another role's session holds it, and a slot has no start: both are judged by
-- the number of transactions instead of seconds.
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

-- name: lock_out_new_messages
-- Waits for transactions that store messages or change subscriptions, and makes later ones wait until this one ends.
LOCK TABLE outbox IN SHARE ROW EXCLUSIVE MODE

-- name: subscriptions
-- Every subscription that ever existed: its name, its topic, and whether it is active.
SELECT name, topic, removed_at IS NULL
FROM subscriptions
ORDER BY name

-- name: add_subscription
-- Adds a subscription, or makes a removed one active again.
INSERT INTO subscriptions (name, topic)
VALUES (%(name)s, %(topic)s)
ON CONFLICT (name) DO UPDATE SET removed_at = NULL

-- name: backfill_subscription
-- Makes every message of its topic that the outbox still holds pending for a new subscription. They belong to an
-- operation of their own, so that they do not delay live deliveries. Returns how many there are.
WITH operation AS (
    INSERT INTO operations (operation_id, kind, filter, state, requested_by, reason, started_at, finished_at)
    VALUES (
        gen_random_uuid(), 'backfill', jsonb_build_object('subscription', %(name)s::text, 'topic', %(topic)s::text),
        'done', current_user, 'a new subscription from the beginning', now(), now()
    )
    RETURNING operation_id
),
promised AS (
    INSERT INTO pending_deliveries (outbox_id, subscription, operation_id, payload_bytes)
    SELECT message.id, %(name)s, operation.operation_id, octet_length(message.payload_json::text)
    FROM outbox AS message
    CROSS JOIN operation
    WHERE message.topic = %(topic)s
    RETURNING outbox_id
)
SELECT count(*) FROM promised

-- name: remove_subscription
-- Removes a subscription: it gets no further messages.
UPDATE subscriptions SET removed_at = now() WHERE name = %(name)s

-- name: lock_out_settlements
-- Waits for the relays' claims and settlements under way, and makes the next ones wait until this transaction ends.
LOCK TABLE pending_deliveries IN EXCLUSIVE MODE

-- name: dead_letter_pending
-- Turns the pending deliveries of these subscriptions into dead letters.
WITH gone AS (
    DELETE FROM pending_deliveries
    WHERE subscription = ANY (%(names)s::text[])
    RETURNING *
),
counted AS (
    INSERT INTO flow_deltas (stage, name, outcome, n)
    SELECT 'outbox', subscription, 'exhausted', count(*)
    FROM gone
    GROUP BY subscription
)
INSERT INTO dead_letters (outbox_id, subscription, operation_id, promised_at, delivery_attempts, reason)
SELECT outbox_id, subscription, operation_id, promised_at, delivery_attempts, %(reason)s
FROM gone

-- name: playbooks_of_open_decisions
-- The versions of playbooks that open decisions are pinned to, with how many there are and the oldest of them.
SELECT domain, playbook, playbook_version, count(*), (array_agg(decision_id ORDER BY opened_at))[1]
FROM decisions
WHERE closed_at IS NULL
GROUP BY domain, playbook, playbook_version
ORDER BY domain, playbook, playbook_version
