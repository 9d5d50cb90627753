-- Operations: what is frozen for one, which changes of state there are, and the owner's functions by which the kinds
-- redrive and replay plan and step.

CREATE TABLE operation_items (
    operation_id uuid   NOT NULL,
    item         bigint NOT NULL,
    PRIMARY KEY (operation_id, item)
);
COMMENT ON TABLE operation_items IS 'The dead letters that a redrive''s plan has frozen. A step deletes those that it has dealt with.';


CREATE FUNCTION refuse_operation_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF (OLD.state, NEW.state) NOT IN (
        ('planning', 'planned'), ('planning', 'cancelled'), ('planning', 'failed'),
        ('planned', 'running'), ('planned', 'cancelled'),
        ('running', 'paused'), ('running', 'done'), ('running', 'cancelled'), ('running', 'failed'),
        ('paused', 'running'), ('paused', 'cancelled'),
        ('failed', 'running'), ('failed', 'cancelled')
    ) THEN
        RAISE EXCEPTION 'a change of operation % from % to % refused', OLD.operation_id, OLD.state, NEW.state
            USING ERRCODE = 'check_violation';
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER operations_change_by_steps AFTER UPDATE OF state ON operations
    FOR EACH ROW WHEN (OLD.state <> NEW.state) EXECUTE FUNCTION refuse_operation_change();


-- Whether an operation should be planned or at work, and has made no step for five minutes.
CREATE FUNCTION is_stalled(operation operations) RETURNS boolean LANGUAGE sql STABLE
RETURN (operation).state IN ('planning', 'running')
    AND greatest((operation).requested_at, (operation).started_at, (operation).last_step_at, (operation).next_step_at)
        < now() - interval '5 minutes';

-- Locks the operation that a kind's function works for, so that it is cancelled before or afterwards.
CREATE FUNCTION lock_operation_at_work(of_operation uuid, of_kind text, in_state text) RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, public, pg_temp
AS $$
BEGIN
    PERFORM FROM operations WHERE operation_id = of_operation AND kind = of_kind AND state = in_state FOR UPDATE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'there is no % % that is %', of_kind, of_operation, in_state
            USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
END
$$;


-- Freezes the next dead letters that a redrive's filter selects, in the order of their ids, up to the last one that was
-- there when planning began. What cannot be sent again is counted, and not frozen: letters of subscriptions that are not
-- active, and letters whose message the outbox does not hold. Returns the ids frozen, the number of letters per
-- subscription (of failed invocations per queue), and the last id looked at; null when all are done.
CREATE FUNCTION freeze_letters(for_operation uuid, after_id bigint, last_id bigint, most integer)
RETURNS TABLE (ids bigint[], chosen jsonb, inactive jsonb, unknown jsonb, looked_at bigint)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, public, pg_temp
SET plan_cache_mode = force_custom_plan
AS $$
#variable_conflict use_column
DECLARE
    wanted jsonb;
    wanted_ids bigint[];
