-- What leaves the record, and what is made again from it: retention, erasure, rebuild. Everything here is deleted by these
-- functions alone, in small batches, each in its caller's transaction.

-- What expires is looked for by its age.
CREATE INDEX processed_events_by_age ON processed_events (processed_at);
CREATE INDEX delivery_failures_by_age ON delivery_failures (failed_at);
CREATE INDEX dead_letters_by_end ON dead_letters (resolved_at) WHERE outbox_id IS NULL AND resolution IS NOT NULL;
CREATE INDEX decisions_by_end ON decisions (closed_at) WHERE closed_at IS NOT NULL;
CREATE INDEX decisions_by_trigger ON decisions (trigger_event_id);
CREATE INDEX raw_payloads_of_entity ON raw_payloads (entity_id) WHERE entity_id IS NOT NULL;
-- An artifact goes with the last row that names it, so each naming column is looked up.
CREATE INDEX decisions_by_pins ON decisions (pins_sha256);
CREATE INDEX decision_steps_by_input ON decision_steps (input_sha256) WHERE input_sha256 IS NOT NULL;
CREATE INDEX decision_steps_by_output ON decision_steps (output_sha256) WHERE output_sha256 IS NOT NULL;
CREATE INDEX agent_calls_by_request ON agent_calls (request_sha256);
CREATE INDEX agent_calls_by_answer ON agent_calls (answer_sha256) WHERE answer_sha256 IS NOT NULL;
CREATE INDEX verdicts_by_action ON verdicts (action_sha256) WHERE action_sha256 IS NOT NULL;
CREATE INDEX verdicts_by_request ON verdicts (request_sha256) WHERE request_sha256 IS NOT NULL;
CREATE INDEX verdicts_by_policy ON verdicts (policy_sha256) WHERE policy_sha256 IS NOT NULL;
CREATE INDEX verdicts_by_schema ON verdicts (schema_sha256) WHERE schema_sha256 IS NOT NULL;
CREATE INDEX approval_requests_by_action ON approval_requests (action_sha256);
CREATE INDEX actions_by_artifact ON actions (action_sha256);
CREATE INDEX actions_by_verdict ON actions (verdict_id);


-- Retention and erasure leave these behind.

CREATE TABLE decision_tombstones (
    decision_id  uuid        PRIMARY KEY,
    head_seq     integer     NOT NULL,
    head_hash    bytea       NOT NULL,
    cause        text        NOT NULL CHECK (cause IN ('retention', 'erasure')),
    operation_id uuid        CHECK (operation_id IS NOT NULL OR cause = 'retention'),
    removed_at   timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE decision_tombstones IS 'Decisions that were removed whole, with the head of their chain: an audit tells by it a removal from tampering. Immutable.';
COMMENT ON COLUMN decision_tombstones.operation_id IS 'The operation that removed it; null for the scheduled retention.';
CREATE TRIGGER decision_tombstones_are_immutable BEFORE UPDATE OR DELETE OR TRUNCATE ON decision_tombstones
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

CREATE TABLE removed_spending (
    scope          text   NOT NULL,
    day            date   NOT NULL,
    spent_micros   bigint NOT NULL,
    overrun_micros bigint NOT NULL,
    PRIMARY KEY (scope, day),
    FOREIGN KEY (scope, day) REFERENCES budgets (scope, day)
);
COMMENT ON TABLE removed_spending IS 'What the calls of removed decisions cost, per budget: with their reservations gone, the budget still adds up.';

CREATE TABLE erasures (
    operation_id uuid        PRIMARY KEY,
    about        text        NOT NULL CHECK (about IN ('entity', 'observation')),
    key_sha256   bytea       NOT NULL,
    is_refused   boolean     NOT NULL,
    requested_by text        NOT NULL,
    begun_at     timestamptz NOT NULL DEFAULT now(),
    finished_at  timestamptz,
    removed      jsonb       NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(removed) = 'object')
);
COMMENT ON TABLE erasures IS 'One tombstone per erasure: who asked, when, how many rows of what are gone; of what it was about a hash alone.';
COMMENT ON COLUMN erasures.is_refused IS 'Whether ingestion refuses looks at it from now on.';
CREATE INDEX erasures_refused ON erasures (key_sha256) WHERE is_refused;


-- What may expire once it is old enough: nothing that is still open, or that something open needs.

CREATE VIEW expirable_decisions AS
SELECT decision_id, closed_at AS at
FROM decisions AS decision
WHERE closed_at IS NOT NULL
    -- Its head is anchored outside of its reach, so that what stays behind can be held against the anchor.
    AND anchored_seq = head_seq
    AND NOT EXISTS (
        SELECT
        FROM actions AS action
        WHERE action.decision_id = decision.decision_id
            AND NOT EXISTS (SELECT FROM executions AS done WHERE done.action_id = action.action_id)
    )
    AND NOT EXISTS (
        SELECT
        FROM events AS event
        JOIN outbox AS message ON message.event_id = event.event_id
        WHERE event.trace_id = decision.trace_id
            AND (
                EXISTS (SELECT FROM pending_deliveries AS pending WHERE pending.outbox_id = message.id)
                OR EXISTS (
                    SELECT FROM dead_letters AS letter WHERE letter.outbox_id = message.id AND letter.resolution IS NULL
                )
            )
    );
COMMENT ON VIEW expirable_decisions IS 'Decisions that retention may remove: closed, anchored, without an action still to be executed or a message still open.';

CREATE VIEW expirable_events AS
SELECT event_id, ingested_at AS at
FROM events AS event
WHERE NOT EXISTS (
        SELECT
        FROM outbox AS message
        WHERE message.event_id = event.event_id
            AND (
                EXISTS (SELECT FROM pending_deliveries AS pending WHERE pending.outbox_id = message.id)
                OR EXISTS (
                    SELECT FROM dead_letters AS letter WHERE letter.outbox_id = message.id AND letter.resolution IS NULL
                )
            )
    )
    AND NOT EXISTS (
        SELECT FROM decisions AS decision WHERE decision.trigger_event_id = event.event_id AND decision.closed_at IS NULL
    );
COMMENT ON VIEW expirable_events IS 'Events that retention may remove: without a pending delivery, an open dead letter or an open decision.';

CREATE VIEW expirable_raw_payloads AS
SELECT id, fetched_at AS at
FROM raw_payloads AS raw
WHERE NOT EXISTS (SELECT FROM events WHERE events.raw_payload_id = raw.id);
COMMENT ON VIEW expirable_raw_payloads IS 'Raw payloads from which no stored event was made.';

CREATE VIEW expirable_processed_events AS
SELECT ctid AS place, processed_at AS at
FROM processed_events AS processed
WHERE NOT EXISTS (
    SELECT
    FROM outbox AS message
    WHERE message.event_id = processed.event_id
        AND (
            EXISTS (SELECT FROM pending_deliveries AS pending WHERE pending.outbox_id = message.id)
            OR EXISTS (SELECT FROM dead_letters AS letter WHERE letter.outbox_id = message.id AND letter.resolution IS NULL)
        )
);
COMMENT ON VIEW expirable_processed_events IS 'Records of processing whose event has nothing open. A replay of it later takes effect again.';

CREATE VIEW expirable_delivery_failures AS
SELECT ctid AS place, failed_at AS at
FROM delivery_failures AS failure
WHERE NOT EXISTS (SELECT FROM pending_deliveries AS pending WHERE pending.outbox_id = failure.outbox_id)
    AND NOT EXISTS (
        SELECT FROM dead_letters AS letter WHERE letter.outbox_id = failure.outbox_id AND letter.resolution IS NULL
    );
COMMENT ON VIEW expirable_delivery_failures IS 'Failed attempts of deliveries that have ended and are no open dead letter.';


CREATE VIEW expirable_dead_letters AS
SELECT id, resolved_at AS at
FROM dead_letters
WHERE outbox_id IS NULL AND resolution IS NOT NULL;
COMMENT ON VIEW expirable_dead_letters IS 'Dead letters that are resolved and whose body is no message of the outbox. Those of a message go with its event.';


