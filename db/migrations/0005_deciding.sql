-- The owner's functions of deciding, and who may call which. Each runs with the owner's rights and does one thing: no role
-- can write a step, a verdict's consequence, an approval or a release by itself.

-- What a step's hash covers: the hash before it, every column, and the stored bytes of its body. control_plane.decisions.
-- chain computes the same.
CREATE FUNCTION step_hash(
    prev bytea, of_decision uuid, seq integer, parent integer, kind text, author text, at timestamptz, input bytea,
    output bytea, cost_micros bigint, body bytea
) RETURNS bytea
LANGUAGE sql STABLE
RETURN sha256(
    prev
    || sha256(convert_to(
        concat_ws(
            '|', of_decision, seq, coalesce(parent::text, '-'), kind, author,
            to_char(at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
            coalesce(encode(input, 'hex'), '-'), coalesce(encode(output, 'hex'), '-'), cost_micros
        ),
        'UTF8'
    ))
    || sha256(body)
);


-- Appends to a decision's chain, under the lock of its row, which the transaction keeps; and moves the decision to a state and
-- its lease on, where these are given: one new version of its row in the place of two.
CREATE FUNCTION append_step(
    of_decision uuid, step_kind text, step_author text, step_parent integer, step_body bytea, step_input bytea DEFAULT NULL,
    step_output bytea DEFAULT NULL, step_cost bigint DEFAULT 0, new_state text DEFAULT NULL,
    lease_seconds double precision DEFAULT NULL
) RETURNS integer
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, public, pg_temp
AS $$
DECLARE
    head record;
    now_at timestamptz := clock_timestamp();
    new_hash bytea;
BEGIN
    SELECT head_seq, head_hash INTO STRICT head FROM decisions WHERE decision_id = of_decision FOR UPDATE;
    IF json_typeof(convert_from(step_body, 'UTF8')::json) IS DISTINCT FROM 'object' THEN
        RAISE EXCEPTION 'the body of a step is a JSON object' USING ERRCODE = 'check_violation';
    END IF;
    new_hash := step_hash(
        head.head_hash, of_decision, head.head_seq + 1, step_parent, step_kind, step_author, now_at, step_input, step_output,
        step_cost, step_body
    );
    INSERT INTO decision_steps (
        decision_id, seq, parent, kind, author, at, input_sha256, output_sha256, cost_micros, body, prev_hash, hash
    )
    VALUES (
        of_decision, head.head_seq + 1, step_parent, step_kind, step_author, now_at, step_input, step_output, step_cost, step_body,
        head.head_hash, new_hash
    );
    UPDATE decisions
    SET
        head_seq = head.head_seq + 1, head_hash = new_hash,
        state = coalesce(new_state, state),
        lease_until = CASE
            WHEN lease_seconds IS NULL THEN lease_until ELSE clock_timestamp() + make_interval(secs => lease_seconds)
        END,
        closed_at = CASE WHEN new_state IN ('scored', 'abandoned', 'recorded') THEN now_at ELSE closed_at END
    WHERE decision_id = of_decision;
    RETURN head.head_seq + 1;
END
$$;

-- A row as the bytes of a step's body.
CREATE FUNCTION as_body(row_json jsonb) RETURNS bytea LANGUAGE sql IMMUTABLE RETURN convert_to(row_json::text, 'UTF8');


-- The events of deciding: their topics are decisions', agents', the gatekeeper's and clients', and no source's. For the
-- owner's functions, which have checked what each says.
CREATE FUNCTION write_decision_events(given_events json) RETURNS TABLE (topic text, unsubscribed integer)
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, public, pg_temp
AS $$
BEGIN
    PERFORM
    FROM json_to_recordset(given_events) AS given (topic text, also_topics text[], message json)
    CROSS JOIN LATERAL unnest(given.topic || given.also_topics) AS wanted (topic)
    WHERE wanted.topic IS NULL
        OR wanted.topic !~ '^(decisions|agents|gatekeeper|client)\.'
        OR given.message ->> 'source' IS DISTINCT FROM 'decisions';
    IF FOUND THEN
        RAISE EXCEPTION 'a message refused: decisions'' events have source decisions and topics of deciding alone'
            USING ERRCODE = 'insufficient_privilege';
    END IF;
    RETURN QUERY SELECT * FROM write_events(given_events);
END
$$;

-- The events of deciding that a role's own functions tell; no role tells what another did.
CREATE FUNCTION insert_decision_events(given_events json) RETURNS TABLE (topic text, unsubscribed integer)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, public, pg_temp
AS $$
DECLARE
    foreign_type text;
BEGIN
    SELECT coalesce(given.message ->> 'event_type', 'none') INTO foreign_type
    FROM json_to_recordset(given_events) AS given (message json)
    WHERE session_user <> current_user -- the owner's
        AND NOT EXISTS (
            SELECT
            FROM (
                VALUES
                ('acp_detect', ARRAY['ANOMALY_DETECTED']),
                ('acp_decide', ARRAY[
                    'DECISION_OPENED', 'AGENT_CALL_REQUESTED', 'HYPOTHESIS_PROPOSED', 'IMPACT_SIMULATED', 'DECISION_PROPOSED',
                    'VERDICT_REQUESTED', 'APPROVAL_EXPIRED', 'OUTCOME_OBSERVED', 'DECISION_ABANDONED', 'DECISION_WOKEN',
                    'ANOMALY_OVERLOOKED'
                ]),
                ('acp_gatekeeper', ARRAY['ACTION_REFUSED', 'APPROVAL_REQUESTED', 'ACTION_RELEASED'])
            ) AS tells (role_name, event_types)
            JOIN pg_roles ON rolname = role_name
            WHERE given.message ->> 'event_type' = ANY (event_types) AND pg_has_role(session_user, pg_roles.oid, 'MEMBER')
        )
    LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'an event refused: % is not for % to tell', foreign_type, session_user
            USING ERRCODE = 'insufficient_privilege';
    END IF;
    RETURN QUERY SELECT * FROM write_decision_events(given_events);
END
$$;

-- A message for a client is an action that this very transaction releases, and only acp_gatekeeper can insert one.
CREATE FUNCTION refuse_unreleased() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, public, pg_temp
AS $$
BEGIN
    PERFORM FROM actions WHERE event_id = NEW.event_id AND released_in = pg_current_xact_id();
    IF NOT FOUND THEN
        RAISE EXCEPTION 'a message for % refused: this transaction released no such action', NEW.topic
            USING ERRCODE = 'insufficient_privilege', HINT = 'Only the gatekeeper releases, with its verdict.';
    END IF;
    RETURN NEW;
END
$$;
CREATE TRIGGER outbox_to_clients_is_released BEFORE INSERT ON outbox
    FOR EACH ROW WHEN (NEW.topic LIKE 'client.%') EXECUTE FUNCTION refuse_unreleased();


-- Which states may follow which; docs/decision_engine.md draws it.
CREATE FUNCTION state_may_follow(old_state text, new_state text) RETURNS boolean
LANGUAGE sql IMMUTABLE
RETURN old_state = new_state OR (old_state, new_state) IN (
    ('opened', 'gathering'), ('opened', 'recorded'),
    ('gathering', 'hypothesising'), ('hypothesising', 'scoring'), ('scoring', 'simulating'), ('simulating', 'proposed'),
    ('hypothesising', 'simulating'), -- what needs no scoring
    -- To hold needs no verdict.
    ('gathering', 'observing'), ('hypothesising', 'observing'), ('scoring', 'observing'), ('simulating', 'observing'),
    ('proposed', 'refused'), ('proposed', 'awaiting_approval'), ('proposed', 'released'),
    ('awaiting_approval', 'approved'), ('awaiting_approval', 'denied'), ('awaiting_approval', 'expired'),
    ('approved', 'released'), ('approved', 'refused'),
    ('released', 'executed'), ('released', 'failed'),
    ('refused', 'observing'), ('denied', 'observing'), ('expired', 'observing'), ('executed', 'observing'), ('failed', 'observing'),
    ('observing', 'scored'),
    -- Nobody observes them: their playbook is gone, or fails.
    ('refused', 'scored'), ('denied', 'scored'), ('expired', 'scored'), ('executed', 'scored'), ('failed', 'scored'),
    ('proposed', 'observing') -- in shadow alone
) OR (
    new_state = 'abandoned'
    AND old_state IN ('opened', 'gathering', 'hypothesising', 'scoring', 'simulating', 'proposed', 'awaiting_approval', 'approved')
);


-- Opens a decision with its first step, once: returns false where it was open before.
CREATE FUNCTION open_decision(
    new_decision uuid, in_domain text, with_playbook text, version text, pins bytea, kind text, of_source text, of_entity text,
    of_series text, at timestamptz, by_event uuid, in_trace uuid, shadow boolean, until timestamptz, budget bigint
) RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, public, pg_temp
AS $$
DECLARE
    open_since timestamptz := clock_timestamp();
BEGIN
    INSERT INTO decisions (
        decision_id, domain, playbook, playbook_version, pins_sha256, anomaly_kind, source, entity_id, series, occurred_at,
        trigger_event_id, trace_id, is_shadow, deadline, budget_micros, opened_at
    )
    VALUES (
        new_decision, in_domain, with_playbook, version, pins, kind, of_source, of_entity, of_series, at, by_event, in_trace,
        shadow, until, budget, open_since
    )
    ON CONFLICT (decision_id) DO NOTHING;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    PERFORM append_step(
        new_decision, 'opened', 'engine', NULL,
        as_body(jsonb_build_object(
            'domain', in_domain, 'playbook', with_playbook, 'playbook_version', version, 'anomaly_kind', kind, 'source', of_source,
            'entity_id', of_entity, 'series', of_series, 'occurred_at', at, 'trigger_event_id', by_event, 'trace_id', in_trace,
            'is_shadow', shadow, 'deadline', until, 'budget_micros', budget, 'opened_at', open_since,
            'opened_by', session_user
        )),
        NULL, pins
    );
    INSERT INTO timers (decision_id, kind, due_at) VALUES (new_decision, 'deadline', until);
    RETURN true;
END
$$;

-- Records that another event is about a decision's instant, once per event; nobody needs to hold the decision for that, and
-- whoever does looks again. A decision that it supersedes before its release is never released.
CREATE FUNCTION join_decision(of_decision uuid, by_event uuid, supersedes boolean, step_body bytea) RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, public, pg_temp
AS $$
BEGIN
    PERFORM FROM decisions WHERE decision_id = of_decision FOR UPDATE;
    IF NOT FOUND OR EXISTS (
        SELECT FROM decision_steps
        WHERE decision_id = of_decision AND kind IN ('anomaly', 'joined')
            AND convert_from(body, 'UTF8')::json ->> 'event_id' = by_event::text
    ) THEN
        RETURN false;
    END IF;
    PERFORM append_step(of_decision, 'joined', 'engine', 0, step_body);
    UPDATE decisions
    SET wake_seq = wake_seq + 1, superseded_by = CASE WHEN supersedes THEN coalesce(superseded_by, by_event) ELSE superseded_by END
    WHERE decision_id = of_decision;
    RETURN true;
END
$$;

-- Says that no decision follows from an anomaly, so that nobody asks for one again.
CREATE FUNCTION dismiss_anomaly(of_event uuid) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, public, pg_temp
AS $$
BEGIN
    INSERT INTO processed_events (consumer, event_id)
    SELECT 'decisions', event_id FROM events WHERE event_id = of_event AND event_type = 'ANOMALY_DETECTED'
    ON CONFLICT DO NOTHING;
END
$$;

-- Takes a decision's lease. No row: another holds it, and has been told by wake_seq to look again.
CREATE FUNCTION claim_decision(of_decision uuid, claimant text, lease_seconds double precision)
RETURNS TABLE (fence bigint, wake_seq bigint)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, public, pg_temp
AS $$
#variable_conflict use_column
BEGIN
    -- Locked first: a holder that leaves between the two updates would leave the second one's message to nobody.
    PERFORM FROM decisions WHERE decision_id = of_decision FOR UPDATE;
    RETURN QUERY
    UPDATE decisions AS decision
    SET fence = decision.fence + 1, held_by = claimant, lease_until = clock_timestamp() + make_interval(secs => lease_seconds)
    WHERE decision_id = of_decision AND (lease_until IS NULL OR lease_until <= clock_timestamp())
    RETURNING decision.fence, decision.wake_seq;
    IF NOT FOUND THEN
        UPDATE decisions AS decision SET wake_seq = decision.wake_seq + 1 WHERE decision_id = of_decision;
    END IF;
END
$$;

-- Gives the lease back, unless a message came meanwhile. Returns left, woken (look again), or lost (another has it).
CREATE FUNCTION leave_decision(of_decision uuid, with_fence bigint, seen_wake_seq bigint) RETURNS text
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, public, pg_temp
AS $$
DECLARE
    found record;
BEGIN
    SELECT fence, wake_seq INTO found FROM decisions WHERE decision_id = of_decision FOR UPDATE;
    IF found IS NULL OR found.fence <> with_fence THEN
        RETURN 'lost';
    END IF;
    IF found.wake_seq <> seen_wake_seq THEN
        RETURN 'woken';
    END IF;
    UPDATE decisions SET held_by = NULL, lease_until = NULL WHERE decision_id = of_decision;
    RETURN 'left';
END
$$;

-- Raises where the decision is no longer the fence's holder's; keeps the lock of its row.
CREATE FUNCTION check_fence(of_decision uuid, with_fence bigint) RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, public, pg_temp
AS $$
BEGIN
    PERFORM FROM decisions WHERE decision_id = of_decision AND fence = with_fence FOR UPDATE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'decision % is no longer held under fence %', of_decision, with_fence USING ERRCODE = 'AC001';
    END IF;
END
$$;

-- Appends a step and moves the decision on, for the holder of its lease alone; a null state leaves it as it is. A step that
-- was decided on while the record ended at seen_seq is refused where it has grown since: what is decided again from the
-- record then sees what was seen here. Returns the step's number, time and hash, and the wake_seq as of the same lock: whoever had
-- read the record needs not read it again.
CREATE FUNCTION advance_decision(
    of_decision uuid, with_fence bigint, step_kind text, step_parent integer, step_body bytea, step_input bytea, step_output bytea,
    new_state text, lease_seconds double precision, seen_seq integer DEFAULT NULL
) RETURNS TABLE (new_seq integer, new_at timestamptz, seen_wake_seq bigint, new_hash bytea)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, public, pg_temp
AS $$
DECLARE
    held record;
BEGIN
    SELECT state, head_seq, wake_seq, is_shadow INTO held
    FROM decisions WHERE decision_id = of_decision AND fence = with_fence FOR UPDATE;
    IF NOT FOUND THEN
        PERFORM check_fence(of_decision, with_fence);
    END IF;
    IF step_kind IN (
        'opened', 'joined', 'call_intended', 'call_answered', 'verdict', 'shadow_verdict', 'approval_asked', 'approval', 'released',
        'execution'
    ) THEN
        RAISE EXCEPTION 'a step of kind % is written by its own function', step_kind USING ERRCODE = 'insufficient_privilege';
    END IF;
    IF held.head_seq <> seen_seq THEN
        RAISE EXCEPTION 'decision % has grown beyond step %', of_decision, seen_seq USING ERRCODE = 'AC003';
    END IF;
    IF new_state IS NOT NULL AND NOT state_may_follow(held.state, new_state) THEN
        RAISE EXCEPTION 'state % may not follow %', new_state, held.state USING ERRCODE = 'check_violation';
    END IF;
    IF new_state = 'released' AND NOT EXISTS (SELECT FROM actions WHERE decision_id = of_decision)
        OR new_state IN ('executed', 'failed') AND NOT EXISTS (
            SELECT FROM actions JOIN executions USING (action_id) WHERE decision_id = of_decision
        )
        OR new_state = 'approved' AND NOT EXISTS (SELECT FROM approvals WHERE decision_id = of_decision AND is_given)
        OR new_state = 'abandoned' AND EXISTS (SELECT FROM actions WHERE decision_id = of_decision)
        OR new_state = 'observing' AND held.state = 'proposed' AND NOT held.is_shadow
    THEN
        RAISE EXCEPTION 'state % is not what the record says', new_state USING ERRCODE = 'check_violation';
    END IF;
    new_seq := append_step(
        of_decision, step_kind, 'engine', step_parent, step_body, step_input, step_output,
        new_state => new_state, lease_seconds => lease_seconds
    );
    RETURN QUERY
    SELECT new_seq, at, held.wake_seq, hash FROM decision_steps WHERE decision_id = of_decision AND seq = new_seq;
END
$$;

CREATE FUNCTION set_timer(of_decision uuid, with_fence bigint, timer_kind text, at timestamptz) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, public, pg_temp
AS $$
BEGIN
    PERFORM check_fence(of_decision, with_fence);
    INSERT INTO timers (decision_id, kind, due_at) VALUES (of_decision, timer_kind, at) ON CONFLICT DO NOTHING;
END
$$;


-- Records that an agent is to be called, and reserves the most that this attempt may cost. Returns false, and records
-- nothing, where a budget has no room for it.
CREATE FUNCTION intend_call(
    of_decision uuid, with_fence bigint, new_call uuid, of_step integer, of_agent text, version text, nth integer, request bytea,
    micros bigint, until timestamptz, budget_scope text, day_limit bigint
) RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, public, pg_temp
AS $$
DECLARE
    today date := (now() AT TIME ZONE 'UTC')::date;
    intended record;
BEGIN
    PERFORM check_fence(of_decision, with_fence);
    IF micros > 0 THEN
        PERFORM FROM decisions AS decision
        WHERE decision_id = of_decision AND budget_micros >= micros + (
            SELECT coalesce(sum(coalesce(reservation.spent_micros, reservation.micros)), 0)
            FROM budget_reservations AS reservation
            JOIN agent_calls AS call USING (call_id)
            WHERE call.decision_id = of_decision
        );
        IF NOT FOUND THEN
            RETURN false;
        END IF;
        INSERT INTO budgets (scope, day, limit_micros) VALUES (budget_scope, today, day_limit)
        ON CONFLICT (scope, day) DO UPDATE
        SET limit_micros = greatest(excluded.limit_micros, budgets.reserved_micros + budgets.spent_micros - budgets.overrun_micros);
        UPDATE budgets SET reserved_micros = reserved_micros + micros
        WHERE scope = budget_scope AND day = today
            AND reserved_micros + spent_micros + micros <= least(day_limit, limit_micros);
        IF NOT FOUND THEN
            RETURN false;
        END IF;
    END IF;
    INSERT INTO agent_calls (
        call_id, decision_id, step_seq, agent, agent_version, attempt, request_sha256, reserved_micros, deadline
    )
    VALUES (new_call, of_decision, of_step, of_agent, version, nth, request, micros, until)
    RETURNING * INTO intended;
    IF micros > 0 THEN
        INSERT INTO budget_reservations (call_id, scope, day, micros) VALUES (new_call, budget_scope, today, micros);
    END IF;
    PERFORM append_step(
        of_decision, 'call_intended', 'engine', of_step,
        as_body(
            (jsonb_strip_nulls(to_jsonb(intended)) - 'decision_id')
            || CASE WHEN micros > 0 THEN jsonb_build_object('budget', budget_scope, 'day', today) ELSE '{}' END
        ),
        request
    );
    RETURN true;
END
$$;

-- Settles an attempt's reservation. What was charged beyond it is recorded as overrun, and switches the model off.
CREATE FUNCTION settle_reservation(of_call uuid, charged bigint, of_model text, at timestamptz) RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, public, pg_temp
AS $$
DECLARE
    held record;
BEGIN
    UPDATE budget_reservations SET spent_micros = charged, settled_at = at
    WHERE call_id = of_call AND settled_at IS NULL
    RETURNING scope, day, micros INTO held;
    IF held IS NULL THEN
        RETURN;
    END IF;
    UPDATE budgets
    SET
        reserved_micros = reserved_micros - held.micros,
        spent_micros = spent_micros + charged,
        overrun_micros = overrun_micros + greatest(charged - held.micros, 0)
    WHERE scope = held.scope AND day = held.day;
    IF charged > held.micros AND of_model IS NOT NULL THEN
        INSERT INTO switches (scope, is_off, set_by, reason)
        VALUES ('model:' || of_model, true, 'control plane', 'it charged more than was reserved')
        ON CONFLICT (scope) DO UPDATE
        SET is_off = true, set_by = excluded.set_by, set_at = clock_timestamp(), reason = excluded.reason;
        INSERT INTO switch_changes (scope, is_off, set_by, reason)
        VALUES ('model:' || of_model, true, 'control plane', 'it charged more than was reserved');
    END IF;
END
$$;

-- Ends an attempt and says so in the chain.
CREATE FUNCTION end_call(
    of_call uuid, how text, author text, answer bytea, because text, charged bigint, tokens_in integer, tokens_out integer,
    of_model text, retry_after integer DEFAULT NULL
) RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, public, pg_temp
AS $$
DECLARE
    ended record;
    answer_hash bytea := CASE WHEN answer IS NOT NULL THEN sha256(answer) END;
BEGIN
    IF answer IS NOT NULL THEN
        INSERT INTO artifacts (sha256, kind, bytes) VALUES (answer_hash, 'answer', answer) ON CONFLICT DO NOTHING;
    END IF;
    UPDATE agent_calls
    SET
        outcome = how, answer_sha256 = answer_hash, error = left(because, 1024), cost_micros = charged,
        input_tokens = tokens_in, output_tokens = tokens_out, retry_after_seconds = retry_after, ended_at = clock_timestamp()
    WHERE call_id = of_call
    RETURNING * INTO STRICT ended;
    PERFORM settle_reservation(of_call, charged, of_model, ended.ended_at);
    PERFORM append_step(
        ended.decision_id, 'call_answered', author, ended.step_seq,
        as_body(to_jsonb(ended) - 'decision_id'), ended.request_sha256, answer_hash, charged
    );
END
$$;

-- The attempts of a decision that nobody will answer any more, ended: one that was begun is unknown and spent in full, one
-- that was not has cost nothing. Returns how many.
CREATE FUNCTION end_lost_calls(of_decision uuid, with_fence bigint) RETURNS integer
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, public, pg_temp
AS $$
DECLARE
    lost record;
    ended integer := 0;
BEGIN
    PERFORM check_fence(of_decision, with_fence);
    FOR lost IN
        SELECT * FROM agent_calls
        WHERE decision_id = of_decision AND outcome IS NULL
            AND (lease_until <= clock_timestamp() OR lease_until IS NULL AND deadline <= clock_timestamp())
        ORDER BY step_seq, attempt
        FOR UPDATE
    LOOP
        PERFORM end_call(
            lost.call_id,
            CASE WHEN lost.lease_until IS NULL THEN 'never_started' ELSE 'unknown' END,
            'engine', NULL,
            CASE
                WHEN lost.lease_until IS NULL THEN 'nobody took the call before its deadline'
                ELSE 'its agent did not report back before its lease ran out'
            END,
            CASE WHEN lost.lease_until IS NULL THEN 0 ELSE lost.reserved_micros END, NULL, NULL, NULL
        );
        ended := ended + 1;
    END LOOP;
    RETURN ended;
END
$$;

-- Takes an attempt, once; no row where it was taken, ended or is too late, or where its agent is switched off.
CREATE FUNCTION claim_call(of_call uuid, claimant text, lease_seconds double precision)
RETURNS TABLE (
    fence bigint, decision_id uuid, agent text, agent_version text, attempt integer, request bytea, reserved_micros bigint,
    seconds_left double precision, trace_id uuid, entity_id text, occurred_at timestamptz
)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, public, pg_temp
AS $$
#variable_conflict use_column
BEGIN
    -- The decision's row first, as everywhere: two orders of locks would wait for each other in a circle.
    PERFORM FROM decisions
    WHERE decision_id = (SELECT decision_id FROM agent_calls WHERE call_id = of_call)
    FOR UPDATE;
    RETURN QUERY
    UPDATE agent_calls AS call
    SET
        fence = call.fence + 1, claimed_by = claimant,
        lease_until = least(call.deadline, clock_timestamp() + make_interval(secs => lease_seconds))
    FROM artifacts, decisions AS decision
    WHERE call.call_id = of_call
        AND artifacts.sha256 = call.request_sha256
        AND decision.decision_id = call.decision_id
        AND call.outcome IS NULL
        AND call.lease_until IS NULL
        AND call.deadline > clock_timestamp()
        AND decision.closed_at IS NULL
        AND NOT EXISTS (
            SELECT FROM switches
            WHERE is_off AND scope IN (
                'all', 'domain:' || decision.domain, 'playbook:' || decision.playbook, 'agent:' || call.agent
            )
        )
    RETURNING
        call.fence, call.decision_id, call.agent, call.agent_version, call.attempt, artifacts.bytes, call.reserved_micros,
        -- By this clock alone: the caller's may be another one.
        extract(epoch FROM call.lease_until - clock_timestamp())::double precision,
        decision.trace_id, decision.entity_id, decision.occurred_at;
END
$$;

-- Whether a model is switched off; asked before the call.
CREATE FUNCTION model_is_off(of_model text) RETURNS boolean
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = pg_catalog, public, pg_temp
RETURN EXISTS (SELECT FROM switches WHERE is_off AND scope = 'model:' || of_model);

-- Ends an attempt with what its agent answered, and wakes its decision by the given event. Returns false for an attempt
-- that is not this fence's any more, or ended: its answer comes too late and changes nothing. Where more was charged than was
-- reserved, the model is switched off, and the switch's event is told, too.
CREATE FUNCTION answer_call(
    of_call uuid, with_fence bigint, how text, answer bytea, because text, charged bigint, tokens_in integer, tokens_out integer,
    of_model text, wake_event json, switch_event json DEFAULT NULL, retry_after integer DEFAULT NULL
) RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, public, pg_temp
AS $$
DECLARE
    call record;
BEGIN
    PERFORM FROM decisions WHERE decision_id = (SELECT decision_id FROM agent_calls WHERE call_id = of_call) FOR UPDATE;
    SELECT * INTO call FROM agent_calls WHERE call_id = of_call FOR UPDATE;
    IF call IS NULL OR call.fence <> with_fence OR call.outcome IS NOT NULL OR call.lease_until IS NULL THEN
        RETURN false;
    END IF;
    IF how NOT IN ('answered', 'invalid', 'failed', 'unknown') THEN
        RAISE EXCEPTION 'an agent cannot report %', how USING ERRCODE = 'check_violation';
    END IF;
    IF wake_event -> 'message' -> 'payload' ->> 'decision_id' IS DISTINCT FROM call.decision_id::text
        OR wake_event -> 'message' ->> 'event_type' NOT IN ('AGENT_ANSWERED', 'AGENT_FAILED')
    THEN
        RAISE EXCEPTION 'the event is not about this call''s decision' USING ERRCODE = 'check_violation';
    END IF;
    -- What has no verdict is spent in full.
    PERFORM end_call(
        of_call, how, 'agent', answer, because,
        CASE WHEN how = 'unknown' THEN call.reserved_micros ELSE charged END, tokens_in, tokens_out, of_model, retry_after
    );
    IF how <> 'unknown' AND charged > call.reserved_micros AND of_model IS NOT NULL THEN
        IF switch_event -> 'message' ->> 'event_type' IS DISTINCT FROM 'SWITCH_SET'
            OR switch_event -> 'message' -> 'payload' ->> 'scope' IS DISTINCT FROM 'model:' || of_model
            OR switch_event -> 'message' -> 'payload' ->> 'is_off' IS DISTINCT FROM 'true'
            OR switch_event -> 'message' -> 'payload' ->> 'set_by' IS DISTINCT FROM 'control plane'
        THEN
            RAISE EXCEPTION 'the event does not say that this model was switched off' USING ERRCODE = 'check_violation';
        END IF;
        PERFORM write_decision_events(json_build_array(switch_event));
    END IF;
    -- While another call of its step is open, nothing follows from an answer: the last one to end wakes the decision.
    IF how = 'answered' AND EXISTS (
        SELECT FROM agent_calls AS other
        WHERE other.decision_id = call.decision_id AND other.step_seq = call.step_seq AND other.outcome IS NULL
    ) THEN
        wake_event := json_build_object('topic', wake_event -> 'topic', 'also_topics', '[]'::json, 'message', wake_event -> 'message');
    END IF;
    PERFORM write_decision_events(json_build_array(wake_event));
    RETURN true;
END
$$;

-- Who is on record for a person's command: the session's login, or token:NAME where CommandApiFunction asks for whoever
-- sent a token. Only acp_command itself may name one, and one that may do this; people's logins, its members, speak for
-- themselves.
CREATE FUNCTION who_commands(of_token text, wanted_scope text) RETURNS text
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, public, pg_temp
AS $$
BEGIN
    IF of_token IS NULL THEN
        RETURN session_user;
    END IF;
    PERFORM check_is_api();
    IF of_token <> 'root' AND NOT EXISTS (
        SELECT FROM api_tokens
        WHERE name = of_token AND wanted_scope = ANY (scopes) AND revoked_at IS NULL
            AND (expires_at IS NULL OR expires_at > clock_timestamp())
    ) THEN
        RAISE EXCEPTION 'token % may not % (any more)', of_token, wanted_scope USING ERRCODE = 'insufficient_privilege';
    END IF;
    RETURN 'token:' || of_token;
END
$$;


-- Locks a decision's row for whoever may not write it, so that it is locked before anything else is.
CREATE FUNCTION lock_decision(of_decision uuid) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, public, pg_temp
AS $$
BEGIN
    PERFORM FROM decisions WHERE decision_id = of_decision FOR UPDATE;
END
$$;

-- Puts a verdict on record. What a permitted one releases is an insert into actions by the same transaction.
CREATE FUNCTION record_verdict(
    new_verdict uuid, of_decision uuid, of_proposal integer, action bytea, judgement text, shadow boolean, approval uuid,
    policy bytea, policy_schema bytea, request bytea, why json, errors json
) RETURNS integer
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, public, pg_temp
AS $$
DECLARE
    judged record;
BEGIN
    PERFORM FROM decisions WHERE decision_id = of_decision FOR UPDATE;
    INSERT INTO verdicts (
        verdict_id, decision_id, proposal_seq, action_sha256, verdict, is_shadow, approval_id, policy_sha256, schema_sha256,
        request_sha256, reasons, errors
    )
    VALUES (
        new_verdict, of_decision, of_proposal, action, judgement, shadow, approval, policy, policy_schema, request, why::jsonb,
        errors::jsonb
    )
    RETURNING * INTO judged;
    RETURN append_step(
        of_decision, 'verdict', 'gatekeeper', of_proposal, as_body(to_jsonb(judged) - 'judged_in'), request, action
    );
END
$$;

-- Puts on record what policies in shadow say to the request of a verdict, once; false where that is on record, or the verdict
-- fell before any policy was asked. It is a step and nothing else: a release names a verdict, which this is not.
CREATE FUNCTION record_shadow_verdict(
    of_verdict uuid, policy bytea, policy_schema bytea, enforced text, judgement text, why json, errors json
) RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, public, pg_temp
AS $$
DECLARE
    judged record;
    judged_at_seq integer;
BEGIN
    IF enforced NOT IN ('permitted', 'needs_approval', 'refused') OR judgement NOT IN ('permitted', 'needs_approval', 'refused')
        OR json_typeof(why) <> 'array' OR json_typeof(errors) <> 'array' OR judgement <> 'refused' AND errors::text <> '[]'
    THEN
        RAISE EXCEPTION 'this is no verdict' USING ERRCODE = 'check_violation';
    END IF;
    PERFORM FROM decisions
    WHERE decision_id = (SELECT decision_id FROM verdicts WHERE verdict_id = of_verdict)
    FOR UPDATE;
    SELECT * INTO judged
    FROM verdicts
    WHERE verdict_id = of_verdict AND request_sha256 IS NOT NULL AND policy_sha256 IS NOT NULL;
    IF NOT FOUND OR EXISTS (
        SELECT FROM decision_steps
        WHERE decision_id = judged.decision_id AND kind = 'shadow_verdict'
            AND convert_from(body, 'UTF8')::json ->> 'verdict_id' = of_verdict::text
    ) THEN
        RETURN false;
    END IF;
    SELECT seq INTO STRICT judged_at_seq
    FROM decision_steps
    WHERE decision_id = judged.decision_id AND kind = 'verdict'
        AND convert_from(body, 'UTF8')::json ->> 'verdict_id' = of_verdict::text;
    PERFORM append_step(
        judged.decision_id, 'shadow_verdict', 'gatekeeper', judged_at_seq,
        as_body(jsonb_build_object(
            'verdict_id', of_verdict, 'policy_sha256', policy, 'schema_sha256', policy_schema,
            'enforced', enforced, 'verdict', judgement, 'reasons', why, 'errors', errors
        )),
        judged.request_sha256, policy
    );
    RETURN true;
END
$$;

-- Asks for a person's approval of one action.
CREATE FUNCTION ask_approval(
    new_approval uuid, of_decision uuid, action bytea, until timestamptz, what_is_shown text
) RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, public, pg_temp
AS $$
DECLARE
    asked record;
BEGIN
    PERFORM FROM decisions WHERE decision_id = of_decision FOR UPDATE;
    IF EXISTS (SELECT FROM decisions WHERE decision_id = of_decision AND is_shadow) THEN
        RAISE EXCEPTION 'an approval request refused: nobody is asked about a decision in shadow'
            USING ERRCODE = 'insufficient_privilege';
    END IF;
    INSERT INTO approval_requests (approval_id, decision_id, action_sha256, expires_at, proposed_by, shown)
    SELECT
        new_approval, of_decision, action, until,
        convert_from(body, 'UTF8')::jsonb ->> 'opened_by', what_is_shown
    FROM decision_steps
    WHERE decision_id = of_decision AND seq = 0
    ON CONFLICT DO NOTHING
    RETURNING * INTO asked;
    IF asked IS NULL THEN
        RETURN false;
    END IF;
    PERFORM append_step(of_decision, 'approval_asked', 'gatekeeper', NULL, as_body(to_jsonb(asked)), NULL, action);
    INSERT INTO timers (decision_id, kind, due_at) VALUES (of_decision, 'approval', until) ON CONFLICT DO NOTHING;
    RETURN true;
END
$$;

-- A person's answer, once. Who answers is the login of the database. Returns given, denied, or why it does not count:
-- unknown, changed (another action than was shown), expired, answered (before), own (whoever proposed may not approve).
CREATE FUNCTION answer_approval(
    of_approval uuid, action bytea, gives boolean, because text, wake_event json, of_token text DEFAULT NULL
) RETURNS text
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, public, pg_temp
AS $$
DECLARE
    who text := who_commands(of_token, 'approve');
    asked record;
    answered record;
BEGIN
    PERFORM FROM decisions
    WHERE decision_id = (SELECT decision_id FROM approval_requests WHERE approval_id = of_approval)
    FOR UPDATE;
    SELECT * INTO asked FROM approval_requests WHERE approval_id = of_approval;
    IF asked IS NULL THEN
        RETURN 'unknown';
    END IF;
    IF EXISTS (SELECT FROM approvals WHERE approval_id = of_approval) THEN
        RETURN 'answered';
    END IF;
    IF asked.action_sha256 IS DISTINCT FROM action THEN
        RETURN 'changed';
    END IF;
    IF asked.expires_at <= clock_timestamp()
        OR NOT EXISTS (SELECT FROM decisions WHERE decision_id = asked.decision_id AND state IN ('proposed', 'awaiting_approval'))
    THEN
        RETURN 'expired';
    END IF;
    -- Not by name alone: whoever may become the login that proposed, or a function's role, may have proposed it.
    IF gives AND (
        asked.proposed_by IN (session_user, who)
        OR EXISTS (
            SELECT FROM pg_roles
            WHERE rolname IN (asked.proposed_by, 'acp_detect', 'acp_decide', 'acp_agent', 'acp_gatekeeper', 'acp_action')
                AND pg_has_role(session_user, oid, 'MEMBER')
        )
    ) THEN
        RETURN 'own';
    END IF;
    IF wake_event -> 'message' -> 'payload' ->> 'decision_id' IS DISTINCT FROM asked.decision_id::text
        OR wake_event -> 'message' ->> 'event_type' IS DISTINCT FROM (
            CASE WHEN gives THEN 'APPROVAL_GIVEN' ELSE 'APPROVAL_DENIED' END
        )
        OR wake_event -> 'message' -> 'payload' ->> 'approval_id' IS DISTINCT FROM of_approval::text
        OR wake_event -> 'message' -> 'payload' ->> 'decided_by' IS DISTINCT FROM who
    THEN
        RAISE EXCEPTION 'the event is not about this approval' USING ERRCODE = 'check_violation';
    END IF;
    -- Given in time, it stands as long as its decision does: one in the last second is judged again like any other.
    INSERT INTO approvals (approval_id, decision_id, action_sha256, is_given, decided_by, reason, expires_at)
    SELECT of_approval, decision_id, action, gives, who, because, deadline
    FROM decisions
    WHERE decision_id = asked.decision_id
    RETURNING * INTO answered;
    PERFORM append_step(asked.decision_id, 'approval', 'person', NULL, as_body(to_jsonb(answered)), NULL, action);
    PERFORM write_decision_events(json_build_array(wake_event));
    RETURN CASE WHEN gives THEN 'given' ELSE 'denied' END;
END
$$;


-- Switches a scope off or on. Waits for releases and executions that are under way; none begins before it is committed,
-- so they cannot starve it.
CREATE FUNCTION set_switch(of_scope text, off boolean, because text, told_event json, of_token text DEFAULT NULL)
RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, public, pg_temp
AS $$
DECLARE
    who text := who_commands(of_token, 'operate');
BEGIN
    -- The table's lock and not a row's: whoever wants to share it queues behind this. And no advisory lock, which any role
    -- could take, and keep the switch from being set.
    LOCK TABLE switch_lock IN EXCLUSIVE MODE;
    INSERT INTO switches (scope, is_off, set_by, reason) VALUES (of_scope, off, who, because)
    ON CONFLICT (scope) DO UPDATE
    SET is_off = excluded.is_off, set_by = excluded.set_by, set_at = clock_timestamp(), reason = excluded.reason;
    INSERT INTO switch_changes (scope, is_off, set_by, reason) VALUES (of_scope, off, who, because);
    IF told_event -> 'message' ->> 'event_type' IS DISTINCT FROM 'SWITCH_SET'
        OR told_event -> 'message' -> 'payload' ->> 'scope' IS DISTINCT FROM of_scope
        OR told_event -> 'message' -> 'payload' ->> 'is_off' IS DISTINCT FROM off::text
        OR told_event -> 'message' -> 'payload' ->> 'set_by' IS DISTINCT FROM who
    THEN
        RAISE EXCEPTION 'the event does not say how this switch was set' USING ERRCODE = 'check_violation';
    END IF;
    PERFORM write_decision_events(json_build_array(told_event));
END
$$;

-- The scopes that are off among those that an action falls under: its domain, playbook and type, every agent whose answer
-- it may rest on, and the models behind them. Takes the lock that a change of a switch waits for.
CREATE FUNCTION switched_off(of_decision uuid, of_action_type text) RETURNS text[]
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, public, pg_temp
AS $$
BEGIN
    LOCK TABLE switch_lock IN ROW SHARE MODE;
    -- A function that froze in its transaction holds up a switch no longer than that.
    PERFORM set_config('idle_in_transaction_session_timeout', '2s', true);
    RETURN ARRAY(
        SELECT scope
        FROM switches
        JOIN decisions AS decision ON decision.decision_id = of_decision
        WHERE is_off AND (
            scope IN ('all', 'domain:' || decision.domain, 'playbook:' || decision.playbook, 'action:' || of_action_type)
            OR EXISTS (
                SELECT FROM agent_calls AS call
                WHERE call.decision_id = of_decision AND coalesce(call.outcome, 'answered') = 'answered'
                    -- A version names the model behind its agent: 1+MODEL.
                    AND scope IN ('agent:' || call.agent, 'model:' || substring(call.agent_version FROM '[+](.*)$'))
            )
        )
        ORDER BY scope
    );
END
$$;

-- A release is asked for its verdict: of this very transaction, positive, of this action, not in shadow; for its approval
-- where one is needed; for its decision, which must still wait for it; and for the switches. It then is a step of the chain.
CREATE FUNCTION check_release() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, public, pg_temp
AS $$
DECLARE
    judged record;
    decision record;
    off text[];
BEGIN
    SELECT * INTO decision FROM decisions WHERE decision_id = NEW.decision_id FOR UPDATE;
    SELECT * INTO judged FROM verdicts WHERE verdict_id = NEW.verdict_id;
    off := switched_off(NEW.decision_id, NEW.action_type);
    IF judged IS NULL OR judged.verdict <> 'permitted' OR judged.is_shadow OR decision.is_shadow
        OR judged.judged_in <> pg_current_xact_id()
        OR judged.decision_id <> NEW.decision_id
        OR judged.action_sha256 IS DISTINCT FROM NEW.action_sha256
    THEN
        RAISE EXCEPTION 'a release refused: it has no positive verdict of its own' USING ERRCODE = 'insufficient_privilege';
    END IF;
    IF decision.superseded_by IS NOT NULL THEN
        RAISE EXCEPTION 'a release refused: what it was decided on is superseded' USING ERRCODE = 'insufficient_privilege';
    END IF;
    IF decision.state NOT IN ('proposed', 'approved') OR decision.deadline <= clock_timestamp() OR NEW.domain <> decision.domain THEN
        RAISE EXCEPTION 'a release refused: its decision does not wait for one' USING ERRCODE = 'insufficient_privilege';
    END IF;
    IF (judged.approval_id IS NOT NULL OR decision.state = 'approved') AND NOT EXISTS (
        SELECT FROM approvals
        WHERE approval_id = judged.approval_id AND decision_id = NEW.decision_id AND is_given
            AND action_sha256 = NEW.action_sha256 AND expires_at > clock_timestamp()
    ) THEN
        RAISE EXCEPTION 'a release refused: this action has no approval that stands' USING ERRCODE = 'insufficient_privilege';
    END IF;
    IF off <> '{}' THEN
        RAISE EXCEPTION 'a release refused: % is switched off', array_to_string(off, ', ') USING ERRCODE = 'AC002';
    END IF;
    IF NEW.released_in <> pg_current_xact_id() OR NEW.expires_at <= clock_timestamp() THEN
        RAISE EXCEPTION 'a release refused: it is dated back' USING ERRCODE = 'insufficient_privilege';
    END IF;
    PERFORM append_step(
        NEW.decision_id, 'released', 'gatekeeper', judged.proposal_seq, as_body(to_jsonb(NEW) - 'released_in'), NULL, NEW.action_sha256
    );
    RETURN NEW;
END
$$;
CREATE TRIGGER actions_are_verdicted BEFORE INSERT ON actions FOR EACH ROW EXECUTE FUNCTION check_release();


-- Begins an execution within the transaction of its effect: returns ready, or why not: unknown, done, superseded, expired, or
-- off: and the scopes that are switched off. Locks what a change of a switch waits for.
CREATE FUNCTION begin_execution(of_action uuid) RETURNS text
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, public, pg_temp
AS $$
DECLARE
    released record;
    off text[];
BEGIN
    PERFORM FROM decisions WHERE decision_id = (SELECT decision_id FROM actions WHERE action_id = of_action) FOR UPDATE;
    SELECT * INTO released FROM actions WHERE action_id = of_action;
    IF released IS NULL THEN
        RETURN 'unknown';
    END IF;
    IF EXISTS (SELECT FROM executions WHERE action_id = of_action) THEN
        RETURN 'done';
    END IF;
    IF EXISTS (SELECT FROM decisions WHERE decision_id = released.decision_id AND superseded_by IS NOT NULL) THEN
        RETURN 'superseded';
    END IF;
    off := switched_off(released.decision_id, released.action_type);
    IF off <> '{}' THEN
        RETURN 'off: ' || array_to_string(off, ', ');
    END IF;
    IF released.expires_at <= clock_timestamp() THEN
        RETURN 'expired';
    END IF;
    RETURN 'ready';
END
$$;

-- What the client did, once; the chain has it, and the decision is woken by the given event.
CREATE FUNCTION record_execution(of_action uuid, how text, because text, did jsonb, wake_event json) RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, public, pg_temp
AS $$
DECLARE
    in_decision uuid := (SELECT decision_id FROM actions WHERE action_id = of_action);
    recorded record;
BEGIN
    PERFORM FROM decisions WHERE decision_id = in_decision FOR UPDATE;
    INSERT INTO executions (action_id, outcome, reason, effect) VALUES (of_action, how, because, did)
    ON CONFLICT (action_id) DO NOTHING
    RETURNING * INTO recorded;
    IF recorded IS NULL THEN
        RETURN false;
    END IF;
    IF wake_event -> 'message' -> 'payload' ->> 'decision_id' IS DISTINCT FROM in_decision::text THEN
        RAISE EXCEPTION 'the event is not about this action''s decision' USING ERRCODE = 'check_violation';
    END IF;
    PERFORM append_step(in_decision, 'execution', 'client', NULL, as_body(to_jsonb(recorded)));
    PERFORM write_decision_events(json_build_array(wake_event));
    RETURN true;
END
$$;


-- Fails an action that nobody has executed before it expired, once; the chain has it, and the decision is woken by the given
-- event. Returns false where it has not expired or was executed, and where somebody holds its decision: a client that began
-- in time may be about to record its effect, so that the next run asks again.
CREATE FUNCTION expire_action(of_action uuid, because text, wake_event json) RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, public, pg_temp
AS $$
DECLARE
    in_decision uuid := (SELECT decision_id FROM actions WHERE action_id = of_action AND expires_at <= clock_timestamp());
    recorded record;
BEGIN
    PERFORM FROM decisions WHERE decision_id = in_decision FOR UPDATE SKIP LOCKED;
    IF NOT FOUND OR EXISTS (SELECT FROM executions WHERE action_id = of_action) THEN
        RETURN false;
    END IF;
    IF wake_event -> 'message' ->> 'event_type' IS DISTINCT FROM 'ACTION_FAILED'
        OR wake_event -> 'message' -> 'payload' ->> 'decision_id' IS DISTINCT FROM in_decision::text
        OR wake_event -> 'message' -> 'payload' ->> 'action_id' IS DISTINCT FROM of_action::text
        OR wake_event -> 'message' -> 'payload' ->> 'reason' IS DISTINCT FROM because
    THEN
        RAISE EXCEPTION 'the event does not say that this action failed' USING ERRCODE = 'check_violation';
    END IF;
    INSERT INTO executions (action_id, outcome, reason) VALUES (of_action, 'failed', because) RETURNING * INTO recorded;
    PERFORM append_step(in_decision, 'execution', 'engine', NULL, as_body(to_jsonb(recorded)));
    PERFORM write_decision_events(json_build_array(wake_event));
    RETURN true;
END
$$;


-- Decisions that somebody must look at although no message says so: a lease ran out, a call's lease or deadline did, a timer
-- is due, which is marked as fired; or nobody holds it, nothing else will wake it, and its deadline has passed or its record
-- has not grown for a while. Then the next such look is a pause later, twice as long each time: a retry timer holds it back.
CREATE FUNCTION fire_timers(most integer, idle_seconds double precision DEFAULT 30) RETURNS TABLE (decision_id uuid, reason text, trace_id uuid, entity_id text)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, public, pg_temp
AS $$
#variable_conflict use_column
BEGIN
    IF most IS NULL OR most NOT BETWEEN 1 AND 10000 THEN
        RAISE EXCEPTION 'fire_timers takes 1 to 10000 at a time' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    RETURN QUERY
    WITH fired AS (
        UPDATE timers AS timer
        SET fired_at = clock_timestamp()
        FROM (
            SELECT decision_id, kind, due_at FROM timers
            WHERE fired_at IS NULL AND due_at <= clock_timestamp()
            ORDER BY due_at
            LIMIT most
            FOR UPDATE SKIP LOCKED
        ) AS due
        WHERE timer.decision_id = due.decision_id AND timer.kind = due.kind AND timer.due_at = due.due_at
        RETURNING timer.decision_id, timer.kind AS reason
    ),
    idle AS (
        SELECT decision_id, CASE WHEN deadline <= clock_timestamp() THEN 'overdue' ELSE 'idle' END AS reason
        FROM decisions AS decision
        JOIN decision_steps AS newest USING (decision_id)
        CROSS JOIN LATERAL (
            SELECT
                coalesce(bool_or(kind = 'retry'), false) AS is_held_back,
                coalesce(bool_or(
                    (state, kind) IN (('awaiting_approval', 'approval'), ('observing', 'observe')) OR kind IN ('call', 'gather')
                ), false) AS is_woken_later
            FROM timers
            WHERE timers.decision_id = decision.decision_id AND fired_at IS NULL AND due_at > clock_timestamp()
        ) AS ahead
        WHERE closed_at IS NULL AND lease_until IS NULL AND newest.seq = head_seq AND NOT is_held_back
            AND (
                deadline <= clock_timestamp() AND NOT is_woken_later
                OR newest.at <= clock_timestamp() - make_interval(secs => idle_seconds)
                -- Whoever waits for a timer may still have missed what somebody else added.
                AND (newest.author <> 'engine' OR NOT is_woken_later)
            )
            AND decision_id NOT IN (SELECT decision_id FROM fired WHERE reason <> 'retry')
            AND NOT EXISTS (SELECT FROM agent_calls WHERE agent_calls.decision_id = decision.decision_id AND outcome IS NULL)
            -- The client's message is with its queue; nobody else can help.
            AND (state <> 'released' OR EXISTS (
                SELECT FROM actions JOIN executions USING (action_id) WHERE actions.decision_id = decision.decision_id
            ))
        LIMIT most
    ),
    paused AS (
        INSERT INTO timers (decision_id, kind, due_at)
        SELECT
            decision_id, 'retry',
            clock_timestamp() + make_interval(secs => idle_seconds * power(2, least(7, (
                SELECT count(*) FROM timers WHERE timers.decision_id = idle.decision_id AND kind = 'retry'
            ))))
        FROM idle
        ON CONFLICT DO NOTHING
    ),
    woken AS (
        SELECT decision_id, reason FROM fired WHERE reason <> 'retry'
        UNION
        SELECT decision_id, reason FROM idle
        UNION
        (SELECT decision_id, 'lease' FROM decisions WHERE closed_at IS NULL AND lease_until <= clock_timestamp() LIMIT most)
        UNION
        (
            SELECT decision_id, 'call' FROM agent_calls
            WHERE outcome IS NULL AND coalesce(lease_until, deadline) <= clock_timestamp()
            LIMIT most
        )
    )
    SELECT decision_id, min(reason), decision.trace_id, decision.entity_id
    FROM woken
    JOIN decisions AS decision USING (decision_id)
    WHERE decision.closed_at IS NULL OR reason = 'call'
    GROUP BY decision_id, decision.trace_id, decision.entity_id;
END
$$;

-- Anchors the heads of the next chains that grew, in the order of their ids after one of them: returns the lines that belong
-- into the log. No row where none grew.
CREATE FUNCTION anchor_heads(most integer, after_decision uuid DEFAULT NULL) RETURNS TABLE (anchor_id bigint, root bytea, prev_root bytea, heads text)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, public, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    last_root bytea;
    grown text;
BEGIN
    LOCK TABLE anchors IN SHARE ROW EXCLUSIVE MODE;
    SELECT anchors.root INTO last_root FROM anchors ORDER BY anchors.anchor_id DESC LIMIT 1;
    WITH due AS (
        SELECT decision_id FROM decisions
        WHERE NOT is_anchored AND (after_decision IS NULL OR decision_id > after_decision)
        ORDER BY decision_id
        LIMIT most
        FOR UPDATE SKIP LOCKED
    ),
    taken AS (
        UPDATE decisions SET anchored_seq = head_seq FROM due WHERE decisions.decision_id = due.decision_id
        RETURNING decisions.decision_id, head_seq, head_hash
    )
    SELECT string_agg(format('%s %s %s', decision_id, head_seq, encode(head_hash, 'hex')), E'\n' ORDER BY decision_id)
    INTO grown FROM taken;
    IF grown IS NULL THEN
        RETURN;
    END IF;
    RETURN QUERY
    INSERT INTO anchors (prev_root, heads, root)
    VALUES (coalesce(last_root, '\x'), grown, sha256(coalesce(last_root, '\x') || convert_to(grown, 'UTF8')))
    RETURNING anchors.anchor_id, anchors.root, anchors.prev_root, anchors.heads;
END
$$;


-- Who may do what.

REVOKE ALL ON ALL FUNCTIONS IN SCHEMA public FROM PUBLIC;

-- DetectorFunction; its own tables are the domain's. It tells ANOMALY_DETECTED alone.
GRANT SELECT (event_id), INSERT (consumer, event_id) ON processed_events TO acp_detect, acp_action;
GRANT EXECUTE ON FUNCTION insert_decision_events TO acp_detect, acp_decide, acp_gatekeeper;

-- DecisionFunction and TimersFunction: reads the record, writes through the owner's functions.
GRANT SELECT ON
    artifacts, decisions, decision_steps, agent_calls, verdicts, approval_requests, approvals, actions, executions, outcomes,
    agent_scores, timers, switches, budgets, events
    TO acp_decide;
GRANT SELECT (consumer, event_id) ON processed_events TO acp_decide;
GRANT INSERT (sha256, kind, bytes) ON artifacts TO acp_decide, acp_gatekeeper;
GRANT INSERT (decision_id, state, observed, observed_at) ON outcomes TO acp_decide;
GRANT INSERT (decision_id, agent, agent_version, forecast, probability, happened, brier, scored_at) ON agent_scores TO acp_decide;
GRANT EXECUTE ON FUNCTION
    open_decision, join_decision, claim_decision, leave_decision, advance_decision, set_timer, intend_call, end_lost_calls, fire_timers,
    anchor_heads, expire_action, dismiss_anomaly
    TO acp_decide;

-- AgentFunction: takes a call and answers it.
GRANT EXECUTE ON FUNCTION claim_call, answer_call, model_is_off TO acp_agent;

-- GatekeeperFunction: judges, and alone releases.
GRANT SELECT ON
    artifacts, decisions, decision_steps, agent_calls, verdicts, approval_requests, approvals, actions, executions, switches, events
    TO acp_gatekeeper;
GRANT INSERT (
    action_id, decision_id, idempotency_key, domain, action_type, account, action_sha256, verdict_id, event_id, expires_at
) ON actions TO acp_gatekeeper;
GRANT EXECUTE ON FUNCTION lock_decision, record_verdict, record_shadow_verdict, ask_approval, switched_off TO acp_gatekeeper;

-- ActionFunction, the client's: what was released, and what it did with it.
GRANT SELECT ON actions, executions TO acp_action;
GRANT SELECT (sha256, kind, bytes) ON artifacts TO acp_action;
GRANT EXECUTE ON FUNCTION begin_execution, record_execution TO acp_action;

-- People's commands: approvals and switches.
GRANT SELECT ON
    artifacts, decisions, decision_steps, verdicts, approval_requests, approvals, actions, executions, switches, switch_changes
    TO acp_command;
GRANT EXECUTE ON FUNCTION answer_approval, set_switch TO acp_command;

GRANT SELECT ON
    artifacts, decisions, decision_steps, agent_calls, budgets, budget_reservations, verdicts, approval_requests, approvals,
    switches, switch_changes, actions, executions, outcomes, agent_scores, timers, anchors
    TO acp_reader;