BEGIN
    PERFORM lock_operation_at_work(for_operation, 'redrive', 'planning');
    SELECT filter INTO wanted FROM operations WHERE operation_id = for_operation;
    IF wanted ? 'ids' THEN
        wanted_ids := ARRAY(SELECT jsonb_array_elements_text(wanted -> 'ids')::bigint);
    END IF;
    RETURN QUERY
    WITH letter AS MATERIALIZED (
        SELECT
            id,
            coalesce(subscription, queue) AS name,
            CASE
                WHEN kind <> 'relay' AND NOT EXISTS (SELECT FROM outbox WHERE outbox.id = outbox_id) THEN 'unknown'
                WHEN EXISTS (
                    SELECT
                    FROM subscriptions
                    WHERE subscriptions.name = dead_letters.subscription AND removed_at IS NULL
                ) THEN 'chosen'
                ELSE 'inactive'
            END AS fate
        FROM dead_letters
        WHERE resolution IS NULL
            AND id > after_id
            AND id <= last_id
            AND (wanted_ids IS NULL OR id = ANY (wanted_ids))
            AND (NOT wanted ? 'kind' OR kind = wanted ->> 'kind')
            AND (NOT wanted ? 'subscription' OR subscription = wanted ->> 'subscription')
            AND (NOT wanted ? 'event_id' OR event_id = (wanted ->> 'event_id')::uuid)
            AND (NOT wanted ? 'trace_id' OR trace_id = (wanted ->> 'trace_id')::uuid)
            AND (NOT wanted ? 'reason' OR strpos(lower(reason), lower(wanted ->> 'reason')) > 0)
            AND (NOT wanted ? 'since' OR dead_lettered_at >= (wanted ->> 'since')::timestamptz)
            AND (NOT wanted ? 'until' OR dead_lettered_at < (wanted ->> 'until')::timestamptz)
        ORDER BY id
        LIMIT most
    ),
    frozen AS (
        INSERT INTO operation_items (operation_id, item)
        SELECT for_operation, id FROM letter WHERE fate = 'chosen'
    ),
    counted AS (
        SELECT name, fate, count(*) AS letters FROM letter GROUP BY name, fate
    )
    SELECT
        ARRAY(SELECT id FROM letter WHERE fate = 'chosen' ORDER BY id),
        coalesce((SELECT jsonb_object_agg(name, letters) FROM counted WHERE fate = 'chosen'), '{}'),
        coalesce((SELECT jsonb_object_agg(name, letters) FROM counted WHERE fate = 'inactive'), '{}'),
        coalesce((SELECT jsonb_object_agg(name, letters) FROM counted WHERE fate = 'unknown'), '{}'),
        (SELECT max(id) FROM letter HAVING count(*) = most);
END
$$;


-- Makes the next frozen letters' messages pending again, each a moment after the one before, and marks the letters as
-- redriven. A letter that is no longer open, or whose subscription is no longer active, is skipped. Two letters of one
-- message and subscription become one delivery.
CREATE FUNCTION redrive_letters(for_operation uuid, most integer, gap_seconds double precision)
RETURNS TABLE (done bigint, skipped bigint, remain boolean)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, public, pg_temp
SET plan_cache_mode = force_custom_plan
AS $$
#variable_conflict use_column
DECLARE
    redriven_for text;
    items bigint[];
    letters bigint[];
BEGIN
    PERFORM lock_operation_at_work(for_operation, 'redrive', 'running');
    SELECT started_by INTO redriven_for FROM operations WHERE operation_id = for_operation;
    WITH dealt_with AS (
        DELETE FROM operation_items
        WHERE operation_id = for_operation
            AND item = ANY (ARRAY(
                SELECT item FROM operation_items WHERE operation_id = for_operation ORDER BY item LIMIT most
            ))
        RETURNING item
    )
    SELECT array_agg(item) INTO items FROM dealt_with;
    PERFORM FROM subscriptions WHERE removed_at IS NULL FOR SHARE;
    letters := ARRAY(
        SELECT id
        FROM dead_letters AS letter
        WHERE id = ANY (items)
            AND resolution IS NULL
            AND EXISTS (SELECT FROM subscriptions WHERE name = letter.subscription AND removed_at IS NULL)
        ORDER BY id
        FOR UPDATE OF letter
    );
    -- A settlement under way of this operation's own delivery of the same message is waited for.
    PERFORM
    FROM pending_deliveries AS pending
    JOIN dead_letters AS letter
        ON letter.outbox_id = pending.outbox_id AND letter.subscription = pending.subscription
    WHERE letter.id = ANY (letters) AND pending.operation_id = for_operation
    FOR UPDATE OF pending;
    INSERT INTO pending_deliveries (outbox_id, subscription, operation_id, promised_at, next_attempt_at)
    SELECT outbox_id, subscription, for_operation, due_at, due_at
    FROM (
        SELECT
            outbox_id, subscription,
            statement_timestamp() + make_interval(secs => row_number() OVER (ORDER BY min(id)) * gap_seconds) AS due_at
        FROM dead_letters
        WHERE id = ANY (letters)
        GROUP BY outbox_id, subscription
    ) AS message
    WHERE NOT EXISTS (
        SELECT
        FROM delivery_states AS state
        WHERE state.outbox_id = message.outbox_id
            AND state.subscription = message.subscription
            AND state.operation_id = for_operation
    );
    UPDATE dead_letters
    SET resolution = 'redriven', resolved_at = now(), resolved_by = redriven_for, redriven_by = for_operation
    WHERE id = ANY (letters);
    RETURN QUERY SELECT
        cardinality(letters)::bigint,
        (coalesce(cardinality(items), 0) - cardinality(letters))::bigint,
        EXISTS (SELECT FROM operation_items WHERE operation_id = for_operation);