-- Nothing younger than 30 days expires: SQS keeps a message for two weeks, and what forgets an event forgets that it was
-- processed.
CREATE FUNCTION check_retention(older_than timestamptz, batch_size integer) RETURNS void LANGUAGE plpgsql STABLE AS $$
BEGIN
    -- LIMIT takes null for no limit at all.
    IF batch_size IS NULL OR batch_size < 1 THEN
        RAISE EXCEPTION 'a batch of % rows refused: 1 is the least', coalesce(batch_size::text, 'no')
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF older_than IS NULL OR older_than > now() - interval '30 days' THEN
        RAISE EXCEPTION 'a retention until % refused: what is younger than 30 days is kept', coalesce(older_than::text, 'never')
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
END
$$;

-- Removes events with their messages and all that became of those; an event whose message stays, stays, too. Where they
-- are erased, what is still open goes as well, and whatever a queue still holds of them is marked as processed.
CREATE FUNCTION remove_events(ids uuid[], are_erased boolean) RETURNS bigint
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, public, pg_temp
SET plan_cache_mode = force_custom_plan
AS $$
DECLARE
    message_ids bigint[];
    removed uuid[];
BEGIN
    PERFORM set_config('control_plane.retention', 'on', true);
    IF are_erased THEN
        -- Locks in the order of MigrationFunction: the outbox, then its pending deliveries.
        LOCK TABLE outbox IN ROW EXCLUSIVE MODE;
        message_ids := ARRAY(SELECT id FROM outbox WHERE event_id = ANY (ids) ORDER BY id FOR UPDATE);
        PERFORM FROM pending_deliveries WHERE outbox_id = ANY (message_ids) ORDER BY outbox_id, subscription FOR UPDATE;
        -- Processed by the live flow and by each replay that has sent it: an effect under way is waited for.
        INSERT INTO processed_events (consumer, event_id, operation_id)
        SELECT subscriptions.name, message.event_id, sent.operation_id
        FROM outbox AS message
        JOIN subscriptions ON subscriptions.topic = message.topic
        CROSS JOIN LATERAL (
            SELECT NULL::uuid AS operation_id
            UNION
            SELECT delivery.operation_id FROM deliveries AS delivery
            WHERE delivery.outbox_id = message.id AND delivery.subscription = subscriptions.name
            UNION
            SELECT pending.operation_id FROM pending_deliveries AS pending
            WHERE pending.outbox_id = message.id AND pending.subscription = subscriptions.name
        ) AS sent
        WHERE message.id = ANY (message_ids)
        ORDER BY subscriptions.name, message.event_id, sent.operation_id
        ON CONFLICT DO NOTHING;
        DELETE FROM pending_deliveries WHERE outbox_id = ANY (message_ids);
    ELSE
        -- A replay promises what it has locked. The statements from here on see what it has promised until now.
        message_ids := ARRAY(SELECT id FROM outbox WHERE event_id = ANY (ids) ORDER BY id FOR UPDATE SKIP LOCKED);
    END IF;
    -- If a subscription was promised a message meanwhile, the message stays, and so, by the foreign key, does its event.
    WITH gone AS (
        DELETE FROM outbox AS message
        WHERE message.id = ANY (message_ids)
            AND NOT EXISTS (SELECT FROM pending_deliveries AS pending WHERE pending.outbox_id = message.id)
            AND (are_erased OR NOT EXISTS (
                SELECT FROM dead_letters AS letter WHERE letter.outbox_id = message.id AND letter.resolution IS NULL
            ))
        RETURNING message.id
    )
    SELECT array_agg(id) INTO message_ids FROM gone;
    DELETE FROM delivery_failures WHERE outbox_id = ANY (message_ids);
    DELETE FROM dead_letters WHERE outbox_id = ANY (message_ids);
    DELETE FROM deliveries WHERE outbox_id = ANY (message_ids);
    IF are_erased THEN
        DELETE FROM consume_failures WHERE event_id = ANY (ids);
        DELETE FROM dead_letters WHERE event_id = ANY (ids);
    END IF;
    WITH gone AS (
        DELETE FROM events AS event
        WHERE event.event_id = ANY (ids)
            AND NOT EXISTS (SELECT FROM outbox AS message WHERE message.event_id = event.event_id)
        RETURNING event.event_id
    )
    SELECT array_agg(event_id) INTO removed FROM gone;
    IF NOT are_erased THEN
        DELETE FROM processed_events WHERE event_id = ANY (removed);
    END IF;
    PERFORM set_config('control_plane.retention', 'off', true);
    RETURN coalesce(cardinality(removed), 0);
END
$$;

-- Removes decisions whole, with their artifacts that nothing else names; each leaves a tombstone with its head.
CREATE FUNCTION remove_decisions(ids uuid[], because text, by_operation uuid) RETURNS bigint
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, public, pg_temp
SET plan_cache_mode = force_custom_plan
AS $$
DECLARE
    names bytea[];
    removed bigint;
BEGIN
    PERFORM set_config('control_plane.retention', 'on', true);
    INSERT INTO decision_tombstones (decision_id, head_seq, head_hash, cause, operation_id)
    SELECT decision_id, head_seq, head_hash, because, by_operation FROM decisions WHERE decision_id = ANY (ids);
    INSERT INTO removed_spending AS kept (scope, day, spent_micros, overrun_micros)
    SELECT scope, day, coalesce(sum(held.spent_micros), 0), coalesce(sum(greatest(held.spent_micros - micros, 0)), 0)
    FROM budget_reservations AS held
    JOIN agent_calls AS call USING (call_id)
    WHERE call.decision_id = ANY (ids)
    GROUP BY scope, day
    ON CONFLICT (scope, day) DO UPDATE
    SET
        spent_micros = kept.spent_micros + excluded.spent_micros,
        overrun_micros = kept.overrun_micros + excluded.overrun_micros;
    SELECT array_agg(DISTINCT name) INTO names
    FROM (
        SELECT unnest(ARRAY[input_sha256, output_sha256]) FROM decision_steps WHERE decision_id = ANY (ids)
        UNION ALL
        SELECT unnest(ARRAY[request_sha256, answer_sha256]) FROM agent_calls WHERE decision_id = ANY (ids)
        UNION ALL
        SELECT unnest(ARRAY[action_sha256, request_sha256]) FROM verdicts WHERE decision_id = ANY (ids)
        UNION ALL
        SELECT action_sha256 FROM approval_requests WHERE decision_id = ANY (ids)
    ) AS named (name);
    DELETE FROM agent_scores WHERE decision_id = ANY (ids);
    DELETE FROM outcomes WHERE decision_id = ANY (ids);
    DELETE FROM timers WHERE decision_id = ANY (ids);
    DELETE FROM executions WHERE action_id IN (SELECT action_id FROM actions WHERE decision_id = ANY (ids));
    DELETE FROM actions WHERE decision_id = ANY (ids);
    DELETE FROM approvals WHERE decision_id = ANY (ids);
    DELETE FROM approval_requests WHERE decision_id = ANY (ids);
    DELETE FROM verdicts WHERE decision_id = ANY (ids);
    DELETE FROM budget_reservations WHERE call_id IN (SELECT call_id FROM agent_calls WHERE decision_id = ANY (ids));
    DELETE FROM agent_calls WHERE decision_id = ANY (ids);
    DELETE FROM decision_steps WHERE decision_id = ANY (ids);
    DELETE FROM decisions WHERE decision_id = ANY (ids);
    GET DIAGNOSTICS removed = ROW_COUNT;
    -- Playbooks, policies and schemas stay: they are the deployment's, and a list of pins names its sources in its bytes.
    DELETE FROM artifacts AS artifact
    WHERE artifact.sha256 = ANY (names)
        AND artifact.kind NOT IN ('pins', 'source', 'policy', 'policy_schema')
        AND NOT EXISTS (SELECT FROM decision_steps WHERE input_sha256 = artifact.sha256)
        AND NOT EXISTS (SELECT FROM decision_steps WHERE output_sha256 = artifact.sha256)
        AND NOT EXISTS (SELECT FROM agent_calls WHERE request_sha256 = artifact.sha256)
        AND NOT EXISTS (SELECT FROM agent_calls WHERE answer_sha256 = artifact.sha256)
        AND NOT EXISTS (SELECT FROM verdicts WHERE action_sha256 = artifact.sha256)
        AND NOT EXISTS (SELECT FROM verdicts WHERE request_sha256 = artifact.sha256)
        AND NOT EXISTS (SELECT FROM verdicts WHERE policy_sha256 = artifact.sha256)
        AND NOT EXISTS (SELECT FROM verdicts WHERE schema_sha256 = artifact.sha256)
        AND NOT EXISTS (SELECT FROM approval_requests WHERE action_sha256 = artifact.sha256)
        AND NOT EXISTS (SELECT FROM actions WHERE action_sha256 = artifact.sha256)
        AND NOT EXISTS (SELECT FROM decisions WHERE pins_sha256 = artifact.sha256);
    PERFORM set_config('control_plane.retention', 'off', true);
    RETURN removed;
