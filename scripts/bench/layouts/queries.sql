-- name: set_up_old
-- The layout before decision 0020: one table, in which each claim and each settlement updates the message itself. Its
-- rows are made from those of the layout in use.
CREATE SCHEMA old_layout;
CREATE TABLE old_layout.outbox (
    id                bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    event_id          uuid        NOT NULL REFERENCES events (event_id),
    topic             text        NOT NULL CHECK (topic ~ '^[a-z][a-z0-9_]*\.[a-z][a-z0-9_]*$'),
    replay_id         uuid,
    payload_json      jsonb       NOT NULL CHECK (jsonb_typeof(payload_json) = 'object'),
    created_at        timestamptz NOT NULL DEFAULT now(),
    next_attempt_at   timestamptz NOT NULL DEFAULT now(),
    delivery_attempts integer     NOT NULL DEFAULT 0 CHECK (delivery_attempts >= 0),
    claim_token       uuid,
    claimed_by        text,
    delivered_at      timestamptz,
    message_id        text,
    dead_lettered_at  timestamptz,
    last_error        text,
    payload_bytes     integer     NOT NULL GENERATED ALWAYS AS (octet_length(payload_json::text)) STORED,
    CONSTRAINT outbox_one_promise UNIQUE NULLS NOT DISTINCT (event_id, topic, replay_id),
    CONSTRAINT outbox_one_end CHECK (delivered_at IS NULL OR dead_lettered_at IS NULL),
    CONSTRAINT outbox_settled_has_no_claim CHECK (
        (delivered_at IS NULL AND dead_lettered_at IS NULL) OR claim_token IS NULL
    ),
    CONSTRAINT outbox_claim_is_whole CHECK ((claim_token IS NULL) = (claimed_by IS NULL)),
    CONSTRAINT outbox_claim_is_an_attempt CHECK (claim_token IS NULL OR delivery_attempts >= 1),
    CONSTRAINT outbox_delivered_by_an_attempt CHECK (delivered_at IS NULL OR delivery_attempts >= 1),
    CONSTRAINT outbox_delivered_has_message CHECK ((delivered_at IS NULL) = (message_id IS NULL)),
    CONSTRAINT outbox_delivered_has_no_error CHECK (delivered_at IS NULL OR last_error IS NULL),
    CONSTRAINT outbox_dead_letter_has_reason CHECK (dead_lettered_at IS NULL OR last_error IS NOT NULL)
)
WITH (
    fillfactor = 70,
    autovacuum_vacuum_scale_factor = 0,
    autovacuum_vacuum_threshold = 20000,
    autovacuum_analyze_scale_factor = 0,
    autovacuum_analyze_threshold = 20000,
    autovacuum_vacuum_cost_delay = 0,
    vacuum_index_cleanup = on
);
CREATE INDEX outbox_claimable ON old_layout.outbox (topic, next_attempt_at, id)
    WHERE delivered_at IS NULL AND dead_lettered_at IS NULL;
CREATE TABLE old_layout.delivery_failures (
    outbox_id  bigint      NOT NULL,
    attempt    integer     NOT NULL,
    failed_at  timestamptz NOT NULL DEFAULT now(),
    claimed_by text        NOT NULL,
    error      text        NOT NULL
);
INSERT INTO old_layout.outbox (event_id, topic, payload_json, created_at, next_attempt_at)
SELECT event_id, topic, payload_json::jsonb, created_at, created_at
FROM outbox
ORDER BY id;
GRANT USAGE ON SCHEMA old_layout TO acp_relay;
GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA old_layout TO acp_relay;
GRANT SELECT ON events, outbox TO acp_relay