END
$$;


-- The next messages of a replay's topic, up to the last one of its frozen window, each with whether the filter selects
-- it. Events of transactions that had not ended when the window was frozen are not in it.
CREATE FUNCTION messages_in_window(chosen jsonb, frozen jsonb, after_id bigint, most integer)
RETURNS TABLE (id bigint, event_id uuid, is_selected boolean, ingested_at timestamptz)
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, public, pg_temp
SET plan_cache_mode = force_custom_plan
AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
    SELECT
        message.id,
        message.event_id,
        event.stored_by < (frozen ->> 'stored_before')::xid8
            AND (NOT chosen ? 'event_type' OR event.event_type = chosen ->> 'event_type')
            AND (NOT chosen ? 'entity_id' OR event.entity_id = chosen ->> 'entity_id')
            AND (NOT chosen ? 'source' OR event.source = chosen ->> 'source')
            AND (NOT chosen ? 'occurred_since' OR event.occurred_at >= (chosen ->> 'occurred_since')::timestamptz)
            AND (NOT chosen ? 'occurred_until' OR event.occurred_at < (chosen ->> 'occurred_until')::timestamptz)
            AND (NOT chosen ? 'ingested_since' OR event.ingested_at >= (chosen ->> 'ingested_since')::timestamptz)
            AND (NOT chosen ? 'ingested_until' OR event.ingested_at < (chosen ->> 'ingested_until')::timestamptz),
        event.ingested_at
    FROM (
        SELECT id, event_id
        FROM outbox
        WHERE id > after_id AND id <= (frozen ->> 'last_outbox_id')::bigint AND topic = frozen ->> 'topic'
        ORDER BY id
        LIMIT most
    ) AS message
    JOIN events AS event ON event.event_id = message.event_id;
END
$$;


-- The frozen window of a replay: the last message there is, and the oldest transaction that has not ended. What that one
-- and later ones store is left out; of the newest messages, this is counted.
CREATE FUNCTION freeze_window(for_topic text)
RETURNS TABLE (last_outbox_id bigint, stored_before text, left_out bigint)
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = pg_catalog, public, pg_temp
AS $$
BEGIN
    RETURN QUERY
    SELECT
        coalesce((SELECT max(id) FROM outbox), 0),
        pg_snapshot_xmin(pg_current_snapshot())::text,
        (
            SELECT count(*)
            FROM (SELECT event_id, topic FROM outbox ORDER BY id DESC LIMIT 10000) AS newest
            JOIN events AS event ON event.event_id = newest.event_id
            WHERE newest.topic = for_topic AND event.stored_by >= pg_snapshot_xmin(pg_current_snapshot())
        );
END
$$;


CREATE TABLE forgotten_processing (
    consumer       text        PRIMARY KEY,
    ingested_until timestamptz NOT NULL
);
COMMENT ON TABLE forgotten_processing IS 'The newest event, by its storing, of which retention has deleted the record that a consumer processed it.';

-- Since when, by their storing, a consumer has a record of all events that it has processed; null where it has recorded
-- nothing. What is older was either never sent to it, or processed and forgotten since.
CREATE FUNCTION processed_since(of_consumer text) RETURNS timestamptz
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = pg_catalog, public, pg_temp
AS $$
DECLARE
    since timestamptz;
BEGIN
    SELECT event.ingested_at INTO since
    FROM (
        SELECT event_id FROM processed_events WHERE consumer = of_consumer ORDER BY processed_at LIMIT 1
    ) AS oldest
    JOIN events AS event ON event.event_id = oldest.event_id;
    -- An old event may have been processed late, after newer ones that are forgotten by now.
    RETURN CASE
        WHEN since IS NOT NULL THEN greatest(
            since,
            (SELECT ingested_until + interval '1 microsecond' FROM forgotten_processing WHERE consumer = of_consumer)
        )
    END;
