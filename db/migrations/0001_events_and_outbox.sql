-- The event store and its outbox: raw payloads, immutable events, the promises to deliver them, and what became of each.

-- The functions' role. It is made without a login where an administrator has not made it yet; roles belong to the
-- cluster, so the first migrations of two databases may race for it.
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'acp_app') THEN
        CREATE ROLE acp_app NOLOGIN;
    END IF;
EXCEPTION
    WHEN duplicate_object OR unique_violation THEN NULL;
END
$$;

DO $$
BEGIN
    EXECUTE format('REVOKE TEMPORARY ON DATABASE %I FROM PUBLIC', current_database());
    EXECUTE format('GRANT CONNECT ON DATABASE %I TO acp_app', current_database());
END
$$;
REVOKE CREATE ON SCHEMA public FROM PUBLIC;
GRANT USAGE ON SCHEMA public TO acp_app;


CREATE TABLE raw_payloads (
    id           uuid        PRIMARY KEY,
    source       text        NOT NULL CHECK (source <> ''),
    fetched_at   timestamptz NOT NULL,
    trace_id     uuid        NOT NULL,
    payload_json jsonb       NOT NULL
);
COMMENT ON TABLE raw_payloads IS 'What a source answered, one row per symbol and fetch, as nearly as the source lets us see it. Immutable.';
CREATE INDEX raw_payloads_by_source ON raw_payloads (source, fetched_at);
CREATE INDEX raw_payloads_by_trace ON raw_payloads (trace_id);


CREATE TABLE events (
    event_id       uuid        PRIMARY KEY,
    event_type     text        NOT NULL CHECK (event_type ~ '^[A-Z][A-Z0-9]*(_[A-Z0-9]+)*$'),
    source         text        NOT NULL CHECK (source <> ''),
    entity_id      text        CHECK (entity_id <> ''),
    entity_type    text        CHECK (entity_type <> ''),
    occurred_at    timestamptz NOT NULL,
    ingested_at    timestamptz NOT NULL,
    schema_version integer     NOT NULL CHECK (schema_version >= 1),
    trace_id       uuid        NOT NULL,
    raw_payload_id uuid        REFERENCES raw_payloads (id),
    payload_json   jsonb       NOT NULL CHECK (jsonb_typeof(payload_json) = 'object')
);
COMMENT ON TABLE events IS 'The canonical facts. Immutable: docs/event_contract.md.';
COMMENT ON COLUMN events.raw_payload_id IS 'Null where nothing was answered: the event says that a fetch failed.';
CREATE INDEX events_by_trace ON events (trace_id);
CREATE INDEX events_by_entity ON events (entity_id, occurred_at);
CREATE INDEX events_by_type ON events (event_type, occurred_at);
CREATE INDEX events_by_raw_payload ON events (raw_payload_id);


-- Immutable for everybody: privileges refuse acp_app, this trigger refuses the owner too. Retention alone may delete,
-- and says so within its own transaction.
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
CREATE TRIGGER raw_payloads_are_immutable BEFORE UPDATE OR DELETE OR TRUNCATE ON raw_payloads
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER events_are_immutable BEFORE UPDATE OR DELETE OR TRUNCATE ON events
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();


CREATE TABLE replays (
    replay_id    uuid        PRIMARY KEY,
    requested_at timestamptz NOT NULL DEFAULT now(),
    requested_by text        NOT NULL CHECK (requested_by <> ''),
    filter       jsonb       NOT NULL CHECK (jsonb_typeof(filter) = 'object'),
    event_count  bigint      NOT NULL CHECK (event_count >= 0)
);
COMMENT ON TABLE replays IS 'Past events published again, on purpose.';


CREATE TABLE outbox (
    id                bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    event_id          uuid        NOT NULL REFERENCES events (event_id),
    topic             text        NOT NULL CHECK (topic ~ '^[a-z][a-z0-9_]*\.[a-z][a-z0-9_]*$'),
    replay_id         uuid        REFERENCES replays (replay_id),
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
);
COMMENT ON TABLE outbox IS 'The promise to publish one event on one topic. Its state is derived: view outbox_states.';
COMMENT ON COLUMN outbox.payload_json IS 'The message as published: the whole canonical event.';
COMMENT ON COLUMN outbox.next_attempt_at IS 'When it may be claimed; while it is claimed, when the lease runs out.';
COMMENT ON COLUMN outbox.claim_token IS 'Names the claim that may settle the row; every settlement filters on it.';

-- Serves the claim, and holds only what is open.
CREATE INDEX outbox_claimable ON outbox (next_attempt_at, id) WHERE delivered_at IS NULL AND dead_lettered_at IS NULL;

CREATE VIEW outbox_states AS
SELECT
    o.*,
    CASE
        WHEN delivered_at IS NOT NULL THEN 'delivered'
        WHEN dead_lettered_at IS NOT NULL THEN 'dead_lettered'
        WHEN claim_token IS NOT NULL AND next_attempt_at > now() THEN 'in_flight'
        WHEN claim_token IS NULL AND last_error IS NOT NULL THEN 'retrying'
        ELSE 'pending'
    END AS state
FROM outbox AS o;
COMMENT ON VIEW outbox_states IS 'The outbox with the one state each row is in at this moment: docs/architecture.md draws the machine.';


CREATE TABLE delivery_failures (
    outbox_id  bigint      NOT NULL REFERENCES outbox (id) ON DELETE CASCADE,
    attempt    integer     NOT NULL CHECK (attempt >= 1),
    failed_at  timestamptz NOT NULL DEFAULT now(),
    claimed_by text        NOT NULL,
    error      text        NOT NULL CHECK (error <> '')
);
COMMENT ON TABLE delivery_failures IS 'Every failed attempt; one lost with its relay is recorded when its row is next claimed.';
CREATE INDEX delivery_failures_by_outbox ON delivery_failures (outbox_id);


CREATE TABLE processed_events (
    consumer     text        NOT NULL CHECK (consumer <> ''),
    event_id     uuid        NOT NULL,
    processed_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (consumer, event_id)
);
COMMENT ON TABLE processed_events IS 'Written in the same transaction as a consumer''s effect, which makes the effect happen once.';
CREATE INDEX processed_events_by_event ON processed_events (event_id);


CREATE TABLE circuit_breakers (
    name                 text        PRIMARY KEY CHECK (name <> ''),
    state                text        NOT NULL DEFAULT 'closed' CHECK (state IN ('closed', 'open', 'half_open')),
    consecutive_failures integer     NOT NULL DEFAULT 0 CHECK (consecutive_failures >= 0),
    opened_at            timestamptz,
    retry_at             timestamptz,
    held_by              text,
    last_error           text,
    CONSTRAINT circuit_breakers_open_since CHECK (state = 'closed' OR opened_at IS NOT NULL)
);
COMMENT ON TABLE circuit_breakers IS 'One per queue and per source, shared by all functions; held_by names the person who holds it open.';


GRANT SELECT, INSERT ON raw_payloads, events, delivery_failures, processed_events, replays TO acp_app;
GRANT SELECT, INSERT, UPDATE ON circuit_breakers TO acp_app;
GRANT SELECT, INSERT ON outbox TO acp_app;
-- What was promised stays as it was promised; what became of it is all that changes.
GRANT UPDATE (
    next_attempt_at, delivery_attempts, claim_token, claimed_by, delivered_at, message_id, dead_lettered_at, last_error
) ON outbox TO acp_app;
GRANT SELECT ON outbox_states TO acp_app;