END
$$;

-- The next rows that expire, in the order of their age, after a given place.
CREATE FUNCTION expiring(
    of_what text, older_than timestamptz, after_at timestamptz, after_id text, most integer
) RETURNS TABLE (id text, at timestamptz)
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, public, pg_temp
SET plan_cache_mode = force_custom_plan
AS $$
#variable_conflict use_column
BEGIN
    IF of_what = 'decisions' THEN
        RETURN QUERY
        SELECT decision_id::text, at FROM expirable_decisions
        WHERE at < older_than AND (at, decision_id::text) > (after_at, after_id) ORDER BY at, decision_id::text LIMIT most;
    ELSIF of_what = 'events' THEN
        RETURN QUERY
        SELECT event_id::text, at FROM expirable_events
        WHERE at < older_than AND (at, event_id::text) > (after_at, after_id) ORDER BY at, event_id::text LIMIT most;
    ELSIF of_what = 'raw_payloads' THEN
        RETURN QUERY
        SELECT id::text, at FROM expirable_raw_payloads
        WHERE at < older_than AND (at, id::text) > (after_at, after_id) ORDER BY at, id::text LIMIT most;
    ELSIF of_what = 'processed_events' THEN
        RETURN QUERY
        SELECT place::text, at FROM expirable_processed_events
        WHERE at < older_than AND (at, place::text) > (after_at, after_id) ORDER BY at, place::text LIMIT most;
    ELSIF of_what = 'delivery_failures' THEN
        RETURN QUERY
        SELECT place::text, at FROM expirable_delivery_failures
        WHERE at < older_than AND (at, place::text) > (after_at, after_id) ORDER BY at, place::text LIMIT most;
    ELSIF of_what = 'dead_letters' THEN
        RETURN QUERY
        SELECT id::text, at FROM expirable_dead_letters
        WHERE at < older_than AND (at, id::text) > (after_at, after_id) ORDER BY at, id::text LIMIT most;
    ELSIF of_what = 'repeated_looks' THEN
        RETURN QUERY
        SELECT ctid::text, observed_at FROM repeated_looks
        WHERE observed_at < older_than AND (observed_at, ctid::text) > (after_at, after_id)
        ORDER BY observed_at, ctid::text LIMIT most;
    ELSIF of_what = 'consume_failures' THEN
        RETURN QUERY
        SELECT ctid::text, failed_at FROM consume_failures
        WHERE failed_at < older_than AND (failed_at, ctid::text) > (after_at, after_id)
        ORDER BY failed_at, ctid::text LIMIT most;
    ELSIF of_what = 'audit' THEN
        RETURN QUERY
        SELECT ctid::text, at FROM api_audit
        WHERE at < older_than AND (at, ctid::text) > (after_at, after_id) ORDER BY at, ctid::text LIMIT most;
    ELSE
        RAISE EXCEPTION 'nothing of the name % expires', coalesce(of_what, '(none)') USING ERRCODE = 'invalid_parameter_value';
    END IF;
END
$$;

-- Counts the next rows that expire, and says where the next call goes on; a plan is made of such calls.
CREATE FUNCTION count_expiring(
    of_what text, older_than timestamptz, after_at timestamptz, after_id text, most integer
) RETURNS TABLE (counted bigint, last_at timestamptz, last_id text, first_at timestamptz, sample text[])
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = pg_catalog, public, pg_temp
AS $$
BEGIN
    PERFORM check_retention(older_than, most);
    RETURN QUERY
    SELECT
        count(*),
        (array_agg(found.at ORDER BY found.at DESC, found.id DESC))[1],
        (array_agg(found.id ORDER BY found.at DESC, found.id DESC))[1],
        min(found.at),
        (array_agg(found.id ORDER BY found.at, found.id))[1:5]
    FROM expiring(of_what, older_than, after_at, after_id, most) AS found;
END
$$;

-- The operation for whose end the scheduled retention waits: it would miss what it has planned for. Null for none.
CREATE FUNCTION retention_waits_for() RETURNS uuid
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = pg_catalog, public, pg_temp
AS $$
BEGIN
    RETURN (
        SELECT operation_id
        FROM operations
        WHERE kind IN ('replay', 'rebuild')
            AND (state IN ('running', 'paused') OR state = 'failed' AND kind = 'rebuild' AND started_at IS NOT NULL)
        ORDER BY started_at
        LIMIT 1
    );
END
$$;

-- Deletes the oldest rows that have expired, one batch of them, and returns how many are gone. What another transaction has
-- locked is left for another time; without an operation of its own, so are events and their processing while retention waits.
CREATE FUNCTION delete_expired(of_what text, older_than timestamptz, batch_size integer, by_operation uuid DEFAULT NULL) RETURNS bigint
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, public, pg_temp
SET plan_cache_mode = force_custom_plan
AS $$
#variable_conflict use_column
DECLARE
    deleted bigint := 0;
