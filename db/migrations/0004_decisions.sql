-- Decisions: what an anomaly led to, step by step; who answered, what was judged, approved, released and done. Every row
-- that counts is also a step of its decision's hash chain. docs/decision_engine.md draws the machine.

-- The roles of deciding, made as in 0003_roles.sql where the owner may make them.
DO $$
DECLARE
    role_name text;
    missing text[];
BEGIN
    missing := ARRAY(
        SELECT wanted
        FROM unnest(ARRAY['acp_action', 'acp_agent', 'acp_command', 'acp_decide', 'acp_detect', 'acp_gatekeeper']) AS wanted
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
    EXECUTE format(
        'GRANT CONNECT ON DATABASE %I TO acp_detect, acp_decide, acp_agent, acp_gatekeeper, acp_action, acp_command',
        current_database()
    );
END
$$;
GRANT USAGE ON SCHEMA public TO acp_detect, acp_decide, acp_agent, acp_gatekeeper, acp_action, acp_command;


CREATE TABLE artifacts (
    sha256    bytea       PRIMARY KEY,
    kind      text        NOT NULL CHECK (kind ~ '^[a-z][a-z_]*$'),
    bytes     bytea       NOT NULL CHECK (octet_length(bytes) <= 4 * 1024 * 1024),
    stored_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT artifacts_are_named_by_their_content CHECK (sha256 = pg_catalog.sha256(bytes))
);
-- To compress evidence costs more time than all else that is done to store it.
ALTER TABLE artifacts ALTER COLUMN bytes SET STORAGE EXTERNAL;
COMMENT ON TABLE artifacts IS 'What decisions used, once each, by the SHA-256 of its bytes: playbooks, policies, schemas, prompts, requests, answers, evidence. Immutable.';
CREATE TRIGGER artifacts_are_immutable BEFORE UPDATE OR DELETE OR TRUNCATE ON artifacts
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();


CREATE TABLE decisions (
    decision_id      uuid        PRIMARY KEY,
    domain           text        NOT NULL CHECK (domain <> ''),
    playbook         text        NOT NULL CHECK (playbook <> ''),
    playbook_version text        NOT NULL CHECK (playbook_version <> ''),
    pins_sha256      bytea       NOT NULL REFERENCES artifacts (sha256),
    anomaly_kind     text        NOT NULL CHECK (anomaly_kind <> ''),
    source           text        NOT NULL CHECK (source <> ''),
    entity_id        text        NOT NULL CHECK (entity_id <> ''),
    series           text        NOT NULL DEFAULT '',
    occurred_at      timestamptz NOT NULL,
    trigger_event_id uuid        NOT NULL,
    trace_id         uuid        NOT NULL,
    is_shadow        boolean     NOT NULL DEFAULT false,
    state            text        NOT NULL DEFAULT 'opened' CHECK (state IN (
        'opened', 'gathering', 'hypothesising', 'scoring', 'simulating', 'proposed', 'refused', 'awaiting_approval', 'approved',
        'denied', 'expired', 'released', 'executed', 'failed', 'observing', 'scored', 'abandoned', 'recorded'
    )),
    fence            bigint      NOT NULL DEFAULT 0,
    held_by          text,
    lease_until      timestamptz,
    wake_seq         bigint      NOT NULL DEFAULT 0,
    deadline         timestamptz NOT NULL,
    budget_micros    bigint      NOT NULL DEFAULT 0 CHECK (budget_micros >= 0),
    opened_at        timestamptz NOT NULL DEFAULT clock_timestamp(),
    closed_at        timestamptz,
    head_seq         integer     NOT NULL DEFAULT -1,
    head_hash        bytea       NOT NULL DEFAULT '\x',
    anchored_seq     integer     NOT NULL DEFAULT -1,
    is_anchored      boolean     GENERATED ALWAYS AS (head_seq <= anchored_seq) STORED,
    superseded_by    uuid,
    CONSTRAINT decisions_lease_is_whole CHECK ((held_by IS NULL) = (lease_until IS NULL))
) WITH (fillfactor = 60); -- each step updates it: the new version then fits the same page, and no index has to know
COMMENT ON TABLE decisions IS 'One row per decision: where it stands, who holds it, and the head of its chain. What happened is in decision_steps.';
COMMENT ON COLUMN decisions.fence IS 'Rises with each claim; only the holder of the latest may advance the decision.';
COMMENT ON COLUMN decisions.wake_seq IS 'Rises with each message that found the decision held: its holder looks again before it leaves.';
COMMENT ON COLUMN decisions.is_anchored IS 'Whether an anchor holds its head. The index is over this, for an index over head_seq would change with each step.';
COMMENT ON COLUMN decisions.superseded_by IS 'The event by which what it was opened for is not true any more: nothing is released then.';
COMMENT ON COLUMN decisions.deadline IS 'By when it is released, refused or abandoned.';
COMMENT ON COLUMN decisions.budget_micros IS 'Most that its agents may cost, in millionths of a US dollar.';
COMMENT ON COLUMN decisions.state IS 'recorded: older than the playbook acts on; nothing follows from it.';
CREATE INDEX decisions_open ON decisions (deadline) WHERE closed_at IS NULL;
CREATE INDEX decisions_by_time ON decisions (opened_at);
CREATE INDEX decisions_by_entity ON decisions (entity_id, occurred_at);
CREATE INDEX decisions_to_anchor ON decisions (decision_id) WHERE NOT is_anchored;


CREATE TABLE decision_steps (
    decision_id   uuid        NOT NULL REFERENCES decisions (decision_id),
    seq           integer     NOT NULL CHECK (seq >= 0),
    parent        integer     CHECK (parent < seq),
    kind          text        NOT NULL CHECK (kind ~ '^[a-z][a-z_]*$'),
    author        text        NOT NULL CHECK (author ~ '^[a-z][a-z_]*$'),
    at            timestamptz NOT NULL,
    input_sha256  bytea       REFERENCES artifacts (sha256),
    output_sha256 bytea       REFERENCES artifacts (sha256),
    cost_micros   bigint      NOT NULL DEFAULT 0,
    body          bytea       NOT NULL CHECK (octet_length(body) <= 65536),
    prev_hash     bytea       NOT NULL,
    hash          bytea       NOT NULL,
    PRIMARY KEY (decision_id, seq)
);
CREATE INDEX decision_steps_in_shadow ON decision_steps (at) WHERE kind = 'shadow_verdict';
ALTER TABLE decision_steps ALTER COLUMN body SET STORAGE EXTERNAL; -- as an artifact's bytes
COMMENT ON TABLE decision_steps IS 'A decision''s record: a tree by parent, a hash chain by seq over the stored bytes. Append-only.';
COMMENT ON COLUMN decision_steps.body IS 'A JSON object, as the bytes that were hashed.';
CREATE TRIGGER decision_steps_are_immutable BEFORE UPDATE OR DELETE OR TRUNCATE ON decision_steps
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();


CREATE TABLE agent_calls (
    call_id         uuid        PRIMARY KEY,
    decision_id     uuid        NOT NULL REFERENCES decisions (decision_id),
    step_seq        integer     NOT NULL,
    agent           text        NOT NULL CHECK (agent <> ''),
    agent_version   text        NOT NULL CHECK (agent_version <> ''),
    attempt         integer     NOT NULL CHECK (attempt >= 1),
    request_sha256  bytea       NOT NULL REFERENCES artifacts (sha256),
    reserved_micros bigint      NOT NULL DEFAULT 0 CHECK (reserved_micros >= 0),
    intended_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    deadline        timestamptz NOT NULL,
    fence           bigint      NOT NULL DEFAULT 0,
    claimed_by      text,
    lease_until     timestamptz,
    outcome         text        CHECK (outcome IN ('answered', 'invalid', 'failed', 'unknown', 'never_started')),
    answer_sha256   bytea       REFERENCES artifacts (sha256),
    error           text,
    cost_micros     bigint      CHECK (cost_micros >= 0),
    input_tokens    integer     CHECK (input_tokens >= 0),
    output_tokens   integer     CHECK (output_tokens >= 0),
    retry_after_seconds integer CHECK (retry_after_seconds >= 0),
    ended_at        timestamptz,
    CONSTRAINT agent_calls_one_per_attempt UNIQUE (decision_id, step_seq, agent, attempt),
    CONSTRAINT agent_calls_end_is_whole CHECK ((outcome IS NULL) = (ended_at IS NULL)),
    CONSTRAINT agent_calls_answered CHECK (outcome IS DISTINCT FROM 'answered' OR answer_sha256 IS NOT NULL)
);
COMMENT ON TABLE agent_calls IS 'Every attempt of every call of an agent. One is claimed once: after a lost lease its answer is unknown, and what follows is another attempt.';
CREATE INDEX agent_calls_open ON agent_calls (deadline) WHERE outcome IS NULL;


CREATE TABLE budgets (
    scope           text   NOT NULL CHECK (scope <> ''),
    day             date   NOT NULL,
    limit_micros    bigint NOT NULL CHECK (limit_micros >= 0),
    reserved_micros bigint NOT NULL DEFAULT 0 CHECK (reserved_micros >= 0),
    spent_micros    bigint NOT NULL DEFAULT 0 CHECK (spent_micros >= 0),
    overrun_micros  bigint NOT NULL DEFAULT 0 CHECK (overrun_micros >= 0),
    PRIMARY KEY (scope, day),
    CONSTRAINT budgets_are_kept CHECK (reserved_micros + spent_micros <= limit_micros + overrun_micros)
);
COMMENT ON TABLE budgets IS 'What agents may cost on a day (UTC), in millionths of a US dollar. Reserved before each call, spent after it.';
COMMENT ON COLUMN budgets.overrun_micros IS 'What providers charged beyond the reservations: it stops their model, and is counted here.';

CREATE TABLE budget_reservations (
    call_id      uuid        PRIMARY KEY REFERENCES agent_calls (call_id),
    scope        text        NOT NULL,
    day          date        NOT NULL,
    micros       bigint      NOT NULL CHECK (micros >= 0),
    spent_micros bigint      CHECK (spent_micros >= 0),
    settled_at   timestamptz,
    CONSTRAINT budget_reservations_end_is_whole CHECK ((spent_micros IS NULL) = (settled_at IS NULL)),
    FOREIGN KEY (scope, day) REFERENCES budgets (scope, day)
);
COMMENT ON TABLE budget_reservations IS 'One per attempt: the most it may cost, and then what it did cost; in full where the answer is unknown.';


CREATE TABLE verdicts (
    verdict_id     uuid        PRIMARY KEY,
    decision_id    uuid        NOT NULL REFERENCES decisions (decision_id),
    proposal_seq   integer     NOT NULL,
    action_sha256  bytea       REFERENCES artifacts (sha256),
    verdict        text        NOT NULL CHECK (verdict IN ('permitted', 'needs_approval', 'refused')),
    is_shadow      boolean     NOT NULL,
    approval_id    uuid,
    policy_sha256  bytea       REFERENCES artifacts (sha256),
    schema_sha256  bytea       REFERENCES artifacts (sha256),
    request_sha256 bytea       REFERENCES artifacts (sha256),
    reasons        jsonb       NOT NULL CHECK (jsonb_typeof(reasons) = 'array'),
    errors         jsonb       NOT NULL CHECK (jsonb_typeof(errors) = 'array'),
    judged_at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    judged_in      xid8        NOT NULL DEFAULT pg_current_xact_id(),
    CONSTRAINT verdicts_errors_refuse CHECK (verdict = 'refused' OR errors = '[]'),
    CONSTRAINT verdicts_name_what_they_judge CHECK (
        verdict = 'refused' OR (
            action_sha256 IS NOT NULL AND policy_sha256 IS NOT NULL AND schema_sha256 IS NOT NULL AND request_sha256 IS NOT NULL
        )
    )
);
COMMENT ON TABLE verdicts IS 'Every judgement of a proposal, with the full policy request, so that another policy can be tried on history. Immutable.';
CREATE INDEX verdicts_by_decision ON verdicts (decision_id, proposal_seq);
-- Policies are tried on the newest of those that a policy was asked for.
CREATE INDEX verdicts_to_try_again ON verdicts (judged_at, verdict_id)
    WHERE request_sha256 IS NOT NULL AND policy_sha256 IS NOT NULL;
CREATE TRIGGER verdicts_are_immutable BEFORE UPDATE OR DELETE OR TRUNCATE ON verdicts
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();


CREATE TABLE approval_requests (
    approval_id   uuid        PRIMARY KEY,
    decision_id   uuid        NOT NULL REFERENCES decisions (decision_id),
    action_sha256 bytea       NOT NULL REFERENCES artifacts (sha256),
    requested_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    expires_at    timestamptz NOT NULL,
    proposed_by   text        NOT NULL CHECK (proposed_by <> ''),
    shown         text        NOT NULL CHECK (shown <> ''),
    CONSTRAINT approval_requests_one_per_action UNIQUE (decision_id, action_sha256)
);
COMMENT ON TABLE approval_requests IS 'What a person is asked to approve: exactly one action, by its hash. Silence is a no.';
COMMENT ON COLUMN approval_requests.shown IS 'What the approver is shown, as our code renders it.';
CREATE TRIGGER approval_requests_are_immutable BEFORE UPDATE OR DELETE OR TRUNCATE ON approval_requests
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

CREATE TABLE approvals (
    approval_id   uuid        PRIMARY KEY REFERENCES approval_requests (approval_id),
    decision_id   uuid        NOT NULL REFERENCES decisions (decision_id),
    action_sha256 bytea       NOT NULL,
    is_given      boolean     NOT NULL,
    decided_by    text        NOT NULL CHECK (decided_by <> ''),
    reason        text        NOT NULL DEFAULT '',
    decided_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    expires_at    timestamptz NOT NULL
);
COMMENT ON TABLE approvals IS 'A person''s answer to an approval request, once. decided_by is the login of the database, or token:NAME.';
CREATE TRIGGER approvals_are_immutable BEFORE UPDATE OR DELETE OR TRUNCATE ON approvals
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();


CREATE TABLE switch_lock (only_one boolean PRIMARY KEY DEFAULT true CHECK (only_one));
INSERT INTO switch_lock DEFAULT VALUES;
COMMENT ON TABLE switch_lock IS 'Releases and executions share the lock of this table, a change of a switch takes it alone, so that nothing passes a switch that is off.';

CREATE TABLE switches (
    scope  text        PRIMARY KEY CHECK (scope ~ '^(all|(domain|playbook|agent|action|model):[A-Za-z0-9_.:/-]{1,128})$'),
    is_off boolean     NOT NULL,
    set_by text        NOT NULL CHECK (set_by <> ''),
    set_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    reason text        NOT NULL DEFAULT ''
);
COMMENT ON TABLE switches IS 'What is switched off: all, a domain, a playbook, an agent, a type of action, a model.';

CREATE TABLE switch_changes (
    id     bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    scope  text        NOT NULL,
    is_off boolean     NOT NULL,
    set_by text        NOT NULL,
    set_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    reason text        NOT NULL
);
COMMENT ON TABLE switch_changes IS 'Every change of a switch. Immutable.';
CREATE TRIGGER switch_changes_are_immutable BEFORE UPDATE OR DELETE OR TRUNCATE ON switch_changes
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();


CREATE TABLE actions (
    action_id       uuid        PRIMARY KEY,
    decision_id     uuid        NOT NULL UNIQUE REFERENCES decisions (decision_id),
    idempotency_key text        NOT NULL UNIQUE CHECK (idempotency_key <> ''),
    domain          text        NOT NULL CHECK (domain <> ''),
    action_type     text        NOT NULL CHECK (action_type <> ''),
    account         text        NOT NULL CHECK (account <> ''),
    action_sha256   bytea       NOT NULL REFERENCES artifacts (sha256),
    verdict_id      uuid        NOT NULL REFERENCES verdicts (verdict_id),
    event_id        uuid        NOT NULL UNIQUE,
    released_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    released_in     xid8        NOT NULL DEFAULT pg_current_xact_id(),
    expires_at      timestamptz NOT NULL
);
COMMENT ON TABLE actions IS 'What was released to a client, once per decision. Only acp_gatekeeper inserts, and the trigger asks for the verdict. Immutable.';
CREATE INDEX actions_by_account ON actions (account, released_at);
CREATE TRIGGER actions_are_immutable BEFORE UPDATE OR DELETE OR TRUNCATE ON actions
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

CREATE TABLE executions (
    action_id   uuid        PRIMARY KEY REFERENCES actions (action_id),
    outcome     text        NOT NULL CHECK (outcome IN ('executed', 'failed')),
    reason      text        NOT NULL DEFAULT '',
    effect      jsonb       NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(effect) = 'object'),
    executed_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE executions IS 'What the client did with an action, once, or that nobody executed it before it expired. Immutable.';
CREATE TRIGGER executions_are_immutable BEFORE UPDATE OR DELETE OR TRUNCATE ON executions
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();


CREATE TABLE outcomes (
    decision_id uuid        PRIMARY KEY REFERENCES decisions (decision_id),
    state       text        NOT NULL CHECK (state IN ('observed', 'unobservable')),
    observed    jsonb       NOT NULL CHECK (jsonb_typeof(observed) = 'object'),
    observed_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE outcomes IS 'What came of a decision after its horizon: what the market did, and what the other options would have given. Immutable.';
CREATE TRIGGER outcomes_are_immutable BEFORE UPDATE OR DELETE OR TRUNCATE ON outcomes
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

CREATE TABLE agent_scores (
    decision_id   uuid             NOT NULL REFERENCES decisions (decision_id),
    agent         text             NOT NULL,
    agent_version text             NOT NULL,
    forecast      text             NOT NULL,
    probability   double precision NOT NULL CHECK (probability BETWEEN 0 AND 1),
    happened      boolean          NOT NULL,
    brier         double precision NOT NULL CHECK (brier BETWEEN 0 AND 1),
    scored_at     timestamptz      NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (decision_id, agent, forecast)
);
COMMENT ON TABLE agent_scores IS 'How good each forecast of a decision was, those of refused proposals included. Immutable.';
CREATE TRIGGER agent_scores_are_immutable BEFORE UPDATE OR DELETE OR TRUNCATE ON agent_scores
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();


CREATE TABLE timers (
    decision_id uuid        NOT NULL REFERENCES decisions (decision_id),
    kind        text        NOT NULL CHECK (kind IN ('deadline', 'retry', 'call', 'gather', 'approval', 'observe')),
    due_at      timestamptz NOT NULL,
    fired_at    timestamptz,
    PRIMARY KEY (decision_id, kind, due_at)
);
COMMENT ON TABLE timers IS 'When a decision is to be looked at again without a message.';
COMMENT ON COLUMN timers.kind IS 'call: an agent is tried again then. gather: evidence is not waited for any longer. retry: one that stands still is not looked at before.';
CREATE INDEX timers_due ON timers (due_at) WHERE fired_at IS NULL;


-- For anomalies that nobody has taken up.
CREATE INDEX events_anomalies ON events (ingested_at) WHERE event_type = 'ANOMALY_DETECTED';


CREATE TABLE anchors (
    anchor_id   bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    anchored_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    prev_root   bytea       NOT NULL,
    heads       text        NOT NULL,
    root        bytea       NOT NULL
);
COMMENT ON TABLE anchors IS 'The heads of the chains that grew since the anchor before, and a hash over all so far. Each is also a log line, which nobody who can write here can change.';
CREATE TRIGGER anchors_are_immutable BEFORE UPDATE OR DELETE OR TRUNCATE ON anchors
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
