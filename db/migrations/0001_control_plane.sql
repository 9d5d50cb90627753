-- The event store and its outbox: raw payloads, immutable events, the messages promised to each subscription, and what
-- became of each. docs/architecture.md draws how they hang together.

-- Keeps rows immutable for everybody: the functions' roles lack the privileges, and this trigger stops the owner, too.
-- Only retention may delete, in a transaction that sets control_plane.retention.
CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' AND current_setting('control_plane.retention', true) = 'on' THEN
        RETURN NULL;
    END IF;
    RAISE EXCEPTION '% on % refused: its rows are immutable', TG_OP, TG_TABLE_NAME
        USING ERRCODE = 'restrict_violation',
              HINT = 'A correction is a new event. Retention deletes after SET LOCAL control_plane.retention = ''on''.';
END
$$;


CREATE TABLE raw_payloads (
    id           uuid        PRIMARY KEY,
    seq          bigint      GENERATED ALWAYS AS IDENTITY UNIQUE,
    source       text        NOT NULL CHECK (source <> ''),
    entity_id    text        CHECK (entity_id <> ''),
    observed_at  timestamptz NOT NULL DEFAULT now(),
    window_since timestamptz,
    fetched_at   timestamptz NOT NULL DEFAULT now(),
    trace_id     uuid        NOT NULL,
    payload_json jsonb       NOT NULL,
    -- The size is that of the text that readers get: jsonb stores 1e300 in a few bytes, and writes it in 301.
    CONSTRAINT raw_payloads_are_bounded CHECK (octet_length(payload_json::text) <= 16 * 1024 * 1024)
);
COMMENT ON TABLE raw_payloads IS 'What a source answered, one row per symbol and fetch, as nearly as the source lets us see it. Immutable.';
COMMENT ON COLUMN raw_payloads.seq IS 'The order in which the answers about one entity were stored: they are stored under its lock.';
COMMENT ON COLUMN raw_payloads.observed_at IS 'When the source was asked, by the database''s clock.';
COMMENT ON COLUMN raw_payloads.window_since IS 'From when on it was asked; null where it was asked for the most recent hour.';
COMMENT ON COLUMN raw_payloads.fetched_at IS 'When its answer had arrived, by the database''s clock.';
CREATE INDEX raw_payloads_in_order ON raw_payloads (source, entity_id, seq);
CREATE INDEX raw_payloads_by_trace ON raw_payloads (trace_id);
CREATE INDEX raw_payloads_by_age ON raw_payloads (fetched_at);
CREATE TRIGGER raw_payloads_are_immutable BEFORE UPDATE OR DELETE OR TRUNCATE ON raw_payloads
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();


CREATE TABLE events (
    event_id       uuid        PRIMARY KEY,
    seq            bigint      GENERATED ALWAYS AS IDENTITY UNIQUE,
    event_type     text        NOT NULL CHECK (event_type ~ '^[A-Z][A-Z0-9]*(_[A-Z0-9]+)*$'),
    source         text        NOT NULL CHECK (source <> ''),
    entity_id      text        CHECK (entity_id <> ''),
    entity_type    text        CHECK (entity_type <> ''),
    series         text        NOT NULL DEFAULT '',
    occurred_at    timestamptz NOT NULL,
    revision       integer     NOT NULL DEFAULT 0 CHECK (revision >= 0),
    observed_at    timestamptz NOT NULL DEFAULT now(),
    ingested_at    timestamptz NOT NULL,
    schema_version integer     NOT NULL CHECK (schema_version >= 1),
    trace_id       uuid        NOT NULL,
    raw_payload_id uuid        REFERENCES raw_payloads (id),
    stored_by      xid8        NOT NULL DEFAULT pg_current_xact_id(),
    payload_json   jsonb       NOT NULL CHECK (jsonb_typeof(payload_json) = 'object'),
    -- The first columns are those by which ingestion looks for an entity's newest observation and its latest revision.
    CONSTRAINT events_one_per_revision
        UNIQUE NULLS NOT DISTINCT (entity_id, source, event_type, series, occurred_at, revision)
);
COMMENT ON TABLE events IS 'The canonical facts. Immutable: docs/event_contract.md.';
COMMENT ON COLUMN events.seq IS 'A key for paging. Transactions commit in any order, so a greater value may become visible first.';
COMMENT ON COLUMN events.revision IS 'The number of this look among the different looks at the same instant, from 0 on. The highest counts.';
COMMENT ON COLUMN events.raw_payload_id IS 'Null if there was no answer; the event then says that a fetch failed.';
COMMENT ON COLUMN events.stored_by IS 'The transaction that stored it. Everything before a snapshot''s xmin is complete.';
CREATE INDEX events_by_trace ON events (trace_id);
CREATE INDEX events_by_type ON events (event_type, occurred_at);
CREATE INDEX events_by_raw_payload ON events (raw_payload_id);
CREATE INDEX events_by_age ON events (ingested_at);
CREATE TRIGGER events_are_immutable BEFORE UPDATE OR DELETE OR TRUNCATE ON events
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();