-- name: claim_old
-- The relay's claim before decision 0020; its columns are in the order of the claim that is used now.
WITH due AS MATERIALIZED (
    SELECT claimable.*
    FROM unnest(%(topics)s::text[], %(since)s::timestamptz[], %(row_limits)s::integer[]) AS lane (topic, since, row_limit)
    CROSS JOIN LATERAL (
        SELECT
            id, event_id, topic, payload_bytes, delivery_attempts, claim_token, claimed_by, next_attempt_at
        FROM old_layout.outbox
        WHERE topic = lane.topic
            AND delivered_at IS NULL
            AND dead_lettered_at IS NULL
            AND next_attempt_at BETWEEN lane.since AND now()
        ORDER BY next_attempt_at, id
        LIMIT lane.row_limit
        FOR UPDATE SKIP LOCKED
    ) AS claimable
),
spent AS (
    UPDATE old_layout.outbox AS outbox
    SET
        dead_lettered_at = now(),
        claim_token = NULL,
        claimed_by = NULL,
        last_error = format(
            'gave up after %%s attempts: %%s',
            due.delivery_attempts,
            coalesce(
                CASE WHEN due.claim_token IS NOT NULL THEN %(lost)s::text END,
                outbox.last_error,
                'the limit is lower than the attempts made'
            )
        )
    FROM due
    WHERE outbox.id = due.id AND due.delivery_attempts >= %(max_attempts)s
    RETURNING
        outbox.event_id, outbox.id, outbox.topic, NULL::text AS body, outbox.delivery_attempts, outbox.last_error,
        due.next_attempt_at
),
bounded AS (
    SELECT id, next_attempt_at
    FROM (
        SELECT
            id,
            next_attempt_at,
            sum(payload_bytes) OVER (ORDER BY next_attempt_at, id) AS bytes_so_far,
            row_number() OVER (ORDER BY next_attempt_at, id) AS place
        FROM due
        WHERE delivery_attempts < %(max_attempts)s
    ) AS open_rows
    WHERE bytes_so_far <= (%(byte_limits)s::bigint[])[1] OR place = 1
),
lost AS (
    INSERT INTO old_layout.delivery_failures (outbox_id, attempt, claimed_by, error)
    SELECT id, delivery_attempts, claimed_by, %(lost)s
    FROM due
    WHERE claim_token IS NOT NULL AND (delivery_attempts >= %(max_attempts)s OR id IN (SELECT id FROM bounded))
),
claimed AS (
    UPDATE old_layout.outbox AS outbox
    SET
        delivery_attempts = outbox.delivery_attempts + 1,
        claim_token = %(claim_token)s,
        claimed_by = %(claimed_by)s,
        next_attempt_at = now() + make_interval(secs => %(lease_seconds)s)
    FROM bounded
    WHERE outbox.id = bounded.id
    RETURNING
        outbox.event_id, outbox.id, outbox.topic, outbox.payload_json::text AS body, outbox.delivery_attempts,
        NULL::text AS last_error, bounded.next_attempt_at
)
SELECT
    taken.state, taken.id, taken.topic, event_id, taken.next_attempt_at, taken.delivery_attempts, taken.last_error,
    events.trace_id, events.event_type, events.schema_version, taken.body
FROM (
    SELECT 'in_flight' AS state, * FROM claimed
    UNION ALL
    SELECT 'dead_lettered' AS state, * FROM spent
) AS taken
JOIN events USING (event_id)
ORDER BY taken.id

-- name: settle_old
-- The relay's settlement before decision 0020.
WITH outcome AS (
    SELECT *
    FROM unnest(
        %(outbox_ids)s::bigint[], %(claim_tokens)s::uuid[], %(dispositions)s::text[], %(message_ids)s::text[],
        %(errors)s::text[], %(delays_seconds)s::double precision[]
    ) AS outcome (id, claim_token, disposition, message_id, error, delay_seconds)
),
settled AS (
    UPDATE old_layout.outbox AS outbox
    SET
        claim_token = NULL,
        claimed_by = NULL,
        delivered_at = CASE WHEN outcome.disposition = 'published' THEN now() END,
        message_id = outcome.message_id,
        dead_lettered_at = CASE WHEN outcome.disposition = 'dead_lettered' THEN now() END,
        last_error = CASE
            WHEN outcome.disposition <> 'published' THEN coalesce(outcome.error, outbox.last_error)
        END,
        delivery_attempts = outbox.delivery_attempts - (outcome.disposition = 'released')::integer,
        next_attempt_at = now() + make_interval(secs => outcome.delay_seconds)
    FROM outcome
    WHERE outbox.id = outcome.id AND outbox.claim_token = outcome.claim_token
    RETURNING outbox.id, outbox.created_at, outbox.delivery_attempts, outcome.disposition, outcome.error
),
failures AS (
    INSERT INTO old_layout.delivery_failures (outbox_id, attempt, claimed_by, error)
    SELECT id, delivery_attempts, %(settled_by)s, error
    FROM settled
    WHERE disposition IN ('failed', 'dead_lettered')
)
SELECT id, disposition, extract(epoch FROM now() - created_at)::double precision FROM settled

