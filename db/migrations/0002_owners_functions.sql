-- The owner's functions: changes that a Lambda function's role may ask for without having the privilege itself. Each runs
-- with the owner's rights and a search_path of its own, and does one thing. 0003_roles.sql says who may call which.

-- Whether the queue accepted a message of the subscription after an instant. If so, the queue works, and a message that
-- still gets no verdict is itself the cause. This reads only the newest messages, so its cost does not grow.
CREATE FUNCTION delivered_since(of_subscription text, since timestamptz) RETURNS boolean
LANGUAGE sql STABLE
RETURN (
    SELECT coalesce(bool_or(recent.delivered_at > since), false)
    FROM (SELECT subscription, delivered_at FROM deliveries ORDER BY outbox_id DESC LIMIT 10000) AS recent
    WHERE recent.subscription = of_subscription
);


-- Takes due deliveries under a token and a lease; a relay can settle only what it has taken in this way. The arrays are
-- parallel, with one entry per subscription. Each row's fate is returned. A claimed row comes with its message. An
-- exhausted row is claimed to be dead-lettered. A lost row is not claimed: its relay did not report back, so it gets its
-- attempt back and is suspect from now on.
CREATE FUNCTION claim_deliveries(
    new_token uuid,
    claimant text,
    for_subscriptions text[],
    due_since timestamptz[],
    row_limits integer[],
    suspect_limits integer[],
    byte_limits bigint[],
    lease_seconds double precision,
    max_attempts integer,
    leases_per_attempt integer,
    lost_error text
) RETURNS TABLE (
    fate text,
    outbox_id bigint,
    subscription text,
    operation_id uuid,
    due_at timestamptz,
    delivery_attempts integer,
    is_suspect boolean,
    last_error text,
    event_id text,
    trace_id text,
    topic text,
    event_type text,
    schema_version integer,
    body text
)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, public, pg_temp
SET plan_cache_mode = force_custom_plan
AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
    WITH lane AS (
        SELECT *
        FROM unnest(
            for_subscriptions, due_since, row_limits, suspect_limits, byte_limits
        ) AS lane (subscription, since, row_limit, suspect_limit, byte_limit)
    ),
    ordinary AS MATERIALIZED (
        -- Rows that another relay is claiming right now are skipped. Rows that it has claimed are not due until their
        -- lease has run out. Each lane is read from the end of its last claim on, because all earlier rows are done.
        SELECT due.*, lane.byte_limit
        FROM lane
        CROSS JOIN LATERAL (
            SELECT ctid AS place, *
            FROM pending_deliveries
            WHERE subscription = lane.subscription
                AND suspect_since IS NULL
                AND next_attempt_at BETWEEN lane.since AND now()
            ORDER BY next_attempt_at, outbox_id
            LIMIT lane.row_limit
            FOR UPDATE SKIP LOCKED
        ) AS due
    ),
    suspect AS MATERIALIZED (
        SELECT due.*, lane.byte_limit
        FROM lane
        CROSS JOIN LATERAL (
            SELECT ctid AS place, *
            FROM pending_deliveries
            WHERE subscription = lane.subscription
                AND suspect_since IS NOT NULL
                AND next_attempt_at <= now()
            ORDER BY next_attempt_at, outbox_id
            LIMIT lane.suspect_limit
            FOR UPDATE SKIP LOCKED
        ) AS due
    ),
    due AS (
        SELECT
            *,
            coalesce(
                payload_bytes, (SELECT octet_length(payload_json::text) FROM outbox WHERE outbox.id = outbox_id)
            ) AS body_bytes,
            -- A lease that ran out is the relay's failure. It counts against a suspect only if the queue accepted others
            -- meanwhile, and then only every few times, because killed relays may have held the same message each time.
            delivery_attempts - (
                claim_token IS NOT NULL
                AND (
                    suspect_since IS NULL
                    OR NOT delivered_since(subscription, suspect_since)
                    OR (
                        SELECT mod(count(*) + 1, leases_per_attempt)
                        FROM delivery_failures AS earlier
                        WHERE earlier.outbox_id = found.outbox_id
                            AND earlier.subscription = found.subscription
                            AND earlier.operation_id IS NOT DISTINCT FROM found.operation_id
                            AND earlier.error = lost_error
                    ) <> 0
                )
            )::integer AS attempts_made
        FROM (SELECT * FROM ordinary UNION ALL SELECT * FROM suspect) AS found
    ),
    decided AS (
        -- Takes rows up to the lane's limit of bytes, and always the first row.
        SELECT
            *,
            CASE
                WHEN claim_token IS NOT NULL AND suspect_since IS NULL THEN 'lost'
                WHEN attempts_made >= max_attempts THEN 'exhausted'
                ELSE 'claimed'
            END AS fate
        FROM (
            SELECT
                *,
                sum(body_bytes) OVER running AS bytes_so_far,
                row_number() OVER running AS nth
            FROM due
            WINDOW running AS (PARTITION BY subscription, suspect_since IS NULL ORDER BY next_attempt_at, outbox_id)
        ) AS measured
        WHERE bytes_so_far <= byte_limit OR nth = 1
    ),
    lost AS (
        INSERT INTO delivery_failures (outbox_id, subscription, operation_id, attempt, claimed_by, error)
        SELECT outbox_id, subscription, operation_id, delivery_attempts, claimed_by, lost_error
        FROM decided
        WHERE claim_token IS NOT NULL
    ),
    counted AS (
        INSERT INTO flow_deltas (stage, name, outcome, n)
        SELECT 'outbox', subscription, 'lost', count(*)
        FROM decided
        WHERE claim_token IS NOT NULL
        GROUP BY subscription
    ),
    taken AS (
        UPDATE pending_deliveries AS pending
        SET
            claim_token = CASE WHEN fate <> 'lost' THEN new_token END,
            claimed_by = CASE WHEN fate <> 'lost' THEN claimant END,
            delivery_attempts = attempts_made + (fate = 'claimed')::integer,
            next_attempt_at = CASE
                WHEN fate = 'lost' THEN pending.next_attempt_at
                ELSE now() + make_interval(secs => lease_seconds)
            END,
            suspect_since = CASE
                WHEN decided.claim_token IS NOT NULL THEN coalesce(pending.suspect_since, now())
                ELSE pending.suspect_since
            END,
            last_error = CASE WHEN decided.claim_token IS NOT NULL THEN lost_error ELSE pending.last_error END
        FROM decided
        WHERE pending.ctid = decided.place
        RETURNING
            decided.fate, pending.outbox_id, pending.subscription, pending.operation_id, decided.next_attempt_at AS due_at,
            pending.delivery_attempts, pending.suspect_since IS NOT NULL AS is_suspect, pending.last_error
    )
    SELECT
        fate,
        outbox_id,
        subscription,
        operation_id,
        due_at,
        delivery_attempts,
        is_suspect,
        last_error,
        coalesce(event_id::text, ''),
        coalesce(trace_id::text, ''),
        coalesce(topic, ''),
        coalesce(event_type, ''),
        coalesce(schema_version, 0),
        CASE WHEN fate = 'claimed' THEN payload_json::text END AS body
    FROM taken
    LEFT JOIN outbox ON outbox.id = outbox_id -- no foreign key says that its message is there
    ORDER BY outbox_id;