BEGIN
    PERFORM check_retention(older_than, batch_size);
    IF batch_size > 10000 THEN
        RAISE EXCEPTION 'a batch of % rows refused: 10000 are the most', batch_size USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF by_operation IS NOT NULL THEN
        PERFORM lock_operation_at_work(by_operation, 'retention', 'running');
    ELSIF of_what IN ('events', 'processed_events') AND retention_waits_for() IS NOT NULL THEN
        RETURN 0;
    END IF;
    IF of_what = 'decisions' THEN
        RETURN remove_decisions(
            ARRAY(
                SELECT decision_id FROM expirable_decisions AS expirable WHERE at < older_than ORDER BY at LIMIT batch_size
                FOR UPDATE OF expirable SKIP LOCKED
            ),
            'retention', by_operation
        );
    ELSIF of_what = 'events' THEN
        RETURN remove_events(
            ARRAY(
                SELECT event_id FROM expirable_events AS expirable WHERE at < older_than ORDER BY at LIMIT batch_size
                FOR UPDATE OF expirable SKIP LOCKED
            ),
            false
        );
    END IF;
    PERFORM set_config('control_plane.retention', 'on', true);
    IF of_what = 'raw_payloads' THEN
        DELETE FROM raw_payloads
        WHERE id = ANY (ARRAY(
            SELECT id FROM expirable_raw_payloads AS expirable WHERE at < older_than ORDER BY at LIMIT batch_size
            FOR UPDATE OF expirable SKIP LOCKED
        ));
        GET DIAGNOSTICS deleted = ROW_COUNT;
    ELSIF of_what = 'processed_events' THEN
        WITH forgotten AS (
            DELETE FROM processed_events
            WHERE ctid = ANY (ARRAY(
                SELECT place FROM expirable_processed_events AS expirable WHERE at < older_than ORDER BY at LIMIT batch_size
                FOR UPDATE OF expirable SKIP LOCKED
            ))
            RETURNING consumer, event_id
        ),
        noted AS (
            INSERT INTO forgotten_processing AS known (consumer, ingested_until)
            SELECT forgotten.consumer, max(event.ingested_at)
            FROM forgotten
            JOIN events AS event ON event.event_id = forgotten.event_id
            GROUP BY forgotten.consumer
            ORDER BY forgotten.consumer
            ON CONFLICT (consumer) DO UPDATE SET ingested_until = greatest(known.ingested_until, excluded.ingested_until)
        )
        SELECT count(*) INTO deleted FROM forgotten;
    ELSIF of_what = 'delivery_failures' THEN
        DELETE FROM delivery_failures
        WHERE ctid = ANY (ARRAY(
            SELECT place FROM expirable_delivery_failures AS expirable WHERE at < older_than ORDER BY at LIMIT batch_size
            FOR UPDATE OF expirable SKIP LOCKED
        ));
        GET DIAGNOSTICS deleted = ROW_COUNT;
    ELSIF of_what = 'dead_letters' THEN
        DELETE FROM dead_letters
        WHERE id = ANY (ARRAY(
            SELECT id FROM expirable_dead_letters AS expirable WHERE at < older_than ORDER BY at LIMIT batch_size
            FOR UPDATE OF expirable SKIP LOCKED
        ));
        GET DIAGNOSTICS deleted = ROW_COUNT;
    ELSIF of_what = 'repeated_looks' THEN
        DELETE FROM repeated_looks
        WHERE ctid = ANY (ARRAY(
            SELECT ctid FROM repeated_looks WHERE observed_at < older_than ORDER BY observed_at LIMIT batch_size
            FOR UPDATE SKIP LOCKED
        ));
        GET DIAGNOSTICS deleted = ROW_COUNT;
    ELSIF of_what = 'consume_failures' THEN
        DELETE FROM consume_failures
        WHERE ctid = ANY (ARRAY(
            SELECT ctid FROM consume_failures WHERE failed_at < older_than ORDER BY failed_at LIMIT batch_size
            FOR UPDATE SKIP LOCKED
        ));
        GET DIAGNOSTICS deleted = ROW_COUNT;
    ELSIF of_what = 'audit' THEN
        DELETE FROM api_audit
        WHERE ctid = ANY (ARRAY(
            SELECT ctid FROM api_audit WHERE at < older_than ORDER BY at LIMIT batch_size FOR UPDATE SKIP LOCKED
        ));
        GET DIAGNOSTICS deleted = ROW_COUNT;
    ELSE
        RAISE EXCEPTION 'nothing of the name % expires', coalesce(of_what, '(none)') USING ERRCODE = 'invalid_parameter_value';
    END IF;
    PERFORM set_config('control_plane.retention', 'off', true);
    RETURN deleted;
END
$$;

-- A decision that was removed is not opened again, nor one about what was erased: its anomaly may still wait in a queue.
CREATE FUNCTION refuse_removed_decision() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, public, pg_temp
AS $$
BEGIN
    IF EXISTS (SELECT FROM decision_tombstones WHERE decision_id = NEW.decision_id)
        OR is_erased(NEW.source, NEW.entity_id, NULL, NULL, NULL)
    THEN
        RETURN NULL;
    END IF;
    RETURN NEW;
END
$$;


-- Erasure: what a law may ask for. Only what a running operation names is erased.