-- name: set_up_flagged
-- A narrow row per message and subscription that is never moved: claims and settlements update it, and it records what
-- became of it. Half of each page is left free, so that both updates may find room on the row's page.
CREATE SCHEMA flagged_layout;
CREATE TABLE flagged_layout.deliveries (
    outbox_id         bigint      NOT NULL,
    subscription      text        NOT NULL CHECK (subscription <> ''),
    operation_id      uuid,
    promised_at       timestamptz NOT NULL DEFAULT now(),
    next_attempt_at   timestamptz NOT NULL DEFAULT now(),
    payload_bytes     integer     CHECK (payload_bytes >= 0),
    delivery_attempts integer     NOT NULL DEFAULT 0 CHECK (delivery_attempts >= 0),
    claim_token       uuid,
    claimed_by        text,
    last_error        text,
    delivered_at      timestamptz,
    message_id        text,
    CONSTRAINT deliveries_key UNIQUE NULLS NOT DISTINCT (outbox_id, subscription, operation_id),
    CONSTRAINT deliveries_claim_is_whole CHECK ((claim_token IS NULL) = (claimed_by IS NULL)),
    CONSTRAINT deliveries_claim_is_an_attempt CHECK (claim_token IS NULL OR delivery_attempts >= 1),
    CONSTRAINT deliveries_delivered_has_message CHECK ((delivered_at IS NULL) = (message_id IS NULL))
)
WITH (
    fillfactor = 50,
    autovacuum_vacuum_scale_factor = 0,
    autovacuum_vacuum_threshold = 20000,
    autovacuum_analyze_scale_factor = 0,
    autovacuum_analyze_threshold = 20000,
    autovacuum_vacuum_cost_delay = 0,
    vacuum_index_cleanup = on
);
CREATE INDEX deliveries_due ON flagged_layout.deliveries (subscription, next_attempt_at, outbox_id)
    WHERE delivered_at IS NULL;
INSERT INTO flagged_layout.deliveries (outbox_id, subscription, promised_at, next_attempt_at, payload_bytes)
SELECT outbox_id, subscription, promised_at, next_attempt_at, payload_bytes
FROM pending_deliveries
ORDER BY outbox_id, subscription;
GRANT USAGE ON SCHEMA flagged_layout TO acp_relay;
GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA flagged_layout TO acp_relay;
GRANT SELECT ON events, outbox TO acp_relay

-- name: claim_flagged
-- This claim knows no suspects, exhausted and lost rows, so it does a little less work than that of the layout in use.
WITH due AS MATERIALIZED (
    SELECT due.*
    FROM unnest(
        %(subscriptions)s::text[], %(since)s::timestamptz[], %(row_limits)s::integer[]
    ) AS lane (subscription, since, row_limit)
    CROSS JOIN LATERAL (
        SELECT ctid AS place, *
        FROM flagged_layout.deliveries
        WHERE subscription = lane.subscription
            AND delivered_at IS NULL
            AND next_attempt_at BETWEEN lane.since AND now()
        ORDER BY next_attempt_at, outbox_id
        LIMIT lane.row_limit
        FOR UPDATE SKIP LOCKED
    ) AS due
),
bounded AS (
    SELECT *
    FROM (
        SELECT
            *,
            sum(payload_bytes) OVER running AS bytes_so_far,
            row_number() OVER running AS nth
        FROM due
        WINDOW running AS (PARTITION BY subscription ORDER BY next_attempt_at, outbox_id)
    ) AS measured
    WHERE bytes_so_far <= (%(byte_limits)s::bigint[])[1] OR nth = 1
),
taken AS (
    UPDATE flagged_layout.deliveries AS delivery
    SET
        claim_token = %(claim_token)s::uuid,
        claimed_by = %(claimed_by)s,
        delivery_attempts = delivery.delivery_attempts + 1,
        next_attempt_at = now() + make_interval(secs => %(lease_seconds)s)
    FROM bounded
    WHERE delivery.ctid = bounded.place
    RETURNING
        delivery.outbox_id, delivery.subscription, delivery.operation_id, bounded.next_attempt_at AS due_at,
        delivery.delivery_attempts, delivery.last_error
)
SELECT
    'claimed', outbox_id, subscription, operation_id, due_at, delivery_attempts, last_error, event_id::text,
    trace_id::text, topic, event_type, schema_version, payload_json::text
FROM taken
JOIN outbox ON outbox.id = outbox_id
ORDER BY outbox_id

-- name: settle_flagged
-- The row stays, and records what became of it.
UPDATE flagged_layout.deliveries AS delivery
SET
    claim_token = NULL,
    claimed_by = NULL,
    delivered_at = CASE WHEN outcome.disposition = 'published' THEN now() END,
    message_id = outcome.message_id