END
$$;


-- Counts the next messages that a replay would send again. Returns how many, the oldest storing among them, some of
-- them, and the last message looked at; null when the window is done.
CREATE FUNCTION plan_replay(for_operation uuid, after_id bigint, most integer, most_sampled integer)
RETURNS TABLE (messages bigint, oldest timestamptz, sample jsonb, looked_at bigint)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, public, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    operation record;
BEGIN
    PERFORM lock_operation_at_work(for_operation, 'replay', 'planning');
    SELECT filter, plan INTO operation FROM operations WHERE operation_id = for_operation;
    RETURN QUERY
    WITH message AS MATERIALIZED (
        SELECT * FROM messages_in_window(operation.filter, operation.plan, after_id, most)
    )
    SELECT
        count(*) FILTER (WHERE is_selected),
        min(ingested_at) FILTER (WHERE is_selected),
        coalesce(
            (
                SELECT
                    jsonb_agg(
                        jsonb_build_object(
                            'event_id', event_id, 'event_type', event_type, 'source', source, 'entity_id', entity_id,
                            'occurred_at', occurred_at
                        )
                        ORDER BY id
                    )
                FROM (SELECT id, event_id FROM message WHERE is_selected ORDER BY id LIMIT most_sampled) AS first
                JOIN events USING (event_id)
            ),
            '[]'
        ),
        CASE WHEN count(*) = most THEN max(id) END
    FROM message;
END
$$;


-- Promises the next messages of a replay to its subscriptions, spread in time from an instant on. Returns how many
-- messages were selected, how many deliveries they became, and the last message looked at; null when the window is done.
CREATE FUNCTION promise_replay(
    for_operation uuid, after_id bigint, most integer, looks integer, first_due timestamptz, gap_seconds double precision
) RETURNS TABLE (messages bigint, promised bigint, looked_at bigint)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, public, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    operation record;
    found_ids bigint[];
    selected bigint[];
    last_look bigint;
BEGIN
    PERFORM lock_operation_at_work(for_operation, 'replay', 'running');
    SELECT filter, plan INTO operation FROM operations WHERE operation_id = for_operation;
    SELECT array_agg(id ORDER BY id), coalesce(array_agg(id ORDER BY id) FILTER (WHERE is_selected), '{}')
    INTO found_ids, selected
    FROM messages_in_window(operation.filter, operation.plan, after_id, looks);
    IF cardinality(selected) > most THEN
        selected := selected[:most];
        last_look := selected[most];
    ELSIF cardinality(found_ids) = looks THEN
        last_look := found_ids[looks];
    END IF;
    PERFORM FROM subscriptions WHERE removed_at IS NULL FOR SHARE;
    -- Retention deletes what is 30 days old. It must not do so between this look and the promise.
    PERFORM
    FROM outbox AS message
    WHERE message.id = ANY (selected) AND message.created_at < now() - interval '29 days'
    FOR KEY SHARE OF message;
    RETURN QUERY
    WITH promise AS (
        INSERT INTO pending_deliveries (
            outbox_id, subscription, operation_id, promised_at, next_attempt_at, payload_bytes
        )
        SELECT message.id, active.name, for_operation, due_at, due_at, octet_length(message.payload_json::text)
        FROM unnest(selected) WITH ORDINALITY AS chosen (id, nth)
        JOIN outbox AS message ON message.id = chosen.id
        CROSS JOIN LATERAL (SELECT first_due + make_interval(secs => (nth - 1) * gap_seconds) AS due_at) AS due
        JOIN subscriptions AS active
            ON active.removed_at IS NULL AND operation.plan -> 'subscriptions' ? active.name
        RETURNING outbox_id
    )
    SELECT cardinality(selected)::bigint, (SELECT count(*) FROM promise), last_look;
END
$$;


