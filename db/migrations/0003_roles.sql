-- Who may do what: a role per kind of function, with what its functions do and nothing else. docs/deploy.md makes the
-- roles. One that is missing is made without a login, where the owner may make roles; roles belong to the cluster, so the
-- first migrations of two databases may race for it.
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
-- Those that later migrations make are for nobody either, until they are granted.
ALTER DEFAULT PRIVILEGES REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC;


-- IngestionFunction. Events, messages and what is promised come about in insert_events alone.
GRANT SELECT (event_id, event_type, source, entity_id, series, occurred_at, revision, observed_at) ON events TO acp_ingest;
GRANT INSERT (id, source, entity_id, observed_at, window_since, fetched_at, trace_id, payload_json) ON raw_payloads TO acp_ingest;
GRANT SELECT, INSERT, UPDATE (observed_at) ON repeated_looks TO acp_ingest;
GRANT EXECUTE ON FUNCTION insert_events TO acp_ingest;

-- RelayFunction. Claims and settlements are the owner's functions. A claim's token is shown to nobody but its claimant.
GRANT SELECT (outbox_id, subscription, operation_id, promised_at, suspect_since) ON pending_deliveries TO acp_relay;
GRANT SELECT (id, created_at) ON outbox TO acp_relay;
GRANT SELECT (outbox_id, subscription, operation_id, delivered_at, message_id) ON deliveries TO acp_relay;
GRANT SELECT, INSERT (token, name), UPDATE (token, name, since), DELETE ON relay_handover TO acp_relay;
GRANT EXECUTE ON FUNCTION claim_deliveries, settle_deliveries, others_were_delivered TO acp_relay;

-- Both guard what they call with breakers. Only a person holds one, lets go of it or forgets it, as the owner.
GRANT SELECT ON circuit_breakers TO acp_ingest, acp_relay;
GRANT INSERT (name, state, consecutive_failures, opened_at, retry_at, last_error) ON circuit_breakers TO acp_ingest, acp_relay;
GRANT UPDATE (state, consecutive_failures, opened_at, retry_at, last_error, guarded_at) ON circuit_breakers TO acp_ingest, acp_relay;

-- The consumers: that an event was processed, and their effects.
GRANT SELECT (event_id), INSERT (consumer, event_id) ON processed_events TO acp_consume;
GRANT SELECT, INSERT, UPDATE ON signal_lab_latest_prices, signal_lab_bars TO acp_consume;

-- OpsApiFunction, and people who look: everything but the tokens that permit something.
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

-- MaintenanceFunction. It deletes by the owner's functions alone, and they nothing that is young.
GRANT EXECUTE ON FUNCTION delete_expired_events, delete_expired_raw_payloads, delete_repeated_looks TO acp_maintain;
