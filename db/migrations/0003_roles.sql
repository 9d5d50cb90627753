-- A role per kind of function, which may do what its functions do and nothing else. docs/deploy.md makes the roles. A
-- missing role is made here without a login, if the owner may make roles. Roles belong to the cluster, so the first
-- migrations of two databases may make the same role at the same time.
DO $$
DECLARE
    role_name text;
    missing text[];
BEGIN
    missing := ARRAY(
        SELECT wanted
        FROM unnest(ARRAY['acp_consume', 'acp_ingest', 'acp_maintain', 'acp_reader', 'acp_relay']) AS wanted
        WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = wanted)
        ORDER BY wanted
    );
    FOREACH role_name IN ARRAY missing LOOP
        BEGIN
            EXECUTE format('CREATE ROLE %I NOLOGIN', role_name);
        EXCEPTION
            WHEN duplicate_object OR unique_violation THEN NULL;
            WHEN insufficient_privilege THEN
                RAISE EXCEPTION 'there is no role %, and % may not make any: as an administrator run CREATE ROLE % LOGIN PASSWORD ''…'' for each, then migrate again (docs/deploy.md)',
                    array_to_string(missing, ', '), current_user, role_name
                    USING ERRCODE = 'undefined_object';
        END;
    END LOOP;
END
$$;

DO $$
BEGIN
    EXECUTE format('REVOKE TEMPORARY ON DATABASE %I FROM PUBLIC', current_database());
    EXECUTE format(
        'GRANT CONNECT ON DATABASE %I TO acp_ingest, acp_relay, acp_consume, acp_reader, acp_maintain',
        current_database()
    );
END
$$;
REVOKE CREATE ON SCHEMA public FROM PUBLIC;
GRANT USAGE ON SCHEMA public TO acp_ingest, acp_relay, acp_consume, acp_reader, acp_maintain;
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA public FROM PUBLIC;
-- Nobody may execute functions of later migrations either, until they are granted.
ALTER DEFAULT PRIVILEGES REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC;


-- IngestionFunction. Only insert_events stores events, messages and pending deliveries.
GRANT SELECT (event_id, event_type, source, entity_id, series, occurred_at, revision, observed_at) ON events TO acp_ingest;
GRANT INSERT (id, source, entity_id, observed_at, window_since, fetched_at, trace_id, payload_json) ON raw_payloads TO acp_ingest;
GRANT SELECT, INSERT, UPDATE (observed_at) ON repeated_looks TO acp_ingest;
GRANT EXECUTE ON FUNCTION insert_events TO acp_ingest;

-- RelayFunction. The owner's functions claim and settle. Nobody but the claimant sees a claim's token.
GRANT SELECT (outbox_id, subscription, operation_id, promised_at, suspect_since) ON pending_deliveries TO acp_relay;
GRANT SELECT (id, created_at) ON outbox TO acp_relay;
GRANT SELECT (outbox_id, subscription, operation_id, delivered_at, message_id) ON deliveries TO acp_relay;
GRANT SELECT, INSERT (token, name), UPDATE (token, name, since), DELETE ON relay_handover TO acp_relay;
GRANT EXECUTE ON FUNCTION claim_deliveries, settle_deliveries, others_were_delivered TO acp_relay;

-- Ingestion and the relay use breakers. Only a person holds, resumes or forgets one, as the owner.
GRANT SELECT ON circuit_breakers TO acp_ingest, acp_relay;
GRANT INSERT (name, state, consecutive_failures, opened_at, retry_at, last_error) ON circuit_breakers TO acp_ingest, acp_relay;
GRANT UPDATE (state, consecutive_failures, opened_at, retry_at, last_error, guarded_at) ON circuit_breakers TO acp_ingest, acp_relay;

-- The consumers record that an event was processed, and write their effects.
GRANT SELECT (event_id), INSERT (consumer, event_id) ON processed_events TO acp_consume;
GRANT SELECT, INSERT, UPDATE ON signal_lab_latest_prices, signal_lab_bars TO acp_consume;

-- OpsApiFunction, and people who look, may read everything except claims' tokens.
GRANT SELECT ON
    raw_payloads, events, repeated_looks, subscriptions, operations, outbox, deliveries, dead_letters, delivery_failures,
    delivery_states, outbox_states, processed_events, circuit_breakers, signal_lab_latest_prices, signal_lab_bars,
    signal_lab_returns, signal_lab_risk
    TO acp_reader;
GRANT SELECT (
    outbox_id, subscription, operation_id, promised_at, next_attempt_at, payload_bytes, delivery_attempts, suspect_since,
    claimed_by, last_error
) ON pending_deliveries TO acp_reader;
GRANT SELECT (only_one, name, since) ON relay_handover TO acp_reader;