CREATE TABLE repeated_looks (
    entity_id   text,
    source      text        NOT NULL,
    event_type  text        NOT NULL,
    series      text        NOT NULL,
    occurred_at timestamptz NOT NULL,
    observed_at timestamptz NOT NULL,
    CONSTRAINT repeated_looks_key UNIQUE NULLS NOT DISTINCT (entity_id, source, event_type, series, occurred_at)
);
COMMENT ON TABLE repeated_looks IS 'When an observation was last looked at and found unchanged. An older look that is stored later is stale. Maintenance deletes rows about instants that no source serves any more.';
CREATE INDEX repeated_looks_by_age ON repeated_looks (observed_at);


CREATE TABLE subscriptions (
    name       text        PRIMARY KEY CHECK (name ~ '^[a-z][a-z0-9_]*$'),
    topic      text        NOT NULL CHECK (topic ~ '^[a-z][a-z0-9_]*\.[a-z][a-z0-9_]*$'),
    created_at timestamptz NOT NULL DEFAULT now(),
    removed_at timestamptz
);
COMMENT ON TABLE subscriptions IS 'One consumer''s standing order for a topic, with one queue. MigrationFunction brings it in line with the template.';
COMMENT ON COLUMN subscriptions.removed_at IS 'When it was removed from the template; since then it gets no messages. Null while it is active.';
CREATE INDEX subscriptions_by_topic ON subscriptions (topic) WHERE removed_at IS NULL;