END
$$;


-- Whether the queue has accepted another message of the subscription since this claimed one became suspect; null for
-- one that is not claimed under this token.
CREATE FUNCTION others_were_delivered(of_outbox_id bigint, of_subscription text, token uuid) RETURNS boolean
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = pg_catalog, public, pg_temp
RETURN (
    SELECT delivered_since(subscription, suspect_since)
    FROM pending_deliveries
    WHERE outbox_id = of_outbox_id AND subscription = of_subscription AND claim_token = token
);


-- Settles deliveries of one claim or of several. A row that another claim has taken over is not changed and not
-- returned. The arrays are parallel. A disposition is published, dead_lettered, exhausted (dead-lettered
-- without a further attempt), failed or released (its attempt is given back). Age is in seconds since the promise.
-- send_seconds says how long the send took that carried the message, null where none did; waited_seconds, how long ago its
-- outcome was known.
CREATE FUNCTION settle_deliveries(
    settled_by text,
    outbox_ids bigint[],
    for_subscriptions text[],
    operation_ids uuid[],
    claim_tokens uuid[],
    dispositions text[],
    message_ids text[],
    errors text[],
    delays_seconds double precision[],
    are_suspect boolean[],
    send_seconds double precision[] DEFAULT NULL,
    waited_seconds double precision[] DEFAULT NULL
) RETURNS TABLE (outbox_id bigint, subscription text, operation_id uuid, disposition text, age_seconds double precision)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, public, pg_temp
-- A session plans this once: a plan for each call would take as long as settling some fifty rows. With these settings it is the
-- same plan whatever the table held then: the given ids are looked up by the key, and joined by hash.
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET enable_nestloop = off
SET enable_mergejoin = off
AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
    WITH outcome AS MATERIALIZED (
        SELECT *
        FROM unnest(
            outbox_ids, for_subscriptions, operation_ids, claim_tokens, dispositions, message_ids, errors,
            delays_seconds, are_suspect, send_seconds, waited_seconds
        ) AS outcome (
            outbox_id, subscription, operation_id, claim_token, disposition, message_id, error, delay_seconds, is_suspect,
            sent_for, waited_for
        )
    ),
    ended AS (
        DELETE FROM pending_deliveries AS pending
        USING outcome
        WHERE pending.outbox_id = ANY (outbox_ids)
            AND pending.outbox_id = outcome.outbox_id
            AND pending.subscription = outcome.subscription
            AND pending.operation_id IS NOT DISTINCT FROM outcome.operation_id
            AND pending.claim_token = outcome.claim_token
            AND outcome.disposition IN ('published', 'dead_lettered', 'exhausted')
        RETURNING
            pending.outbox_id, pending.subscription, pending.operation_id, pending.promised_at,
            pending.delivery_attempts, outcome.disposition, outcome.message_id, outcome.error,
            outcome.sent_for, outcome.waited_for
    ),
    kept AS (
        UPDATE pending_deliveries AS pending
        SET
            claim_token = NULL,
            claimed_by = NULL,
            -- A release without an error keeps the reason of an earlier failure.
            last_error = coalesce(outcome.error, pending.last_error),
            delivery_attempts = pending.delivery_attempts - (outcome.disposition = 'released')::integer,
            next_attempt_at = now() + make_interval(secs => outcome.delay_seconds),
            suspect_since = CASE WHEN outcome.is_suspect THEN coalesce(pending.suspect_since, now()) ELSE pending.suspect_since END
        FROM outcome
        WHERE pending.outbox_id = ANY (outbox_ids)
            AND pending.outbox_id = outcome.outbox_id
            AND pending.subscription = outcome.subscription
            AND pending.operation_id IS NOT DISTINCT FROM outcome.operation_id
            AND pending.claim_token = outcome.claim_token
            AND outcome.disposition IN ('failed', 'released')
        RETURNING
            pending.outbox_id, pending.subscription, pending.operation_id, pending.promised_at,
            pending.delivery_attempts, outcome.disposition, outcome.error, outcome.sent_for, outcome.waited_for
    ),
    delivered AS (
        INSERT INTO deliveries (outbox_id, subscription, operation_id, delivery_attempts, message_id)
        SELECT outbox_id, subscription, operation_id, delivery_attempts, message_id
        FROM ended
        WHERE disposition = 'published'
    ),
    given_up AS (
        INSERT INTO dead_letters (outbox_id, subscription, operation_id, promised_at, delivery_attempts, reason)
        SELECT outbox_id, subscription, operation_id, promised_at, delivery_attempts, error
        FROM ended
        WHERE disposition IN ('dead_lettered', 'exhausted')
    ),
    settled AS (
        SELECT
            outbox_id, subscription, operation_id, promised_at, delivery_attempts, disposition, error, sent_for, waited_for
        FROM ended
        UNION ALL
        SELECT
            outbox_id, subscription, operation_id, promised_at, delivery_attempts, disposition, error, sent_for, waited_for
        FROM kept
    ),
    failures AS (
        INSERT INTO delivery_failures (outbox_id, subscription, operation_id, attempt, claimed_by, error)
        SELECT outbox_id, subscription, operation_id, delivery_attempts, settled_by, error
        FROM settled
        WHERE disposition IN ('failed', 'dead_lettered')
    ),
    counted AS (
        -- Every settlement pays for this part, so it aggregates the rows once, without a sort, into the few combinations of
        -- the two durations' buckets, and adds these up by either duration.
        INSERT INTO flow_deltas (stage, name, outcome, bucket, n, seconds, trace_id, trace_seconds)
        SELECT
            stage, name, outcome, bucket, n, seconds,
            (SELECT trace_id FROM outbox WHERE bucket IS NOT NULL AND outbox.id = slowest[2]::bigint), slowest[1]
        FROM (
            -- Of those that are counted together the slowest is the example, as its duration and its id: of two arrays the
            -- one with the greater first element is the greater.
            SELECT stage, name, outcome, bucket, sum(n) AS n, sum(seconds) AS seconds, max(slowest) AS slowest
            FROM (
                SELECT
                    subscription AS name, disposition, flow_bucket(took) AS took_bucket, flow_bucket(sent_for) AS sent_bucket,
                    count(*) AS n, sum(took) AS took, sum(sent_for) AS sent_for,
                    max(ARRAY[took, outbox_id]) AS slowest_took, max(ARRAY[sent_for, outbox_id]) AS slowest_sent
                FROM (
                    SELECT
                        outbox_id, subscription, disposition,
                        CASE WHEN sent_for IS NOT NULL THEN greatest(sent_for, 0) END AS sent_for,
                        CASE
                            WHEN disposition = 'published' THEN
                                greatest(date_part('epoch', now() - promised_at) - coalesce(waited_for, 0), 0)
                        END AS took
                    FROM settled
                    OFFSET 0 -- Keeps the durations from being computed anew wherever they are used.
                ) AS measured
                GROUP BY subscription, disposition, took_bucket, sent_bucket
            ) AS combined
            CROSS JOIN LATERAL (
                VALUES
                    ('outbox', disposition, took_bucket, took, slowest_took),
                    ('send', 'sent', sent_bucket, sent_for, slowest_sent)
            ) AS by_duration (stage, outcome, bucket, seconds, slowest)
            WHERE stage = 'outbox' OR bucket IS NOT NULL
            GROUP BY stage, name, outcome, bucket
        ) AS grouped
    )
    SELECT outbox_id, subscription, operation_id, disposition, date_part('epoch', now() - promised_at)
    FROM settled;