-- Takes back what a replay has promised and no relay has claimed. Returns how many deliveries that were.
CREATE FUNCTION withdraw_replay(for_operation uuid) RETURNS bigint
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, public, pg_temp
AS $$
DECLARE
    withdrawn bigint;
BEGIN
    PERFORM FROM operations WHERE operation_id = for_operation AND kind = 'replay' FOR UPDATE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'there is no replay %', for_operation USING ERRCODE = 'no_data_found';
    END IF;
    DELETE FROM pending_deliveries
    WHERE ctid = ANY (ARRAY(
        SELECT ctid
        FROM pending_deliveries
        WHERE operation_id = for_operation AND claim_token IS NULL
        FOR UPDATE SKIP LOCKED
    ));
    GET DIAGNOSTICS withdrawn = ROW_COUNT;
    RETURN withdrawn;
END
$$;


-- Who is on record for a command on an operation of a kind. CommandApiFunction names whose token asks, and the owner
-- whoever they say; people's logins, members of acp_command, speak for themselves whatever they say, and command nothing
-- that asks a token for admin.
CREATE FUNCTION who_operates(requester text, of_kind text) RETURNS text
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, public, pg_temp
AS $$
DECLARE
    is_for_admins boolean := coalesce(of_kind IN ('retention', 'erasure'), false);
BEGIN
    -- Whoever is the owner, as whom the functions that call this run, may write the table itself.
    IF pg_has_role(session_user, current_user, 'MEMBER') THEN
        RETURN requester;
    END IF;
    IF session_user = 'acp_command' THEN
        RETURN who_commands(requester, CASE WHEN is_for_admins THEN 'admin' ELSE 'operate' END);
    END IF;
    IF is_for_admins THEN
        RAISE EXCEPTION 'login % may not command a % itself', session_user, of_kind
            USING ERRCODE = 'insufficient_privilege', HINT = 'Ask by the API, with a token of scope admin.';
    END IF;
    RETURN session_user;
END
$$;

-- Locks an operation for whoever may not write it, so that a step that is under way is waited for.
CREATE FUNCTION lock_operation(of_operation uuid) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, public, pg_temp
AS $$
BEGIN
    PERFORM FROM operations WHERE operation_id = of_operation FOR UPDATE;
END
$$;

-- Locks the operation that a command is about, which must be in one of these states. Returns who is on record for it.
CREATE FUNCTION check_command(of_operation uuid, requester text, in_states text[]) RETURNS text
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, public, pg_temp
AS $$
DECLARE
    operation record;
    who text;
BEGIN
    SELECT kind, state INTO operation FROM operations WHERE operation_id = of_operation FOR UPDATE;
    who := who_operates(requester, operation.kind);
    IF operation.state IS NULL OR operation.state <> ALL (in_states) THEN
        RAISE EXCEPTION 'operation % is %, and not %',
            of_operation, coalesce(operation.state, 'not there'), array_to_string(in_states, ' or ')
            USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
    RETURN who;
END
$$;

-- Records an operation that is to be planned.
CREATE FUNCTION request_operation(
    new_operation uuid, of_kind text, of_subscription text, wanted jsonb, of_rate double precision, requester text,
    because text
) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, public, pg_temp
AS $$
BEGIN
    IF of_kind = 'discard' THEN
        RAISE EXCEPTION 'a discard is not planned: discard_dead_letters does it' USING ERRCODE = 'check_violation';
    END IF;
    INSERT INTO operations (operation_id, kind, subscription, filter, rate, requested_by, reason)
    VALUES (
        new_operation, of_kind, of_subscription, wanted, of_rate, who_operates(requester, of_kind), coalesce(because, '')
    );
END
$$;

-- Starts a planned operation by its plan's hash; false where the plan is older than an hour.
CREATE FUNCTION start_operation(
    of_operation uuid, of_hash text, starter text, because text, new_rate double precision
) RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, public, pg_temp
AS $$
DECLARE
    who text := check_command(of_operation, starter, ARRAY['planned']);