CREATE TABLE operations (
    operation_id uuid        PRIMARY KEY,
    kind         text        NOT NULL CHECK (
        kind IN ('redrive', 'discard', 'replay', 'backfill', 'rebuild', 'retention', 'erasure')
    ),
    subscription text        NOT NULL DEFAULT '' CHECK (subscription ~ '^([a-z][a-z0-9_]*)?$'),
    filter       jsonb       NOT NULL CHECK (jsonb_typeof(filter) = 'object'),
    plan         jsonb       NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(plan) = 'object'),
    plan_hash    text,
    state        text        NOT NULL DEFAULT 'planning'
        CHECK (state IN ('planning', 'planned', 'running', 'paused', 'done', 'cancelled', 'failed')),
    progress     jsonb       NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(progress) = 'object'),
    rate         double precision CHECK (rate > 0 AND rate <= 100000),
    requested_by text        NOT NULL CHECK (requested_by <> ''),
    reason       text        NOT NULL DEFAULT '',
    requested_at timestamptz NOT NULL DEFAULT now(),
    planned_at   timestamptz,
    started_by   text        CHECK (started_by <> ''),
    started_at   timestamptz,
    finished_at  timestamptz,
    next_step_at timestamptz NOT NULL DEFAULT now(),
    last_step_at timestamptz,
    lease_until  timestamptz,
    fence        bigint      NOT NULL DEFAULT 0,
    failures     integer     NOT NULL DEFAULT 0 CHECK (failures >= 0),
    error        text        CHECK (error <> ''),
    CONSTRAINT operations_planned_with_a_hash CHECK (
        (plan_hash IS NULL) = (planned_at IS NULL) AND (plan_hash IS NOT NULL OR state NOT IN ('planned', 'running', 'paused'))
    ),
    CONSTRAINT operations_end_is_dated CHECK ((finished_at IS NOT NULL) = (state IN ('done', 'cancelled', 'failed'))),
    CONSTRAINT operations_failed_with_an_error CHECK (state <> 'failed' OR error IS NOT NULL),
    -- An active operation takes a range of the numbers, and no two ranges may overlap: retention and erasure take all,
    -- an operation on all subscriptions takes its kind's part, one on a subscription the number that is its name's hash.
    scope        int8range   GENERATED ALWAYS AS (
        CASE
            WHEN kind IN ('retention', 'erasure') THEN int8range(NULL, NULL)
            ELSE int8range(
                (array_position(ARRAY['redrive', 'replay', 'backfill', 'rebuild'], kind)::bigint << 33)
                    + CASE WHEN subscription = '' THEN -(1::bigint << 32) ELSE hashtext(subscription) END,
                (array_position(ARRAY['redrive', 'replay', 'backfill', 'rebuild'], kind)::bigint << 33)
                    + CASE WHEN subscription = '' THEN (1::bigint << 32) - 1 ELSE hashtext(subscription) END,
                '[]'
            )
        END
    ) STORED,
    -- A rebuild that failed still has its shadow tables, of which nothing is erased.
    CONSTRAINT operations_one_at_a_time EXCLUDE USING gist (scope WITH &&)
        WHERE (state IN ('running', 'paused') OR state = 'failed' AND kind = 'rebuild' AND started_at IS NOT NULL)
);
COMMENT ON TABLE operations IS 'Planned, recorded, pausable runs: what people did to the flow. docs/operations.md says how.';
COMMENT ON COLUMN operations.subscription IS 'The subscription or consumer that it is about; empty for all.';
COMMENT ON COLUMN operations.plan_hash IS 'SHA-256 over the canonical JSON of kind, filter and plan. Whoever starts it names this hash.';
COMMENT ON COLUMN operations.fence IS 'Counts the claims; a step takes effect only under the newest.';
CREATE INDEX operations_by_age ON operations (requested_at, operation_id);
CREATE INDEX operations_at_work ON operations (next_step_at) WHERE state IN ('planning', 'planned', 'running', 'paused');


-- Insert-only. A delivery that is still open is a narrow row of pending_deliveries, so a message is written only once
-- (docs/decisions/0020). The type is json, not jsonb, so that the text is sent exactly as it was stored.
CREATE TABLE outbox (
    id             bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    event_id       uuid        NOT NULL REFERENCES events (event_id),
    topic          text        NOT NULL CHECK (topic ~ '^[a-z][a-z0-9_]*\.[a-z][a-z0-9_]*$'),
    event_type     text        NOT NULL,
    schema_version integer     NOT NULL,
    trace_id       uuid        NOT NULL,
    created_at     timestamptz NOT NULL DEFAULT now(),
    payload_json   json        NOT NULL CHECK (json_typeof(payload_json) = 'object'),
    CONSTRAINT outbox_one_message UNIQUE (event_id, topic)
);
COMMENT ON TABLE outbox IS 'One event for one topic, as published. Immutable. What becomes of it: view outbox_states.';
COMMENT ON COLUMN outbox.payload_json IS 'The message as published: the whole canonical event.';
CREATE TRIGGER outbox_is_immutable BEFORE UPDATE OR DELETE OR TRUNCATE ON outbox
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();