END
$$;


-- Ends the statement in whose result it stands.
CREATE FUNCTION refuse_message(reason text, error_code text) RETURNS text LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    RAISE EXCEPTION 'a message refused: %', reason USING ERRCODE = error_code;
END
$$;

-- Events, their messages, and one pending delivery per message and subscription, in one statement: a subscription that
-- is added meanwhile waits for it, or is seen by it. A message is its event, whole and nothing besides, and what is
-- promised is promised now; where nothing is to be, the messages wait for a replay. An event has one topic, and may have
-- further ones. Returns per topic how many messages have no subscription. No role may call it: insert_events,
-- insert_unpromised_events and insert_decision_events say who may write what.
CREATE FUNCTION write_events(
    given_events json, is_promised boolean DEFAULT true, refused_topics text DEFAULT NULL
) RETURNS TABLE (topic text, unsubscribed integer)
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, public, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    -- As ingestion writes them. Another order is as good.
    all_fields CONSTANT text[] := ARRAY[
        'event_id', 'event_type', 'source', 'entity_id', 'entity_type', 'occurred_at', 'observed_at', 'ingested_at', 'series',
        'revision', 'schema_version', 'trace_id', 'payload'
    ];
BEGIN
    RETURN QUERY
    WITH given AS MATERIALIZED (
        SELECT
            topic, also_topics, raw_payload_id, message, ARRAY(SELECT json_object_keys(message)) AS fields,
            json_to_record.*
        FROM json_to_recordset(given_events) AS given (topic text, also_topics text[], raw_payload_id uuid, message json)
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
        SELECT event_id, unnest(topic || also_topics), event_type, schema_version, trace_id, message
        FROM given
        RETURNING id, topic, octet_length(payload_json::text) AS payload_bytes
    ),
    pending AS (
        INSERT INTO pending_deliveries (outbox_id, subscription, payload_bytes)
        SELECT messages.id, subscriptions.name, messages.payload_bytes
        FROM messages
        JOIN subscriptions ON subscriptions.topic = messages.topic AND subscriptions.removed_at IS NULL
        WHERE is_promised
    ),
    counted AS (
        INSERT INTO flow_deltas (stage, name, outcome, n)
        SELECT 'store', topic, 'stored', count(*)
        FROM given
        GROUP BY topic
    )
    -- The json text may hold more than the columns of events show: further fields, or a field given twice.
    SELECT refuse_message('its fields are not those of an event, each once', 'check_violation'), 0
    FROM given
    WHERE fields <> all_fields AND NOT (cardinality(fields) = cardinality(all_fields) AND fields @> all_fields)
    UNION ALL
    SELECT
        refuse_message(
            'its topic is for decisions, and insert_decision_events alone writes there', 'insufficient_privilege'
        ),
        0
    FROM given
    CROSS JOIN LATERAL unnest(given.topic || given.also_topics) AS wanted (topic)
    WHERE wanted.topic ~ refused_topics
    UNION ALL
    SELECT topic, count(*)::integer
    FROM messages
    WHERE NOT EXISTS (
        SELECT FROM subscriptions WHERE subscriptions.topic = messages.topic AND subscriptions.removed_at IS NULL
    )
    GROUP BY topic;
END
$$;

-- What a source's observations become. Topics of deciding are not its business: 0004_decisions.sql has theirs.
CREATE FUNCTION insert_events(given_events json) RETURNS TABLE (topic text, unsubscribed integer)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, public, pg_temp
AS $$
BEGIN
    RETURN QUERY SELECT * FROM write_events(given_events, true, '^(decisions|agents|gatekeeper|client)\.');
END
$$;