BEGIN
    IF coalesce(trim(because), '') = '' THEN
        RAISE EXCEPTION 'a start without a reason is refused' USING ERRCODE = 'check_violation';
    END IF;
    IF of_hash IS NULL OR NOT EXISTS (SELECT FROM operations WHERE operation_id = of_operation AND plan_hash = of_hash) THEN
        RAISE EXCEPTION 'the plan of operation % is another one', of_operation
            USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'Look at it again, and start it by its hash.';
    END IF;
    UPDATE operations
    SET
        state = 'running', started_by = who, started_at = now(), reason = because, rate = coalesce(new_rate, rate),
        next_step_at = now()
    WHERE operation_id = of_operation AND planned_at > now() - interval '1 hour';
    RETURN FOUND;
END
$$;

-- Pauses a running operation: no further step is made.
CREATE FUNCTION pause_operation(of_operation uuid, requester text) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, public, pg_temp
AS $$
BEGIN
    PERFORM check_command(of_operation, requester, ARRAY['running']);
    UPDATE operations SET state = 'paused' WHERE operation_id = of_operation;
END
$$;

-- Lets a paused or failed operation go on; false for one that was never started.
CREATE FUNCTION resume_operation(of_operation uuid, requester text) RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, public, pg_temp
AS $$
BEGIN
    PERFORM check_command(of_operation, requester, ARRAY['paused', 'failed']);
    UPDATE operations
    SET state = 'running', finished_at = NULL, failures = 0, next_step_at = now()
    WHERE operation_id = of_operation AND started_at IS NOT NULL;
    RETURN FOUND;
END
$$;

-- Sets an operation's rate. The next step is due at once.
CREATE FUNCTION set_operation_rate(of_operation uuid, requester text, new_rate double precision) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, public, pg_temp
AS $$
BEGIN
    PERFORM check_command(of_operation, requester, ARRAY['planned', 'running', 'paused']);
    UPDATE operations SET rate = new_rate, next_step_at = now() WHERE operation_id = of_operation;
END
$$;

-- Ends an operation, and takes from what is done what was taken back.
CREATE FUNCTION cancel_operation(of_operation uuid, requester text, taken_back bigint) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, public, pg_temp
AS $$
BEGIN
    PERFORM check_command(of_operation, requester, ARRAY['planning', 'planned', 'running', 'paused', 'failed']);
    UPDATE operations
    SET
        state = 'cancelled',
        finished_at = now(),
        progress = CASE
            WHEN taken_back BETWEEN 1 AND (progress ->> 'done')::bigint
                THEN progress || jsonb_build_object('done', (progress ->> 'done')::bigint - taken_back)
            ELSE progress
        END
    WHERE operation_id = of_operation;
END
$$;


REVOKE ALL ON FUNCTION is_stalled FROM PUBLIC;
GRANT EXECUTE ON FUNCTION is_stalled TO acp_reader, acp_command, acp_maintain;

-- CommandApiFunction: requests, starts, pauses, resumes and cancels, by the owner's functions alone.
GRANT SELECT ON operations TO acp_command;
GRANT EXECUTE ON FUNCTION
    request_operation, lock_operation, start_operation, pause_operation, resume_operation, set_operation_rate,
    cancel_operation, withdraw_replay
    TO acp_command;

-- OperationsFunction: plans and steps.
GRANT SELECT ON operations TO acp_maintain;
GRANT UPDATE (
    state, plan, plan_hash, planned_at, progress, finished_at, next_step_at, last_step_at, lease_until, fence, failures,
    error
) ON operations TO acp_maintain;
GRANT SELECT, DELETE ON operation_items TO acp_maintain;
GRANT SELECT (name, topic, removed_at) ON subscriptions TO acp_maintain;
GRANT SELECT (id) ON dead_letters TO acp_maintain;
GRANT EXECUTE ON FUNCTION
    freeze_letters, redrive_letters, freeze_window, processed_since, plan_replay, promise_replay
    TO acp_maintain;

-- Consumers that take a replay as a replay: which operation is one, and under which one an event was processed.
GRANT SELECT (operation_id, kind) ON operations TO acp_consume;
GRANT SELECT (operation_id), INSERT (operation_id) ON processed_events TO acp_consume;

GRANT SELECT ON operation_items, forgotten_processing TO acp_reader;