CREATE TABLE pending_deliveries (
    outbox_id         bigint      NOT NULL,
    subscription      text        NOT NULL CHECK (subscription <> ''),
    operation_id      uuid,
    -- The statement's start, because the transaction may have waited for a lock since its own start. So the order of
    -- ids is the order of promises.
    promised_at       timestamptz NOT NULL DEFAULT statement_timestamp(),
    next_attempt_at   timestamptz NOT NULL DEFAULT now(),
    payload_bytes     integer     CHECK (payload_bytes >= 0),
    delivery_attempts integer     NOT NULL DEFAULT 0 CHECK (delivery_attempts >= 0),
    suspect_since     timestamptz,
    claim_token       uuid,
    claimed_by        text,
    last_error        text,
    CONSTRAINT pending_deliveries_key UNIQUE NULLS NOT DISTINCT (outbox_id, subscription, operation_id),
    CONSTRAINT pending_deliveries_claim_is_whole CHECK ((claim_token IS NULL) = (claimed_by IS NULL)),
    CONSTRAINT pending_deliveries_claim_is_an_attempt CHECK (claim_token IS NULL OR delivery_attempts >= 1)
)
-- Each row is soon inserted, claimed and deleted. So autovacuum starts after a number of dead rows, not a share of the
-- table, and always cleans the indexes.
WITH (
    autovacuum_vacuum_scale_factor = 0,
    autovacuum_vacuum_threshold = 20000,
    autovacuum_analyze_scale_factor = 0,
    autovacuum_analyze_threshold = 20000,
    autovacuum_vacuum_cost_delay = 0,
    vacuum_index_cleanup = on
);
COMMENT ON TABLE pending_deliveries IS 'Messages still to be delivered, one narrow row per message and subscription. No foreign keys: they would lock outbox rows.';
COMMENT ON COLUMN pending_deliveries.operation_id IS 'Null for the live flow; the redrive or replay that asked for this delivery.';
COMMENT ON COLUMN pending_deliveries.promised_at IS 'The delivery''s age counts from here; a redrive starts it again.';
COMMENT ON COLUMN pending_deliveries.next_attempt_at IS 'When it may be claimed; while it is claimed, when the lease runs out.';
COMMENT ON COLUMN pending_deliveries.payload_bytes IS 'The size of the message''s body; null if the claim must read it from the outbox.';
COMMENT ON COLUMN pending_deliveries.suspect_since IS 'When a send of it first got no verdict, or its lease first ran out. Since then it is sent alone and after the others.';
COMMENT ON COLUMN pending_deliveries.claim_token IS 'Identifies the claim that may settle the row; every settlement must present it.';
-- These two indexes serve the claim; each row is in one of them.
CREATE INDEX pending_deliveries_due ON pending_deliveries (subscription, next_attempt_at, outbox_id)
    WHERE suspect_since IS NULL;
CREATE INDEX pending_deliveries_suspect ON pending_deliveries (subscription, next_attempt_at, outbox_id)
    WHERE suspect_since IS NOT NULL;
-- This index serves the taking back of an operation's deliveries.
CREATE INDEX pending_deliveries_of_operations ON pending_deliveries (operation_id) WHERE operation_id IS NOT NULL;


CREATE TABLE deliveries (
    outbox_id         bigint      NOT NULL,
    subscription      text        NOT NULL,
    operation_id      uuid,
    delivered_at      timestamptz NOT NULL DEFAULT now(),
    delivery_attempts integer     NOT NULL CHECK (delivery_attempts >= 1),
    message_id        text        NOT NULL,
    CONSTRAINT deliveries_key UNIQUE NULLS NOT DISTINCT (outbox_id, subscription, operation_id)
);
COMMENT ON TABLE deliveries IS 'Messages that a subscription''s queue has accepted, with the id that it gave each. Immutable.';
CREATE TRIGGER deliveries_are_immutable BEFORE UPDATE OR DELETE OR TRUNCATE ON deliveries
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();