FROM unnest(
    %(outbox_ids)s::bigint[], %(subscriptions)s::text[], %(operation_ids)s::uuid[], %(claim_tokens)s::uuid[],
    %(dispositions)s::text[], %(message_ids)s::text[]
) AS outcome (outbox_id, subscription, operation_id, claim_token, disposition, message_id)
WHERE delivery.outbox_id = outcome.outbox_id
    AND delivery.subscription = outcome.subscription
    AND delivery.operation_id IS NOT DISTINCT FROM outcome.operation_id
    AND delivery.claim_token = outcome.claim_token
RETURNING
    delivery.outbox_id, outcome.disposition, extract(epoch FROM now() - delivery.promised_at)::double precision

-- name: set_up_windows
-- The layout of PgQ: besides the message itself, there is no row per message. A subscription is a position, before
-- which everything is delivered. What lies between two positions is a window, which is claimed and settled as a whole.
CREATE SCHEMA windows_layout;
CREATE TABLE windows_layout.outbox (
    id             bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    event_id       uuid        NOT NULL REFERENCES events (event_id),
    topic          text        NOT NULL,
    event_type     text        NOT NULL,
    schema_version integer     NOT NULL,
    trace_id       uuid        NOT NULL,
    created_at     timestamptz NOT NULL DEFAULT now(),
    stored_by      xid8        NOT NULL DEFAULT pg_current_xact_id(),
    payload_json   json        NOT NULL CHECK (json_typeof(payload_json) = 'object'),
    CONSTRAINT outbox_one_message UNIQUE (event_id, topic)
);
CREATE INDEX outbox_in_order ON windows_layout.outbox (topic, stored_by, id);
CREATE TABLE windows_layout.readers (
    subscription text        PRIMARY KEY,
    topic        text        NOT NULL,
    stored_by    xid8        NOT NULL DEFAULT '0',
    id           bigint      NOT NULL DEFAULT 0,
    window_xid   xid8,
    window_id    bigint,
    claim_token  uuid,
    claimed_by   text,
    lease_ends   timestamptz
);
INSERT INTO windows_layout.outbox (event_id, topic, event_type, schema_version, trace_id, created_at, payload_json)
SELECT event_id, topic, event_type, schema_version, trace_id, created_at, payload_json
FROM outbox
ORDER BY id;
INSERT INTO windows_layout.readers (subscription, topic)
SELECT name, topic
FROM subscriptions;
GRANT USAGE ON SCHEMA windows_layout TO acp_relay;
GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA windows_layout TO acp_relay;
GRANT SELECT ON events, outbox TO acp_relay

-- name: claim_windows
-- Claims the next window. Rows of transactions that may still be under way are left out, because they commit late and a
-- position never moves back.
WITH reader AS MATERIALIZED (
    SELECT *
    FROM windows_layout.readers
    WHERE subscription = (%(subscriptions)s::text[])[1] AND (claim_token IS NULL OR lease_ends <= now())
    FOR UPDATE SKIP LOCKED
),
messages AS MATERIALIZED (
    SELECT message.*
    FROM reader
    CROSS JOIN LATERAL (
        SELECT *
        FROM windows_layout.outbox
        WHERE topic = reader.topic
            AND (stored_by, id) > (reader.stored_by, reader.id)
            AND stored_by < pg_snapshot_xmin(pg_current_snapshot())
        ORDER BY stored_by, id
        LIMIT (%(row_limits)s::integer[])[1]
    ) AS message
),
taken AS (
    UPDATE windows_layout.readers
    SET
        window_xid = last.stored_by,
        window_id = last.id,
        claim_token = %(claim_token)s::uuid,
        claimed_by = %(claimed_by)s,
        lease_ends = now() + make_interval(secs => %(lease_seconds)s)
    FROM (SELECT stored_by, id FROM messages ORDER BY stored_by DESC, id DESC LIMIT 1) AS last
    WHERE subscription = (%(subscriptions)s::text[])[1]
)
SELECT
    'claimed', id, (%(subscriptions)s::text[])[1], NULL, created_at, event_id::text, trace_id::text, topic, event_type,
    schema_version, payload_json::text
FROM messages
ORDER BY id

-- name: settle_windows
-- Settles a whole window at once. What became of a single message, and the id that the queue gave it, is recorded
-- nowhere.
WITH settled AS (
    UPDATE windows_layout.readers
    SET stored_by = window_xid, id = window_id, claim_token = NULL, claimed_by = NULL
    WHERE claim_token = (%(claim_tokens)s::uuid[])[1]
    RETURNING subscription
)
SELECT outbox_id
FROM settled
CROSS JOIN unnest(%(outbox_ids)s::bigint[]) AS outbox_id