-- What an erasure keeps of its subject: a hash. Of an entity the type, series and instant are null, and so is the source
-- where it is erased of every source.
CREATE FUNCTION erasure_key(of_source text, of_entity text, of_type text, of_series text, at timestamptz) RETURNS bytea
LANGUAGE sql STABLE
RETURN sha256(convert_to(
    jsonb_build_array(of_source, of_entity, of_type, of_series, to_char(at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US'))::text,
    'UTF8'
));

CREATE FUNCTION is_erased(of_source text, of_entity text, of_type text, of_series text, at timestamptz) RETURNS boolean
LANGUAGE sql STABLE
RETURN EXISTS (
    SELECT
    FROM erasures
    WHERE is_refused
        AND key_sha256 IN (
            erasure_key(of_source, of_entity, NULL, NULL, NULL),
            erasure_key(NULL, of_entity, NULL, NULL, NULL),
            erasure_key(of_source, of_entity, of_type, of_series, at)
        )
);

CREATE TRIGGER decisions_are_not_removed BEFORE INSERT ON decisions FOR EACH ROW EXECUTE FUNCTION refuse_removed_decision();

-- Which of these looks are at something that was erased and is refused since; for raw payloads type and series are null. The
-- places of the arrays, from 1 on.
CREATE FUNCTION erased_places(
    sources text[], entity_ids text[], event_types text[], all_series text[], instants timestamptz[]
) RETURNS SETOF integer
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = pg_catalog, public, pg_temp
AS $$
BEGIN
    IF EXISTS (SELECT FROM erasures WHERE is_refused) THEN
        RETURN QUERY
        SELECT place::integer
        FROM unnest(sources, entity_ids, event_types, all_series, instants) WITH ORDINALITY
            AS look (source, entity_id, event_type, series, occurred_at, place)
        WHERE is_erased(source, entity_id, event_type, series, occurred_at);
    END IF;
END
$$;

-- The filter of an erasure that has begun, or that is being planned.
CREATE FUNCTION erasure_filter(of_operation uuid, in_states text[]) RETURNS jsonb
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, public, pg_temp
AS $$
DECLARE
    found jsonb;
BEGIN
    SELECT filter INTO found
    FROM operations
    WHERE operation_id = of_operation AND kind = 'erasure' AND state = ANY (in_states);
    IF found IS NULL THEN
        RAISE EXCEPTION 'operation % is no erasure that is %', of_operation, array_to_string(in_states, ' or ')
            USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
    RETURN found;
END
$$;

-- The events that an erasure is about: an entity's, with those of the decisions about it; or all revisions of an event's
-- observation, with what the decisions that used it told. Newer ones stay where it may be taken in again.
CREATE FUNCTION erasable_events(wanted jsonb, before timestamptz, most integer) RETURNS uuid[]
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, public, pg_temp
SET plan_cache_mode = force_custom_plan
AS $$
DECLARE
    found uuid[];
BEGIN
    IF wanted ->> 'event_id' IS NOT NULL THEN
        SELECT array_agg(revision.event_id) INTO found
        FROM events AS event
        JOIN events AS revision
            ON revision.entity_id IS NOT DISTINCT FROM event.entity_id
            AND revision.source = event.source
            AND revision.event_type = event.event_type
            AND revision.series = event.series
            AND revision.occurred_at = event.occurred_at
        WHERE event.event_id = (wanted ->> 'event_id')::uuid;
        RETURN found || ARRAY(
            SELECT told.event_id
            FROM events AS told
            WHERE told.source = 'decisions'
                AND told.entity_id = (SELECT entity_id FROM events WHERE event_id = (wanted ->> 'event_id')::uuid)
                AND (
                    told.payload_json ->> 'bar_event_id' = ANY (found::text[])
                    OR told.payload_json ->> 'decision_id' = ANY (erasable_decisions(wanted, before, NULL)::text[])
                )
        );
    END IF;
    RETURN ARRAY(
        SELECT event_id
        FROM events
        WHERE entity_id = wanted ->> 'entity_id'
            AND (
                wanted ->> 'source' IS NULL
                OR source = wanted ->> 'source'
                OR source = 'decisions' AND (
                    payload_json ->> 'observed_source' = wanted ->> 'source'
                    OR payload_json ->> 'decision_id' IN (
                        SELECT decision_id::text FROM decision_tombstones WHERE cause = 'erasure'
                        UNION ALL
                        SELECT decision_id::text FROM decisions
                        WHERE entity_id = wanted ->> 'entity_id' AND source = wanted ->> 'source'
                    )
                )
            )
            AND ingested_at < before
        LIMIT most
    );
END
$$;

-- The decisions that an erasure is about: an entity's, or those of an event's entity whose record names the event.
CREATE FUNCTION erasable_decisions(wanted jsonb, before timestamptz, most integer) RETURNS uuid[]
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, public, pg_temp
SET plan_cache_mode = force_custom_plan
AS $$
DECLARE
    event record;
BEGIN
    IF wanted ->> 'event_id' IS NULL THEN
        RETURN ARRAY(
            SELECT decision_id
            FROM decisions
            WHERE entity_id = wanted ->> 'entity_id'
                AND (wanted ->> 'source' IS NULL OR source = wanted ->> 'source')
                AND opened_at < before
            LIMIT most
        );
    END IF;
    SELECT source, entity_id, series, event_type, occurred_at INTO event
    FROM events WHERE event_id = (wanted ->> 'event_id')::uuid;
    RETURN ARRAY(
        SELECT DISTINCT decision.decision_id
        FROM decisions AS decision
        CROSS JOIN events AS revision
        WHERE decision.entity_id = event.entity_id
            AND decision.source IN (event.source, 'decisions')
            AND revision.entity_id = event.entity_id
            AND revision.source = event.source
            AND revision.event_type = event.event_type
            AND revision.series = event.series
            AND revision.occurred_at = event.occurred_at
            AND EXISTS (
                SELECT
                FROM decision_steps AS step
                LEFT JOIN artifacts AS artifact ON artifact.sha256 IN (step.input_sha256, step.output_sha256)
                WHERE step.decision_id = decision.decision_id
                    AND (
                        position(convert_to(revision.event_id::text, 'UTF8') IN step.body) > 0
                        OR position(convert_to(revision.event_id::text, 'UTF8') IN artifact.bytes) > 0
                    )
            )
        LIMIT most
    );
END
$$;

-- How many rows of what an erasure would remove now, and how many decisions it has to wait for.
CREATE FUNCTION count_erasable(of_operation uuid) RETURNS TABLE (what text, counted bigint)
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = pg_catalog, public, pg_temp
SET plan_cache_mode = force_custom_plan
AS $$
DECLARE
    wanted jsonb := erasure_filter(of_operation, ARRAY['planning', 'planned', 'running']);
    event_ids uuid[] := erasable_events(wanted, 'infinity', NULL);
    decision_ids uuid[] := erasable_decisions(wanted, 'infinity', NULL);
BEGIN
    RETURN QUERY
    SELECT 'events', coalesce(cardinality(event_ids), 0)::bigint
    UNION ALL
    SELECT 'decisions', coalesce(cardinality(decision_ids), 0)::bigint
    UNION ALL
    SELECT 'waiting', count(*) FROM decisions
    WHERE decision_id = ANY (decision_ids) AND (closed_at IS NULL OR anchored_seq <> head_seq)
    UNION ALL
    SELECT 'raw_payloads', count(*) FROM raw_payloads
    WHERE entity_id = wanted ->> 'entity_id' AND (wanted ->> 'source' IS NULL OR source = wanted ->> 'source')
    UNION ALL
    SELECT 'shared_raw_payloads', count(DISTINCT raw_payload_id) FROM events
    WHERE event_id = ANY (event_ids) AND wanted ->> 'event_id' IS NOT NULL
    UNION ALL
    SELECT 'open_deliveries', count(*) FROM pending_deliveries
    WHERE outbox_id IN (SELECT id FROM outbox WHERE event_id = ANY (event_ids))
    UNION ALL
    SELECT 'dead_letters', count(*) FROM dead_letters
    WHERE outbox_id IN (SELECT id FROM outbox WHERE event_id = ANY (event_ids));
END
$$;

-- One bounded step of an erasure: says what it removed, of which events, or that it waits for decisions to close or to be
-- anchored; done once nothing is left. The first step leaves the tombstone, from which on ingestion refuses.
CREATE FUNCTION erase_step(of_operation uuid, most integer) RETURNS TABLE (what text, removed bigint, event_ids uuid[])
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, public, pg_temp
SET plan_cache_mode = force_custom_plan
AS $$
#variable_conflict use_column
DECLARE
    wanted jsonb := erasure_filter(of_operation, ARRAY['running']);
    erasure record;
    ids uuid[];
    some_ids uuid[];
    gone bigint;
BEGIN
    SELECT is_refused, begun_at INTO erasure FROM erasures WHERE operation_id = of_operation FOR UPDATE;
    IF NOT FOUND THEN
        -- Whoever is storing looks at the entity right now has not seen the tombstone: it is waited for.
        PERFORM pg_advisory_xact_lock(key)
        FROM (
            SELECT DISTINCT hashtextextended(source || chr(10) || coalesce(entity_id, ''), 1) AS key
            FROM events
            WHERE entity_id = coalesce(
                    wanted ->> 'entity_id', (SELECT entity_id FROM events WHERE event_id = (wanted ->> 'event_id')::uuid)
                )
            ORDER BY key
        ) AS ordered;
        INSERT INTO erasures (operation_id, about, key_sha256, is_refused, requested_by, begun_at)
        SELECT
            of_operation,
            CASE WHEN wanted ->> 'event_id' IS NULL THEN 'entity' ELSE 'observation' END,
            CASE
                WHEN wanted ->> 'event_id' IS NULL
                    THEN erasure_key(wanted ->> 'source', wanted ->> 'entity_id', NULL, NULL, NULL)
                ELSE coalesce(
                    (
                        SELECT erasure_key(source, entity_id, event_type, series, occurred_at)
                        FROM events WHERE event_id = (wanted ->> 'event_id')::uuid
                    ),
                    sha256(convert_to(wanted ->> 'event_id', 'UTF8'))
                )
            END,
            NOT coalesce((wanted ->> 'take_in_again')::boolean, false),
            requested_by,
            clock_timestamp()
        FROM operations WHERE operation_id = of_operation
        RETURNING is_refused, begun_at INTO erasure;
    END IF;
    IF erasure.is_refused THEN
        erasure.begun_at := 'infinity';
    END IF;
    ids := erasable_decisions(wanted, erasure.begun_at, most);
    -- The rows are locked before their events are looked for: a decision that its messages just move on ends first.
    some_ids := ARRAY(
        SELECT decision_id FROM decisions
        WHERE decision_id = ANY (ids) AND closed_at IS NOT NULL AND anchored_seq = head_seq
        ORDER BY decision_id
        FOR UPDATE
    );
    IF cardinality(ids) > cardinality(some_ids) THEN
        RETURN QUERY SELECT 'waiting', (cardinality(ids) - cardinality(some_ids))::bigint, NULL::uuid[];
        RETURN;
    END IF;
    IF wanted ->> 'event_id' IS NOT NULL THEN
        ids := erasable_events(wanted, 'infinity', NULL);
        gone := remove_decisions(some_ids, 'erasure', of_operation);
        RETURN QUERY SELECT 'decisions', gone, NULL::uuid[] WHERE gone > 0;
        gone := remove_events(ids, true);
        RETURN QUERY SELECT 'events', gone, ids WHERE gone > 0;
    ELSIF cardinality(some_ids) > 0 THEN
        gone := remove_decisions(some_ids, 'erasure', of_operation);
        RETURN QUERY SELECT 'decisions', gone, NULL::uuid[];
    ELSE
        ids := erasable_events(wanted, erasure.begun_at, most);
        gone := remove_events(ids, true);
        IF gone > 0 THEN
            RETURN QUERY SELECT 'events', gone, ids;
        ELSE
            PERFORM set_config('control_plane.retention', 'on', true);
            DELETE FROM raw_payloads AS raw
            WHERE id = ANY (ARRAY(
                SELECT id
                FROM raw_payloads AS held
                WHERE entity_id = wanted ->> 'entity_id'
                    AND (wanted ->> 'source' IS NULL OR source = wanted ->> 'source')
                    AND fetched_at < erasure.begun_at
                    AND NOT EXISTS (SELECT FROM events WHERE events.raw_payload_id = held.id)
                LIMIT most
            ));
            GET DIAGNOSTICS gone = ROW_COUNT;
            PERFORM set_config('control_plane.retention', 'off', true);
            RETURN QUERY SELECT 'raw_payloads', gone, NULL::uuid[] WHERE gone > 0;
            IF gone = 0 THEN
                DELETE FROM repeated_looks
                WHERE entity_id = wanted ->> 'entity_id' AND (wanted ->> 'source' IS NULL OR source = wanted ->> 'source');
                GET DIAGNOSTICS gone = ROW_COUNT;
                RETURN QUERY SELECT 'repeated_looks', gone, NULL::uuid[] WHERE gone > 0;
            END IF;
        END IF;
    END IF;
END
$$;

-- What names an erasure's subject beside the record: filters and samples of other operations, the API's kept answers and
-- files that wait for a backfill. A filter keeps its fields, with values that select nothing.
CREATE FUNCTION scrub_erased(of_operation uuid, wanted jsonb) RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, public, pg_temp
AS $$
DECLARE
    of_entity text := wanted ->> 'entity_id';
    quoted text := to_json(coalesce(of_entity, wanted ->> 'event_id'))::text;
BEGIN
    UPDATE operations
    SET filter = filter || CASE
        WHEN of_entity IS NULL THEN '{"event_id": "00000000-0000-0000-0000-000000000000"}'::jsonb
        ELSE jsonb_build_object('entity_id', 'erased by ' || of_operation)
    END
    WHERE operation_id <> of_operation
        AND (filter ->> 'entity_id' = of_entity OR of_entity IS NULL AND filter ->> 'event_id' = wanted ->> 'event_id');
    UPDATE operations
    SET plan = plan || '{"sample": []}'
    WHERE operation_id <> of_operation AND position(quoted IN (plan -> 'sample')::text) > 0;
    UPDATE idempotency_keys SET body = '{}' WHERE status IS NOT NULL AND position(quoted IN body::jsonb::text) > 0;
    IF of_entity IS NOT NULL THEN
        DELETE FROM backfill_pieces
        WHERE file_sha256 IN (SELECT piece.file_sha256 FROM backfill_pieces AS piece WHERE position(quoted IN piece.body) > 0);
    END IF;
END
$$;

-- Ends an erasure: its tombstone gets the counts, and the operation forgets what it was about.
CREATE FUNCTION finish_erasure(of_operation uuid, counts jsonb) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, public, pg_temp
AS $$
BEGIN
    PERFORM scrub_erased(of_operation, erasure_filter(of_operation, ARRAY['running']));
    UPDATE erasures SET finished_at = clock_timestamp(), removed = counts WHERE operation_id = of_operation;
    UPDATE operations
    SET filter = jsonb_build_object(
        'erased_sha256', (SELECT encode(key_sha256, 'hex') FROM erasures WHERE operation_id = of_operation)
    )
    WHERE operation_id = of_operation;
END
$$;


-- The finance domain's rows about what is erased. Figures that its neighbours derived from an erased bar stay until the
-- consumer is rebuilt; an account's positions and filled orders are its books, and stay.
CREATE FUNCTION forget_finance(of_operation uuid, event_ids uuid[]) RETURNS bigint
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, public, pg_temp
AS $$
DECLARE
    wanted jsonb := erasure_filter(of_operation, ARRAY['running']);
    forgotten bigint;
BEGIN
    WITH bars AS (
        DELETE FROM signal_lab_bars AS held
        WHERE held.event_id = ANY (event_ids)
            OR held.entity_id = wanted ->> 'entity_id' AND held.source = coalesce(wanted ->> 'source', held.source)
        RETURNING 1
    ),
    prices AS (
        DELETE FROM signal_lab_latest_prices AS held
        WHERE held.event_id = ANY (event_ids)
            OR held.entity_id = wanted ->> 'entity_id' AND held.source = coalesce(wanted ->> 'source', held.source)
        RETURNING 1
    ),
    actions AS (
        DELETE FROM signal_lab_corporate_actions AS held
        WHERE held.event_id = ANY (event_ids)
            OR held.entity_id = wanted ->> 'entity_id' AND held.source = coalesce(wanted ->> 'source', held.source)
        RETURNING 1
    ),
    seen AS (
        DELETE FROM detector_bars AS held
        WHERE held.event_id = ANY (event_ids)
            OR held.entity_id = wanted ->> 'entity_id' AND held.source = coalesce(wanted ->> 'source', held.source)
        RETURNING 1
    ),
    seen_actions AS (
        DELETE FROM detector_corporate_actions AS held
        WHERE held.event_id = ANY (event_ids)
            OR held.entity_id = wanted ->> 'entity_id' AND held.source = coalesce(wanted ->> 'source', held.source)
        RETURNING 1
    ),
    findings AS (
        DELETE FROM detector_findings AS held
        WHERE held.event_id = ANY (event_ids)
            OR held.entity_id = wanted ->> 'entity_id' AND held.source = coalesce(wanted ->> 'source', held.source)
        RETURNING 1
    ),
    told AS (
        DELETE FROM detector_told AS held
        WHERE held.bar_event_id = ANY (event_ids)
            OR held.entity_id = wanted ->> 'entity_id' AND held.source = coalesce(wanted ->> 'source', held.source)
        RETURNING 1
    ),
    past AS (
        DELETE FROM episodes AS held
        WHERE held.event_id = ANY (event_ids)
            OR held.entity_id = wanted ->> 'entity_id' AND held.source = coalesce(wanted ->> 'source', held.source)
        RETURNING 1
    )
    SELECT
        (SELECT count(*) FROM bars) + (SELECT count(*) FROM prices) + (SELECT count(*) FROM actions)
        + (SELECT count(*) FROM seen) + (SELECT count(*) FROM seen_actions) + (SELECT count(*) FROM findings)
        + (SELECT count(*) FROM told) + (SELECT count(*) FROM past)
    INTO forgotten;
    RETURN forgotten;
END
$$;

-- An order goes with its action: what its fill did to the account becomes part of the opening balance.
ALTER TABLE paper_orders DROP CONSTRAINT paper_orders_action_id_fkey;
ALTER TABLE paper_orders ADD CONSTRAINT paper_orders_action_id_fkey
    FOREIGN KEY (action_id) REFERENCES actions (action_id) ON DELETE CASCADE;
CREATE FUNCTION carry_over_order() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, public, pg_temp
AS $$
DECLARE
    bought bigint := CASE OLD.side WHEN 'buy' THEN OLD.quantity_micros ELSE -OLD.quantity_micros END;
BEGIN
    IF OLD.filled_at IS NOT NULL THEN
        UPDATE paper_accounts
        SET opening_cash_micros = opening_cash_micros - round(bought::numeric * OLD.fill_price_micros / 1000000)::bigint
        WHERE account = OLD.account;
        UPDATE paper_positions SET opening_quantity_micros = opening_quantity_micros + bought
        WHERE account = OLD.account AND source = OLD.source AND entity_id = OLD.entity_id;
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER paper_orders_are_carried_over AFTER DELETE ON paper_orders FOR EACH ROW EXECUTE FUNCTION carry_over_order();


-- Rebuild: a consumer's tables are made again from the events that it has processed, in shadow tables of the same names in
-- another schema, while it writes to both; then they change places. Nobody reads an empty or a smaller table meanwhile.

CREATE SCHEMA shadow;
COMMENT ON SCHEMA shadow IS 'The tables of a consumer that is being rebuilt.';
CREATE SCHEMA retired;
COMMENT ON SCHEMA retired IS 'Tables that a rebuild replaces, within its last transaction.';
GRANT USAGE ON SCHEMA shadow TO acp_consume, acp_detect, acp_maintain;

CREATE TABLE rebuildable (
    table_name text PRIMARY KEY CHECK (table_name ~ '^[a-z][a-z0-9_]*$'),
    consumer   text NOT NULL
);
COMMENT ON TABLE rebuildable IS 'The tables that are nothing but a fold of the events that a consumer has processed; each row names its event.';
INSERT INTO rebuildable (table_name, consumer)
VALUES
    ('signal_lab_bars', 'signal_lab'),
    ('signal_lab_latest_prices', 'signal_lab'),
    ('signal_lab_corporate_actions', 'signal_lab'),
    ('detector_bars', 'detector'),
    ('detector_corporate_actions', 'detector'),
    ('detector_findings', 'detector');

CREATE TABLE rebuilds (
    consumer     text        PRIMARY KEY,
    operation_id uuid        NOT NULL UNIQUE,
    begun_at     timestamptz NOT NULL DEFAULT now(),
    until_seq    bigint      NOT NULL,
    is_equal     boolean,
    accepted_by  text,
    spoiled_by   text
);
COMMENT ON TABLE rebuilds IS 'One row per consumer that is being rebuilt: while it is there, the consumer writes to both.';
COMMENT ON COLUMN rebuilds.until_seq IS 'Events up to here are folded; what is processed after begun_at is written to both anyway.';
COMMENT ON COLUMN rebuilds.is_equal IS 'Whether both tables had the same rows when they were compared; null before.';
COMMENT ON COLUMN rebuilds.accepted_by IS 'Who accepted that they differ.';
COMMENT ON COLUMN rebuilds.spoiled_by IS 'Why the shadow tables lack something: the error of a write to them that failed, or that the rebuild did.';

-- What a consumer processes while its rebuild has failed is in its own tables alone: the shadows are of no use any more, nor
-- is what was compared, and a rebuild that is resumed begins anew.
CREATE FUNCTION spoil_failed_rebuild() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, public, pg_temp
AS $$
BEGIN
    IF NEW.state = 'failed' THEN
        UPDATE rebuilds
        SET spoiled_by = coalesce(spoiled_by, 'the rebuild had failed'), is_equal = NULL, accepted_by = NULL
        WHERE operation_id = NEW.operation_id;
    ELSE
        NEW.progress := NEW.progress || '{"done": 0, "skipped": 0, "cursor": {}}';
    END IF;
    RETURN NEW;
END
$$;
CREATE TRIGGER operations_spoil_failed_rebuilds BEFORE UPDATE OF state ON operations
    FOR EACH ROW
    WHEN (NEW.kind = 'rebuild' AND OLD.state <> NEW.state AND (NEW.state = 'failed' OR OLD.state = 'failed' AND NEW.state = 'running'))
    EXECUTE FUNCTION spoil_failed_rebuild();

-- Whether a consumer is being rebuilt, for its effect's transaction, which must ask before it touches a table: until it ends,
-- no rebuild of this consumer begins, changes the tables or ends.
CREATE FUNCTION is_rebuilding(of_consumer text) RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, public, pg_temp
AS $$
BEGIN
    PERFORM pg_advisory_xact_lock_shared(hashtextextended('rebuild/' || of_consumer, 3));
    RETURN EXISTS (
        SELECT
        FROM rebuilds
        JOIN operations USING (operation_id)
        WHERE consumer = of_consumer AND spoiled_by IS NULL AND state IN ('running', 'paused')
    );
END
$$;

-- Notes that a consumer could not write to its shadow tables.
CREATE FUNCTION spoil_rebuild(of_consumer text, because text) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, public, pg_temp
AS $$
BEGIN
    UPDATE rebuilds SET spoiled_by = left(because, 1000) WHERE consumer = of_consumer AND spoiled_by IS NULL;
END
$$;

-- The consumer of a rebuild at work, which waits until no effect of it is under way.
CREATE FUNCTION lock_rebuild(of_operation uuid) RETURNS text
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, public, pg_temp
AS $$
DECLARE
    of_consumer text;
BEGIN
    SELECT subscription INTO of_consumer FROM operations WHERE operation_id = of_operation AND kind = 'rebuild';
    IF of_consumer IS NULL OR NOT EXISTS (SELECT FROM rebuildable WHERE consumer = of_consumer) THEN
        RAISE EXCEPTION 'operation % is no rebuild of a consumer that can be rebuilt', of_operation
            USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
    PERFORM pg_advisory_xact_lock(hashtextextended('rebuild/' || of_consumer, 3));
    RETURN of_consumer;
END
$$;

-- What a rebuild would do: how many events it folds, and how many rows of each table were made of events that are gone, or of
-- whose processing there is no record any more.
CREATE FUNCTION plan_rebuild(of_consumer text) RETURNS TABLE (table_name text, held bigint, without_event bigint)
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = pg_catalog, public, pg_temp
AS $$
DECLARE
    of_table text;
BEGIN
    RETURN QUERY SELECT '', count(*), 0::bigint FROM processed_events WHERE consumer = of_consumer;
    FOR of_table IN SELECT r.table_name FROM rebuildable AS r WHERE consumer = of_consumer ORDER BY 1 LOOP
        RETURN QUERY EXECUTE format(
            'SELECT %L, count(*), count(*) FILTER (WHERE event.event_id IS NULL OR processed.event_id IS NULL)'
            ' FROM public.%I AS held'
            ' LEFT JOIN events AS event ON event.event_id = held.event_id'
            ' LEFT JOIN (SELECT DISTINCT event_id FROM processed_events WHERE consumer = %L) AS processed'
            ' ON processed.event_id = held.event_id',
            of_table, of_table, of_consumer
        );
    END LOOP;
END
$$;

-- Makes the shadow tables, as the consumer's are now, and has the consumer write to both from its next effect on. Every event
-- that it has processed until then is at or before the sequence number that is returned.
CREATE FUNCTION begin_rebuild(of_operation uuid) RETURNS bigint
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, public, pg_temp
AS $$
DECLARE
    of_consumer text;
    of_table text;
    part record;
    last_seq bigint;
BEGIN
    PERFORM lock_operation_at_work(of_operation, 'rebuild', 'running');
    of_consumer := lock_rebuild(of_operation);
    DELETE FROM rebuilds WHERE consumer = of_consumer;
    FOR of_table IN SELECT table_name FROM rebuildable WHERE consumer = of_consumer ORDER BY 1 LOOP
        EXECUTE format('DROP TABLE IF EXISTS shadow.%I', of_table);
        EXECUTE format('CREATE TABLE shadow.%1$I (LIKE public.%1$I INCLUDING ALL EXCLUDING INDEXES)', of_table);
        EXECUTE format('COMMENT ON TABLE shadow.%I IS %L', of_table, obj_description(format('public.%I', of_table)::regclass));
        FOR part IN
            SELECT conname AS name, pg_get_constraintdef(oid) AS definition
            FROM pg_constraint
            WHERE conrelid = format('public.%I', of_table)::regclass AND contype IN ('p', 'u')
        LOOP
            EXECUTE format('ALTER TABLE shadow.%I ADD CONSTRAINT %I %s', of_table, part.name, part.definition);
        END LOOP;
        FOR part IN
            SELECT replace(pg_get_indexdef(indexrelid), format(' ON public.%I ', of_table), format(' ON shadow.%I ', of_table)) AS definition
            FROM pg_index
            WHERE indrelid = format('public.%I', of_table)::regclass
                AND NOT EXISTS (SELECT FROM pg_constraint WHERE conindid = indexrelid)
        LOOP
            EXECUTE part.definition;
        END LOOP;
        FOR part IN
            SELECT privilege_type AS privilege, pg_get_userbyid(grantee) AS grantee
            FROM pg_class, aclexplode(relacl)
            WHERE oid = format('public.%I', of_table)::regclass AND grantee <> relowner
        LOOP
            EXECUTE format('GRANT %s ON shadow.%I TO %I', part.privilege, of_table, part.grantee);
        END LOOP;
        EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON shadow.%I TO acp_maintain', of_table);
    END LOOP;
    SELECT coalesce(max(seq), 0) INTO last_seq FROM events;
    INSERT INTO rebuilds (consumer, operation_id, until_seq) VALUES (of_consumer, of_operation, last_seq);
    RETURN last_seq;
END
$$;

-- The next events of a rebuild after a sequence number, as they were published; null for one that the consumer has not
-- processed, which it writes to both tables when it does.
CREATE FUNCTION rebuild_events(of_operation uuid, of_topic text, types text[], after_seq bigint, most integer)
RETURNS TABLE (seq bigint, body text)
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = pg_catalog, public, pg_temp
SET plan_cache_mode = force_custom_plan
AS $$
DECLARE
    rebuild record;
BEGIN
    SELECT consumer, until_seq INTO rebuild FROM rebuilds WHERE operation_id = of_operation;
    RETURN QUERY
    SELECT event.seq, CASE WHEN processed.is_so THEN message.payload_json::text END
    FROM (
        SELECT events.seq, events.event_id
        FROM events
        WHERE events.seq > after_seq AND events.seq <= rebuild.until_seq AND events.event_type = ANY (types)
        ORDER BY events.seq
        LIMIT most
    ) AS event
    LEFT JOIN outbox AS message ON message.event_id = event.event_id AND message.topic = of_topic
    CROSS JOIN LATERAL (
        SELECT EXISTS (
            SELECT FROM processed_events WHERE consumer = rebuild.consumer AND event_id = event.event_id
        ) AS is_so
    ) AS processed
    ORDER BY event.seq;
END
$$;

-- Compares the consumer's tables with their shadows in one snapshot: how many rows there are, and a digest of them that does
-- not depend on their order.
CREATE FUNCTION compare_rebuild(of_operation uuid)
RETURNS TABLE (table_name text, live_rows bigint, live_digest text, shadow_rows bigint, shadow_digest text)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, public, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    of_consumer text;
    of_table text;
    parts text[] := '{}';
    digest constant text := 'concat_ws(''/'', sum(hashtextextended(held::text, 0)::numeric), sum(hashtextextended(held::text, 1)::numeric))';
BEGIN
    SELECT consumer INTO STRICT of_consumer FROM rebuilds WHERE operation_id = of_operation;
    FOR of_table IN SELECT r.table_name FROM rebuildable AS r WHERE r.consumer = of_consumer ORDER BY 1 LOOP
        EXECUTE format('ANALYZE shadow.%I', of_table);
        parts := parts || format(
            'SELECT %1$L::text, live.*, shade.* FROM (SELECT count(*), %2$s FROM public.%1$I AS held) AS live,'
            ' (SELECT count(*), %2$s FROM shadow.%1$I AS held) AS shade',
            of_table, digest
        );
    END LOOP;
    RETURN QUERY EXECUTE array_to_string(parts, ' UNION ALL ') || ' ORDER BY 1';
END
$$;

-- Notes what a comparison found.
CREATE FUNCTION judge_rebuild(of_operation uuid, equal boolean) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, public, pg_temp
AS $$
BEGIN
    UPDATE rebuilds SET is_equal = equal WHERE operation_id = of_operation;
END
$$;

-- Records that a person accepts what the comparison of a rebuild found different. False where nothing waits for that.
CREATE FUNCTION accept_rebuild(of_operation uuid, by_whom text) RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, public, pg_temp
AS $$
DECLARE
    who text := who_operates(by_whom, 'rebuild');
BEGIN
    IF coalesce(who, '') = '' THEN
        RAISE EXCEPTION 'an acceptance without a name refused' USING ERRCODE = 'check_violation';
    END IF;
    UPDATE rebuilds SET accepted_by = who WHERE operation_id = of_operation AND NOT is_equal AND accepted_by IS NULL;
    RETURN FOUND;
END
$$;

-- Puts the shadow tables in the place of the consumer's, views included, and drops those. It waits half a second at most
-- for whoever reads them, so that nobody waits longer behind it. Privileges, comments and the names of indexes are the same afterwards.
CREATE FUNCTION swap_rebuild(of_operation uuid) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, public, pg_temp
SET lock_timeout = '500ms' -- less than deadlock_timeout: this gives up and is tried again, and no reader fails
AS $$
DECLARE
    of_consumer text;
    tables text[];
    of_table text;
    view_names text[];
    definitions text[];
BEGIN
    PERFORM lock_operation_at_work(of_operation, 'rebuild', 'running');
    of_consumer := lock_rebuild(of_operation);
    PERFORM
    FROM rebuilds
    WHERE operation_id = of_operation AND spoiled_by IS NULL AND (is_equal OR accepted_by IS NOT NULL);
    IF NOT FOUND THEN
        RAISE EXCEPTION 'rebuild % is spoiled, not compared yet, or its difference is not accepted', of_operation
            USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
    tables := ARRAY(SELECT table_name FROM rebuildable WHERE consumer = of_consumer ORDER BY 1);
    SELECT array_agg(name), array_agg(definition) INTO view_names, definitions
    FROM (
        SELECT DISTINCT dependent.relname::text AS name, pg_get_viewdef(dependent.oid) AS definition
        FROM pg_depend AS dependency
        JOIN pg_rewrite AS rule ON rule.oid = dependency.objid
        JOIN pg_class AS dependent ON dependent.oid = rule.ev_class AND dependent.relkind = 'v'
        WHERE dependency.classid = 'pg_rewrite'::regclass
            AND dependency.refclassid = 'pg_class'::regclass
            AND dependency.refobjid IN (SELECT format('public.%I', held)::regclass FROM unnest(tables) AS held)
    ) AS found;
    -- The views first: whoever reads through one has looked up its tables before.
    FOREACH of_table IN ARRAY coalesce(view_names, '{}') || tables LOOP
        EXECUTE format('LOCK TABLE public.%I IN ACCESS EXCLUSIVE MODE', of_table);
    END LOOP;
    FOREACH of_table IN ARRAY tables LOOP
        EXECUTE format('ALTER TABLE public.%I SET SCHEMA retired', of_table);
        EXECUTE format('ALTER TABLE shadow.%I SET SCHEMA public', of_table);
        EXECUTE format('REVOKE SELECT, INSERT, UPDATE, DELETE ON public.%I FROM acp_maintain', of_table);
    END LOOP;
    FOR place IN 1 .. coalesce(cardinality(view_names), 0) LOOP
        EXECUTE format('CREATE OR REPLACE VIEW public.%I AS %s', view_names[place], definitions[place]);
    END LOOP;
    FOREACH of_table IN ARRAY tables LOOP
        EXECUTE format('DROP TABLE retired.%I', of_table);
    END LOOP;
    DELETE FROM rebuilds WHERE operation_id = of_operation;
END
$$;

-- Gives a rebuild up: the consumer writes to its own tables alone again.
CREATE FUNCTION end_rebuild(of_operation uuid) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, public, pg_temp
SET lock_timeout = '2s'
AS $$
DECLARE
    of_consumer text := lock_rebuild(of_operation);
    of_table text;
BEGIN
    PERFORM FROM rebuilds WHERE operation_id = of_operation;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    FOR of_table IN SELECT table_name FROM rebuildable WHERE consumer = of_consumer ORDER BY 1 LOOP
        EXECUTE format('DROP TABLE IF EXISTS shadow.%I', of_table);
    END LOOP;
    DELETE FROM rebuilds WHERE operation_id = of_operation;
END
$$;


REVOKE ALL ON ALL FUNCTIONS IN SCHEMA public FROM PUBLIC;
GRANT EXECUTE ON FUNCTION
    count_expiring, retention_waits_for, delete_expired, count_erasable, erase_step, finish_erasure, forget_finance, plan_rebuild, begin_rebuild,
    rebuild_events, compare_rebuild, judge_rebuild, swap_rebuild
    TO acp_maintain;
GRANT EXECUTE ON FUNCTION is_rebuilding, spoil_rebuild TO acp_consume, acp_detect;
GRANT EXECUTE ON FUNCTION accept_rebuild, end_rebuild TO acp_command;
GRANT SELECT ON rebuilds TO acp_maintain, acp_command;
GRANT EXECUTE ON FUNCTION erased_places TO acp_ingest;
GRANT SELECT ON decision_tombstones, removed_spending, erasures, rebuilds, rebuildable TO acp_reader;