-- One list of all that was given up on: by the relay, by a consumer, or by Lambda for a scheduled invocation. The last two
-- come out of SQS queues by store_dead_letters (0010_dead_letters.sql), with their bodies as they were.
CREATE TABLE dead_letters (
    id                bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    kind              text        NOT NULL DEFAULT 'relay' CHECK (kind IN ('relay', 'consumer', 'invocation')),
    outbox_id         bigint,
    subscription      text,
    operation_id      uuid,
    promised_at       timestamptz,
    delivery_attempts integer     NOT NULL CHECK (delivery_attempts >= 0),
    dead_lettered_at  timestamptz NOT NULL DEFAULT now(),
    reason            text        NOT NULL CHECK (reason <> ''),
    topic             text,
    event_id          uuid,
    event_type        text,
    trace_id          uuid,
    queue             text        CHECK (queue <> ''),
    message_id        text        CHECK (message_id <> ''),
    sent_at           timestamptz,
    body              bytea       CHECK (octet_length(body) <= 1048576),
    attributes        jsonb       CHECK (jsonb_typeof(attributes) = 'object'),
    resolution        text        CHECK (resolution IN ('redriven', 'discarded')),
    resolved_at       timestamptz,
    resolved_by       text,
    resolved_because  text,
    redriven_by       uuid,
    CONSTRAINT dead_letters_of_a_message UNIQUE (queue, message_id),
    CONSTRAINT dead_letters_of_a_delivery CHECK (
        kind <> 'relay' OR outbox_id IS NOT NULL AND subscription IS NOT NULL AND promised_at IS NOT NULL
    ),
    CONSTRAINT dead_letters_of_a_queue CHECK (
        (kind = 'relay') = (queue IS NULL)
        AND (queue IS NULL) = (message_id IS NULL)
        AND (queue IS NULL) = (body IS NULL)
    ),
    CONSTRAINT dead_letters_of_a_subscription CHECK ((kind = 'invocation') = (subscription IS NULL)),
    CONSTRAINT dead_letters_resolution_is_whole CHECK (
        (resolution IS NULL) = (resolved_at IS NULL) AND (resolution IS NULL) = (resolved_by IS NULL)
    ),
    CONSTRAINT dead_letters_discarded_for_a_reason CHECK (resolution IS DISTINCT FROM 'discarded' OR resolved_because <> ''),
    CONSTRAINT dead_letters_redriven_by_an_operation CHECK ((redriven_by IS NOT NULL) = (resolution IS NOT DISTINCT FROM 'redriven'))
);
COMMENT ON TABLE dead_letters IS 'Messages that were given up on. A row stays when it is redriven or discarded, and records that.';
COMMENT ON COLUMN dead_letters.kind IS 'Who gave up: the relay on a delivery, a consumer on a message of its queue, or Lambda on a scheduled invocation.';
COMMENT ON COLUMN dead_letters.outbox_id IS 'The message that would be sent again; null if the body is no message of the outbox.';
COMMENT ON COLUMN dead_letters.event_id IS 'Of the message in the outbox; for another body, what it or its attributes say.';
COMMENT ON COLUMN dead_letters.queue IS 'The SQS queue that it was taken out of; null for the relay''s.';
COMMENT ON COLUMN dead_letters.body IS 'The message''s body as it came, readable or not.';
COMMENT ON COLUMN dead_letters.redriven_by IS 'The operation whose pending delivery takes its place.';
-- The list shows only the beginning of a body, and an uncompressed value is read in part.
ALTER TABLE dead_letters ALTER COLUMN body SET STORAGE EXTERNAL;
CREATE UNIQUE INDEX dead_letters_key ON dead_letters (outbox_id, subscription, operation_id) NULLS NOT DISTINCT
    WHERE kind = 'relay';
CREATE INDEX dead_letters_by_outbox ON dead_letters (outbox_id, subscription) WHERE outbox_id IS NOT NULL;
-- These serve the list: the open ones, newest first, all of them or by one of its filters.
CREATE INDEX dead_letters_open ON dead_letters (id) WHERE resolution IS NULL;
CREATE INDEX dead_letters_open_by_subscription ON dead_letters (subscription, id) WHERE resolution IS NULL;
CREATE INDEX dead_letters_open_by_kind ON dead_letters (kind, id) WHERE resolution IS NULL;
CREATE INDEX dead_letters_by_time ON dead_letters (dead_lettered_at);
CREATE INDEX dead_letters_by_event ON dead_letters (event_id) WHERE event_id IS NOT NULL;
CREATE INDEX dead_letters_by_trace ON dead_letters (trace_id) WHERE trace_id IS NOT NULL;

CREATE FUNCTION describe_dead_letter() RETURNS trigger
LANGUAGE plpgsql
SET search_path = pg_catalog, public, pg_temp
AS $$
BEGIN
    SELECT message.topic, message.event_id, message.event_type, message.trace_id
    INTO NEW.topic, NEW.event_id, NEW.event_type, NEW.trace_id
    FROM outbox AS message
    WHERE message.id = NEW.outbox_id;
    RETURN NEW;
END
$$;
COMMENT ON FUNCTION describe_dead_letter IS 'Copies to a dead letter what its message in the outbox is about, so that the list is filtered by it.';
CREATE TRIGGER dead_letters_are_described BEFORE INSERT ON dead_letters
    FOR EACH ROW WHEN (NEW.outbox_id IS NOT NULL) EXECUTE FUNCTION describe_dead_letter();


CREATE TABLE delivery_failures (
    outbox_id    bigint      NOT NULL,
    subscription text        NOT NULL,
    operation_id uuid,
    attempt      integer     NOT NULL CHECK (attempt >= 1),
    failed_at    timestamptz NOT NULL DEFAULT now(),
    claimed_by   text        NOT NULL,
    error        text        NOT NULL CHECK (error <> '')
);
COMMENT ON TABLE delivery_failures IS 'Every failed attempt. An attempt that was lost with its relay is recorded when its row is next claimed.';
CREATE INDEX delivery_failures_by_outbox ON delivery_failures (outbox_id);


-- What makes a dead letter one of the relay's stands outside of the branches: within, it would keep a join from looking that
-- branch up by its index.
CREATE VIEW delivery_states AS
SELECT
    outbox_id, subscription, operation_id, state, delivery_attempts, next_attempt_at, delivered_at, message_id,
    dead_lettered_at, last_error, promised_at, claimed_by
FROM (
    SELECT
        outbox_id,
        subscription,
        operation_id,
        CASE
            WHEN claim_token IS NOT NULL AND next_attempt_at > now() THEN 'in_flight'
            WHEN claim_token IS NULL AND last_error IS NOT NULL THEN 'retrying'
            ELSE 'pending'
        END AS state,
        delivery_attempts,
        next_attempt_at,
        NULL::timestamptz AS delivered_at,
        NULL::text AS message_id,
        NULL::timestamptz AS dead_lettered_at,
        last_error,
        promised_at,
        claimed_by,
        'relay'::text AS kind
    FROM pending_deliveries
    UNION ALL
    SELECT
        outbox_id, subscription, operation_id, 'delivered', delivery_attempts, NULL, delivered_at, message_id, NULL, NULL,
        NULL, NULL, 'relay'
    FROM deliveries
    UNION ALL
    SELECT
        outbox_id, subscription, operation_id, coalesce(resolution, 'dead_lettered'), delivery_attempts, NULL, NULL, NULL,
        dead_lettered_at, reason, promised_at, NULL, kind
    FROM dead_letters
) AS delivery
WHERE kind = 'relay';
COMMENT ON VIEW delivery_states IS 'Every delivery with the one state it is in at this moment: pending, in_flight, retrying, delivered, dead_lettered, redriven, discarded. docs/architecture.md draws the machine.';

CREATE VIEW outbox_states AS
SELECT
    message.id,
    message.event_id,
    message.topic,
    delivery.subscription,
    delivery.operation_id,
    delivery.state,
    delivery.delivery_attempts,
    delivery.next_attempt_at,
    delivery.delivered_at,
    delivery.message_id,
    delivery.dead_lettered_at,
    delivery.last_error,
    message.created_at,
    delivery.promised_at,
    delivery.claimed_by
FROM outbox AS message
JOIN delivery_states AS delivery ON delivery.outbox_id = message.id;
COMMENT ON VIEW outbox_states IS 'Every delivery of every message, with its state.';


CREATE TABLE processed_events (
    consumer     text        NOT NULL CHECK (consumer <> ''),
    event_id     uuid        NOT NULL,
    processed_at timestamptz NOT NULL DEFAULT now(),
    operation_id uuid,
    CONSTRAINT processed_events_key UNIQUE NULLS NOT DISTINCT (consumer, event_id, operation_id)
);
COMMENT ON TABLE processed_events IS 'Written in the same transaction as a consumer''s effect, which makes the effect happen once.';
COMMENT ON COLUMN processed_events.operation_id IS 'Null for the live flow; the replay under which the effect ran again.';
CREATE INDEX processed_events_by_event ON processed_events (event_id);


CREATE TABLE circuit_breakers (
    name                 text        PRIMARY KEY CHECK (name <> ''),
    state                text        NOT NULL DEFAULT 'closed' CHECK (state IN ('closed', 'open', 'half_open')),
    consecutive_failures integer     NOT NULL DEFAULT 0 CHECK (consecutive_failures >= 0),
    opened_at            timestamptz,
    retry_at             timestamptz,
    held_by              text,
    held_reason          text,
    last_error           text,
    guarded_at           timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT circuit_breakers_open_since CHECK (state = 'closed' OR opened_at IS NOT NULL),
    CONSTRAINT circuit_breakers_held_open CHECK (held_by IS NULL OR state = 'open'),
    CONSTRAINT circuit_breakers_reason_held CHECK (held_reason IS NULL OR held_by IS NOT NULL AND held_reason <> '')
);
COMMENT ON TABLE circuit_breakers IS 'One per subscription and per source, shared by all functions; held_by names the person who holds it open, held_reason why.';
COMMENT ON COLUMN circuit_breakers.guarded_at IS 'When a function last guarded with it. One that nobody guards with counts no longer, and can be forgotten.';


CREATE TABLE relay_handover (
    only_one boolean     PRIMARY KEY DEFAULT true CHECK (only_one),
    token    uuid        NOT NULL,
    name     text        NOT NULL CHECK (name <> ''),
    since    timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE relay_handover IS 'The relay that lingers, if any; the next one that comes to linger takes over. Two at once do no harm, but cost more.';


-- SignalLab's own tables, of the domain finance: the latest price per entity, its bars, and the risk that they show.
-- The source is part of each key, so replayed prices never pass for live ones.

CREATE TABLE signal_lab_latest_prices (
    source      text             NOT NULL,
    entity_id   text             NOT NULL,
    price       double precision NOT NULL,
    currency    text             NOT NULL,
    occurred_at timestamptz      NOT NULL,
    series      text             NOT NULL,
    revision    integer          NOT NULL,
    event_id    uuid             NOT NULL,
    PRIMARY KEY (source, entity_id)
);
COMMENT ON TABLE signal_lab_latest_prices IS 'The newest tick by occurred_at, then series, then revision: any order of delivery ends in the same rows.';

CREATE TABLE signal_lab_bars (
    source       text             NOT NULL,
    entity_id    text             NOT NULL,
    bar_interval text             NOT NULL,
    occurred_at  timestamptz      NOT NULL,
    open         double precision NOT NULL,
    high         double precision NOT NULL,
    low          double precision NOT NULL,
    price        double precision NOT NULL,
    volume       bigint           NOT NULL,
    revision     integer          NOT NULL,
    event_id     uuid             NOT NULL,
    PRIMARY KEY (source, entity_id, bar_interval, occurred_at)
);
COMMENT ON TABLE signal_lab_bars IS 'One row per bar: its latest revision. price is the close.';

CREATE VIEW signal_lab_returns AS
SELECT
    source,
    entity_id,
    bar_interval,
    occurred_at,
    price,
    bar_return,
    stddev_samp(bar_return) OVER (series ROWS BETWEEN 29 PRECEDING AND CURRENT ROW) AS rolling_volatility,
    usable_price
        / NULLIF(greatest(max(usable_price) OVER (series ROWS UNBOUNDED PRECEDING), 1e-9), 1e-9) - 1 AS drawdown
FROM (
    SELECT
        *,
        usable_price / NULLIF(
            greatest(lag(usable_price) OVER (PARTITION BY source, entity_id, bar_interval ORDER BY occurred_at), 1e-9),
            1e-9
        ) - 1 AS bar_return
    FROM (
        -- One absurd price must not make the arithmetic overflow for all entities.
        SELECT *, CASE WHEN abs(price) <= 1e15 THEN price END AS usable_price FROM signal_lab_bars
    ) AS usable_bars
) AS bars
WINDOW series AS (PARTITION BY source, entity_id, bar_interval ORDER BY occurred_at);
COMMENT ON VIEW signal_lab_returns IS 'Per bar, as fractions: its return, the standard deviation of the last 30 returns (not annualised), the fall from the highest price so far. Null where that would be a fraction of nothing or of less, and for prices beyond 1e15.';

CREATE VIEW signal_lab_risk AS
SELECT DISTINCT ON (source, entity_id, bar_interval)
    source,
    entity_id,
    bar_interval,
    occurred_at,
    price,
    bar_return,
    rolling_volatility,
    drawdown,
    min(drawdown) OVER series AS maximum_drawdown,
    count(*) OVER series AS bars
FROM signal_lab_returns
WINDOW series AS (PARTITION BY source, entity_id, bar_interval)
ORDER BY source, entity_id, bar_interval, occurred_at DESC;
COMMENT ON VIEW signal_lab_risk IS 'Per entity: the newest bar of signal_lab_returns, and the maximum drawdown of all.';
