-- name: limit_lock_waits
-- Bounds how long this transaction waits for any lock.
SELECT set_config('lock_timeout', %(lock_timeout)s, true)

-- name: lock_decision
-- Locks a decision's row until the transaction ends, for whoever may not write it.
SELECT lock_decision(%(decision_id)s)

-- name: clock
-- The database's time at this very moment.
SELECT clock_timestamp()

-- name: verdict_exists
-- Whether a verdict was given: it is given once.
SELECT 1 FROM verdicts WHERE verdict_id = %(verdict_id)s

-- name: judged_decision
-- A decision as the model has it.
SELECT
    decision_id, domain, playbook, playbook_version, pins_sha256, anomaly_kind, source, entity_id, series, occurred_at,
    trigger_event_id, trace_id, is_shadow, state, deadline, budget_micros, opened_at
FROM decisions
WHERE decision_id = %(decision_id)s

-- name: judged_steps
-- A decision's steps in order, as they are stored, without what was judged in shadow: no verdict may rest on that.
SELECT seq, parent, kind, author, at, body, input_sha256, output_sha256, cost_micros
FROM decision_steps
WHERE decision_id = %(decision_id)s AND kind <> 'shadow_verdict'
ORDER BY seq

-- name: judged_artifacts
-- What evidence, simulations and proposals of a decision put out.
SELECT DISTINCT artifact.sha256, artifact.bytes
FROM decision_steps AS step
JOIN artifacts AS artifact ON artifact.sha256 = step.output_sha256
WHERE step.decision_id = %(decision_id)s AND step.kind IN ('evidence', 'simulation', 'proposal')

-- name: lock_account
-- Locks an account until the transaction ends: no two judgements count what it was released at the same time.
SELECT pg_advisory_xact_lock(hashtextextended(%(account)s, 0))

-- name: approval_of_action
-- What a person was asked about an action, and whether an approval stands.
SELECT request.approval_id, coalesce(approval.is_given AND approval.expires_at > clock_timestamp(), false)
FROM approval_requests AS request
LEFT JOIN approvals AS approval USING (approval_id)
WHERE request.decision_id = %(decision_id)s AND request.action_sha256 = %(action_sha256)s

-- name: switched_off
-- The scopes that are off for an action; a change of a switch waits until the transaction ends.
SELECT switched_off(%(decision_id)s, %(action_type)s)

-- name: keep_artifact
-- Stores what a verdict is based on, once by its hash.
INSERT INTO artifacts (sha256, kind, bytes) VALUES (%(sha256)s, %(kind)s, %(bytes)s) ON CONFLICT (sha256) DO NOTHING

-- name: record_verdict
-- Puts a verdict on record, as a step of its decision too.
SELECT record_verdict(
    %(verdict_id)s, %(decision_id)s, %(proposal_seq)s, %(action_sha256)s, %(verdict)s, %(is_shadow)s, %(approval_id)s,
    %(policy_sha256)s, %(schema_sha256)s, %(request_sha256)s, %(reasons)s::json, %(errors)s::json
)

-- name: judged_without_shadow
-- What the policies of a verdict were asked, where no policies in shadow have answered the same yet; no row where none was.
SELECT
    verdict.approval_id IS NOT NULL AND verdict.verdict <> 'needs_approval' AS is_approved,
    policy.bytes AS policies,
    policy_schema.bytes AS schema,
    request.bytes AS request
FROM verdicts AS verdict
JOIN artifacts AS policy ON policy.sha256 = verdict.policy_sha256
JOIN artifacts AS policy_schema ON policy_schema.sha256 = verdict.schema_sha256
JOIN artifacts AS request ON request.sha256 = verdict.request_sha256
WHERE verdict.verdict_id = %(verdict_id)s
    AND NOT EXISTS (
        SELECT FROM decision_steps AS step
        WHERE step.decision_id = verdict.decision_id
            AND step.kind = 'shadow_verdict'
            AND convert_from(step.body, 'UTF8')::json ->> 'verdict_id' = verdict.verdict_id::text
    )

-- name: record_shadow_verdict
-- Puts on record what policies in shadow say to the request of a verdict; false where that is on record.
SELECT record_shadow_verdict(
    %(verdict_id)s, %(policy_sha256)s, %(schema_sha256)s, %(enforced)s, %(verdict)s, %(reasons)s::json, %(errors)s::json
)

-- name: release_action
-- Releases an action; the database asks for the verdict of this very transaction.
INSERT INTO actions (
    action_id, decision_id, idempotency_key, domain, action_type, account, action_sha256, verdict_id, event_id, expires_at
)
VALUES (
    %(action_id)s, %(decision_id)s, %(idempotency_key)s, %(domain)s, %(action_type)s, %(account)s, %(action_sha256)s,
    %(verdict_id)s, %(event_id)s, %(expires_at)s
)

-- name: ask_approval
-- Asks for a person's approval of one action.
SELECT ask_approval(%(approval_id)s, %(decision_id)s, %(action_sha256)s, %(expires_at)s, %(shown)s)

-- name: open_approval_requests
-- What people are asked now, the most urgent first.
SELECT
    request.approval_id, request.decision_id, request.action_sha256, request.requested_at, request.expires_at,
    request.proposed_by, request.shown, decision.domain, decision.playbook, decision.entity_id, decision.trace_id
FROM approval_requests AS request
JOIN decisions AS decision USING (decision_id)
WHERE request.expires_at > clock_timestamp()
    AND decision.state IN ('proposed', 'awaiting_approval')
    AND NOT EXISTS (SELECT FROM approvals WHERE approvals.approval_id = request.approval_id)
ORDER BY request.expires_at, request.approval_id

-- name: approval_request
-- The open requests whose id begins so, two at most; by its whole id one is found whatever has become of it.
SELECT
    request.approval_id, request.decision_id, request.action_sha256, request.requested_at, request.expires_at,
    request.proposed_by, request.shown, decision.domain, decision.playbook, decision.entity_id, decision.trace_id
FROM approval_requests AS request
JOIN decisions AS decision USING (decision_id)
WHERE request.approval_id::text LIKE %(beginning)s || '%%'
    AND (
        request.approval_id::text = %(beginning)s
        OR request.expires_at > clock_timestamp()
        AND decision.state IN ('proposed', 'awaiting_approval')
        AND NOT EXISTS (SELECT FROM approvals WHERE approvals.approval_id = request.approval_id)
    )
ORDER BY request.requested_at DESC
LIMIT 2

-- name: answer_approval
-- A person's answer; returns what became of it.
SELECT answer_approval(%(approval_id)s, %(action_sha256)s, %(gives)s, %(reason)s, %(event)s::json, %(token)s)

-- name: who_asks
-- Who is on record for what this session asks, its login or the token that it speaks for; and the database's time.
SELECT coalesce('token:' || %(token)s::text, session_user::text), clock_timestamp()

-- name: set_switch
-- Switches a scope off or on; waits for releases and executions that are under way.
SELECT set_switch(%(scope)s, %(off)s, %(reason)s, %(event)s::json, %(token)s)

-- name: switches
-- Every switch that was ever set, those that are off first.
SELECT scope, is_off, set_by, set_at, reason FROM switches ORDER BY is_off DESC, scope

-- name: recorded_requests
-- A domain's newest verdicts that a policy was asked for, with the request, and the names of the policy and its schema.
WITH newest AS (
    SELECT
        verdict.verdict_id, verdict.decision_id, verdict.judged_at, verdict.verdict, verdict.is_shadow,
        verdict.approval_id, decision.entity_id, decision.occurred_at, verdict.policy_sha256, verdict.schema_sha256,
        verdict.request_sha256
    FROM verdicts AS verdict
    JOIN decisions AS decision USING (decision_id)
    WHERE decision.domain = %(domain)s
        AND verdict.request_sha256 IS NOT NULL
        AND verdict.policy_sha256 IS NOT NULL
    ORDER BY verdict.judged_at DESC, verdict.verdict_id DESC
    LIMIT %(limit)s
)
SELECT
    newest.verdict_id, newest.decision_id, newest.judged_at, newest.verdict, newest.is_shadow, newest.approval_id,
    newest.entity_id, newest.occurred_at, newest.policy_sha256, newest.schema_sha256, request.bytes
FROM newest
JOIN artifacts AS request ON request.sha256 = newest.request_sha256
ORDER BY newest.judged_at DESC, newest.verdict_id DESC

-- name: count_verdicts
-- How many of a domain's verdicts a policy was asked for, and how many fell before any was.
SELECT
    count(*) FILTER (WHERE verdict.request_sha256 IS NOT NULL AND verdict.policy_sha256 IS NOT NULL) AS asked,
    count(*) FILTER (WHERE verdict.request_sha256 IS NULL OR verdict.policy_sha256 IS NULL) AS unasked
FROM verdicts AS verdict
JOIN decisions AS decision USING (decision_id)
WHERE decision.domain = %(domain)s

-- name: insert_decision_events
-- Events of deciding, their messages, and one pending delivery per message and subscription.
SELECT topic, unsubscribed
FROM insert_decision_events(%(events)s::json)

-- name: list_decisions
-- The newest decisions, with what each came to; filters that are null fit all.
SELECT
    decision.decision_id,
    decision.entity_id,
    decision.anomaly_kind,
    decision.occurred_at,
    decision.playbook,
    decision.state,
    decision.is_shadow,
    decision.opened_at,
    decision.closed_at,
    decision.deadline,
    (SELECT count(*) FROM decision_steps WHERE decision_steps.decision_id = decision.decision_id) AS steps,
    (SELECT coalesce(sum(cost_micros), 0)::bigint FROM agent_calls WHERE agent_calls.decision_id = decision.decision_id)
        AS cost_micros,
    (SELECT action_type FROM actions WHERE actions.decision_id = decision.decision_id) AS action_type
FROM decisions AS decision
WHERE (%(state)s::text IS NULL OR decision.state = %(state)s)
    AND (%(entity_id)s::text IS NULL OR decision.entity_id = %(entity_id)s)
ORDER BY decision.opened_at DESC, decision.decision_id
LIMIT %(limit)s

-- name: decision_facts
-- One decision as its row has it.
SELECT
    decision_id, domain, playbook, playbook_version, anomaly_kind, source, entity_id, series, occurred_at, trigger_event_id,
    trace_id, is_shadow, state, deadline, budget_micros, opened_at, closed_at, superseded_by, head_seq, anchored_seq
FROM decisions
WHERE decision_id = %(decision_id)s

-- name: tree_of_steps
-- A decision's steps in order; an output is shown where it is small.
SELECT
    step.seq,
    step.parent,
    step.kind,
    step.author,
    step.at,
    step.cost_micros,
    convert_from(step.body, 'UTF8') AS body,
    encode(step.output_sha256, 'hex') AS output_sha256,
    -- As bytes: an answer that was refused may be no text, and must not hide its decision.
    CASE WHEN octet_length(output.bytes) <= 65536 THEN output.bytes END AS output
FROM decision_steps AS step
LEFT JOIN artifacts AS output ON output.sha256 = step.output_sha256
WHERE step.decision_id = %(decision_id)s
ORDER BY step.seq
-- name: decision
-- One decision as it stands, with the database's time, the scopes that are switched off, the hash of one of its steps, and the
-- steps after that one, with what agents answered.
SELECT
    decision.decision_id, domain, playbook, playbook_version, pins_sha256, anomaly_kind, source, entity_id, series, occurred_at,
    trigger_event_id, trace_id, is_shadow, state, deadline, budget_micros, opened_at, closed_at, wake_seq, clock_timestamp(),
    ARRAY(SELECT scope FROM switches WHERE is_off ORDER BY scope),
    (
        SELECT known.hash FROM decision_steps AS known
        WHERE known.decision_id = decision.decision_id AND known.seq = %(after_seq)s
    ),
    step.seq, parent, step.kind, author, at, body, input_sha256, output_sha256, cost_micros, step.hash, answer.bytes
FROM decisions AS decision
LEFT JOIN decision_steps AS step ON step.decision_id = decision.decision_id AND step.seq > %(after_seq)s
LEFT JOIN artifacts AS answer ON answer.sha256 = step.output_sha256 AND step.kind = 'call_answered'
WHERE decision.decision_id = %(decision_id)s
ORDER BY step.seq

-- name: artifacts
-- The bytes of artifacts by their hashes.
SELECT sha256, bytes FROM artifacts WHERE sha256 = ANY(%(hashes)s)

-- name: store_artifacts
-- Stores bytes under their hashes; what is stored already stays.
INSERT INTO artifacts (sha256, kind, bytes)
SELECT sha256, kind, bytes
FROM unnest(%(hashes)s::bytea[], %(kinds)s::text[], %(contents)s::bytea[]) AS made (sha256, kind, bytes)
ORDER BY sha256
ON CONFLICT DO NOTHING

-- name: decisions_of_anomaly
-- What was decided on at an anomaly's instant, by whatever playbook.
SELECT decision_id
FROM decisions
WHERE entity_id = %(entity_id)s
    AND occurred_at = %(occurred_at)s
    AND source = %(source)s
    AND series = %(series)s
    AND anomaly_kind = %(kind)s
    AND domain = coalesce(%(domain)s, domain)
ORDER BY decision_id

-- name: lock_anomaly
-- Waits until nobody else opens the decision of an anomaly; holds it until the transaction ends.
SELECT pg_advisory_xact_lock(hashtextextended('anomaly ' || %(decision_id)s::text, 0))

-- name: is_withdrawn
-- Whether an event that is not older than the given one takes its anomaly back.
SELECT EXISTS (
    SELECT FROM events
    WHERE event_type = 'ANOMALY_DETECTED'
        AND occurred_at = %(occurred_at)s
        AND source = 'decisions'
        AND entity_id IS NOT DISTINCT FROM %(entity_id)s
        AND event_id <> %(event_id)s
        AND payload_json ->> 'observed_source' = %(source)s
        AND payload_json ->> 'series' = %(series)s
        AND payload_json ->> 'kind' = %(kind)s
        AND payload_json ->> 'domain' IS NOT DISTINCT FROM %(domain)s
        AND (payload_json ->> 'is_withdrawn')::boolean
        AND ((payload_json ->> 'bar_revision')::bigint, revision) >= (%(bar_revision)s::bigint, %(revision)s::integer)
)

-- name: open_decision
-- Opens a decision with its first step; false where it was open before.
SELECT open_decision(
    %(decision_id)s, %(domain)s, %(playbook)s, %(playbook_version)s, %(pins_sha256)s, %(anomaly_kind)s, %(source)s, %(entity_id)s,
    %(series)s, %(occurred_at)s, %(trigger_event_id)s, %(trace_id)s, %(is_shadow)s, %(deadline)s, %(budget_micros)s
)

-- name: join_decision
-- Records that another event is about a decision's instant; false where it is on record.
SELECT join_decision(%(decision_id)s, %(event_id)s, %(supersedes)s, %(body)s)

-- name: claim_decision
-- Takes a decision's lease; no row where another holds it, who is told to look again.
SELECT fence FROM claim_decision(%(decision_id)s, %(claimant)s, %(lease_seconds)s)

-- name: claim_decision_alone
-- The same as a transaction of its own, which does not wait for the disk: what its holder adds later cannot be on disk
-- without the claim, and a server that dies before that breaks the holder's session.
SELECT fence
FROM claim_decision(%(decision_id)s, %(claimant)s, %(lease_seconds)s)
WHERE set_config('synchronous_commit', 'off', true) IS NOT NULL

-- name: leave_decision
-- Gives the lease back: left, woken (a message came meanwhile), or lost (another has it).
SELECT leave_decision(%(decision_id)s, %(fence)s, %(wake_seq)s)

-- name: leave_decision_alone
-- The same as a transaction of its own, which does not wait for the disk: where it is lost, the lease runs out instead.
SELECT leave_decision(%(decision_id)s, %(fence)s, %(wake_seq)s)
WHERE set_config('synchronous_commit', 'off', true) IS NOT NULL

-- name: advance_decision
-- Stores what a step names, appends it and moves the decision on, under the fence of its claim, and tells its events, where
-- there are any; returns the step's number, time and hash, and how the decision stands: see the query decision. A step that
-- tells nobody anything need not wait for the disk: whatever its holder commits next takes it there.
WITH stored AS (
    INSERT INTO artifacts (sha256, kind, bytes)
    SELECT sha256, kind, bytes
    -- Subqueries, because a plan that knew how many there are would be made anew for each step.
    FROM unnest((SELECT %(hashes)s::bytea[]), (SELECT %(kinds)s::text[]), (SELECT %(contents)s::bytea[]))
        AS made (sha256, kind, bytes)
    ORDER BY sha256
    ON CONFLICT DO NOTHING
    RETURNING sha256
),
advanced AS MATERIALIZED (
    SELECT step.*
    -- The step refers to them, so they come first.
    FROM (SELECT count(*) FROM stored) AS all_stored (number)
    CROSS JOIN LATERAL advance_decision(
        %(decision_id)s, %(fence)s, %(kind)s, %(parent)s, %(body)s, NULL, %(output_sha256)s, %(state)s, %(lease_seconds)s,
        CASE WHEN number >= 0 THEN %(seen_seq)s::integer END
    ) AS step
)
SELECT
    new_seq,
    new_at,
    seen_wake_seq,
    clock_timestamp(),
    ARRAY(SELECT scope FROM switches WHERE is_off ORDER BY scope),
    CASE
        WHEN %(events)s::json IS NOT NULL THEN
            (SELECT count(*) FROM insert_decision_events(%(events)s::json) WHERE new_seq IS NOT NULL)
    END,
    new_hash,
    CASE WHEN NOT %(awaits_disk)s THEN set_config('synchronous_commit', 'off', true) END
FROM advanced

-- name: begin_round
-- Does what advance_decision does for a step that asks agents, and intends their attempts, with a message for each. Where every
-- budget has room for them, and the step asks nobody else, it gives the lease back. Returns also whether there was room, and
-- what leave_decision said.
WITH stored AS (
    INSERT INTO artifacts (sha256, kind, bytes)
    SELECT sha256, kind, bytes
    -- Subqueries, because a plan that knew how many there are would be made anew for each step.
    FROM unnest((SELECT %(hashes)s::bytea[]), (SELECT %(kinds)s::text[]), (SELECT %(contents)s::bytea[]))
        AS made (sha256, kind, bytes)
    ORDER BY sha256
    ON CONFLICT DO NOTHING
    RETURNING sha256
),
advanced AS MATERIALIZED (
    SELECT step.*
    -- The step refers to them, so they come first.
    FROM (SELECT count(*) FROM stored) AS all_stored (number)
    CROSS JOIN LATERAL advance_decision(
        %(decision_id)s, %(fence)s, %(kind)s, %(parent)s, %(body)s, NULL, %(output_sha256)s, %(state)s, %(lease_seconds)s,
        CASE WHEN number >= 0 THEN %(seen_seq)s::integer END
    ) AS step
),
asked AS MATERIALIZED (
    SELECT
        call.message,
        intend_call(
            %(decision_id)s, %(fence)s, call.call_id, advanced.new_seq, call.agent, call.agent_version, call.attempt,
            call.request_sha256, call.micros, call.deadline, %(budget_scope)s, %(day_limit)s
        ) AS is_intended
    FROM advanced
    CROSS JOIN unnest(
        (SELECT %(call_ids)s::uuid[]), (SELECT %(agents)s::text[]), (SELECT %(agent_versions)s::text[]),
        (SELECT %(attempts)s::integer[]), (SELECT %(requests)s::bytea[]), (SELECT %(micros)s::bigint[]),
        (SELECT %(deadlines)s::timestamptz[]), (SELECT %(messages)s::text[])
    ) AS call (call_id, agent, agent_version, attempt, request_sha256, micros, deadline, message)
)
SELECT
    new_seq,
    new_at,
    seen_wake_seq,
    clock_timestamp(),
    ARRAY(SELECT scope FROM switches WHERE is_off ORDER BY scope),
    (
        SELECT count(*)
        FROM insert_decision_events((SELECT coalesce(json_agg(message::json), '[]') FROM asked WHERE is_intended))
    ),
    new_hash,
    (SELECT bool_and(is_intended) FROM asked),
    -- After the attempts, because they are intended under the lease.
    CASE WHEN %(leaves)s AND (SELECT bool_and(is_intended) FROM asked) THEN
        leave_decision(%(decision_id)s, %(fence)s, seen_wake_seq)
    END
FROM advanced

-- name: set_timer
-- Has a decision looked at again at an instant.
SELECT set_timer(%(decision_id)s, %(fence)s, %(kind)s, %(due_at)s)

-- name: has_timer
-- Whether a decision waits for a timer of a kind.
SELECT EXISTS (
    SELECT FROM timers WHERE decision_id = %(decision_id)s AND kind = %(kind)s AND fired_at IS NULL
)

-- name: intend_call
-- Records that an agent is to be called, and reserves the most that it may cost; false where a budget has no room.
SELECT intend_call(
    %(decision_id)s, %(fence)s, %(call_id)s, %(step_seq)s, %(agent)s, %(agent_version)s, %(attempt)s, %(request_sha256)s,
    %(micros)s, %(deadline)s, %(budget_scope)s, %(day_limit)s
)

-- name: end_lost_calls
-- Ends the attempts of a decision that nobody will answer any more; returns how many.
SELECT end_lost_calls(%(decision_id)s, %(fence)s)

-- name: store_outcome
-- What came of a decision, and how good each forecast was, as of the step that says so.
WITH told AS (
    SELECT decision_id, at FROM decision_steps WHERE decision_id = %(decision_id)s AND seq = %(seq)s
),
observed AS (
    INSERT INTO outcomes (decision_id, state, observed, observed_at)
    SELECT decision_id, %(state)s, %(observed)s::jsonb, at FROM told
)
INSERT INTO agent_scores (decision_id, agent, agent_version, forecast, probability, happened, brier, scored_at)
SELECT decision_id, agent, agent_version, forecast, probability, happened, brier, at
FROM told
CROSS JOIN jsonb_to_recordset(%(observed)s::jsonb -> 'scores') AS score (
    agent text, agent_version text, forecast text, probability double precision, happened boolean, brier double precision
)

-- name: fire_timers
-- Decisions that somebody must look at although no message says so, and why; due timers are marked as fired.
SELECT decision_id, reason, trace_id, entity_id, clock_timestamp()
FROM fire_timers(%(most)s, %(idle_seconds)s)

-- name: overlooked_anomalies
-- Anomalies of the last hour that no decision knows of, and that nobody has dismissed, oldest first. Each is told again after
-- a pause that doubles each time: what told it before is its hints.
SELECT anomaly.event_id, anomaly.trace_id, anomaly.entity_id, clock_timestamp()
FROM events AS anomaly
CROSS JOIN LATERAL (
    SELECT count(*) AS told, max(hint.ingested_at) AS last_at
    FROM events AS hint
    WHERE hint.entity_id = anomaly.entity_id
        AND hint.source = 'decisions'
        AND hint.event_type = 'ANOMALY_OVERLOOKED'
        AND hint.series = 'overlooked:' || anomaly.event_id
) AS hints
WHERE anomaly.event_type = 'ANOMALY_DETECTED'
    AND anomaly.entity_id IS NOT NULL
    AND anomaly.ingested_at > clock_timestamp() - interval '1 hour'
    AND coalesce(hints.last_at, anomaly.ingested_at)
        <= clock_timestamp() - make_interval(secs => %(idle_seconds)s * power(2, hints.told))
    AND NOT EXISTS (
        SELECT FROM processed_events WHERE consumer = 'decisions' AND processed_events.event_id = anomaly.event_id
    )
    AND NOT EXISTS (
        SELECT FROM decisions AS decision
        WHERE decision.entity_id = anomaly.entity_id
            AND decision.occurred_at = anomaly.occurred_at
            AND (
                decision.trigger_event_id = anomaly.event_id
                OR EXISTS (
                    SELECT FROM decision_steps AS step
                    WHERE step.decision_id = decision.decision_id
                        AND step.kind = 'joined'
                        AND convert_from(step.body, 'UTF8')::json ->> 'event_id' = anomaly.event_id::text
                )
            )
    )
ORDER BY anomaly.ingested_at
LIMIT %(most)s

-- name: untaken_calls
-- Calls that no agent has taken for a while, with what asked for each.
SELECT asked.payload_json, asked.series, decision.trace_id, decision.entity_id, clock_timestamp()
FROM agent_calls AS call
JOIN decisions AS decision USING (decision_id)
JOIN events AS asked
    ON asked.entity_id = decision.entity_id
    AND asked.source = 'decisions'
    AND asked.event_type = 'AGENT_CALL_REQUESTED'
    AND asked.series = decision.decision_id || ':call:' || call.call_id
WHERE call.outcome IS NULL
    AND call.lease_until IS NULL
    AND call.deadline > clock_timestamp()
    AND call.intended_at <= clock_timestamp() - make_interval(secs => %(idle_seconds)s)
ORDER BY call.intended_at
LIMIT %(most)s

-- name: dismiss_anomaly
-- Says that no decision follows from an anomaly.
SELECT dismiss_anomaly(%(event_id)s)

-- name: stored_event
-- An event as it is stored.
SELECT
    event_id, event_type, source, entity_id, entity_type, occurred_at, observed_at, ingested_at, series, revision,
    schema_version, trace_id, payload_json AS payload
FROM events
WHERE event_id = %(event_id)s

-- name: expired_actions
-- Released actions that nobody has executed before they expired. Their decisions are open, which bounds what is read.
SELECT action_id, decision_id, expires_at, decision.trace_id, decision.entity_id
FROM decisions AS decision
JOIN actions AS action USING (decision_id)
WHERE decision.closed_at IS NULL
    AND expires_at <= clock_timestamp()
    AND NOT EXISTS (SELECT FROM executions WHERE executions.action_id = action.action_id)
ORDER BY expires_at
LIMIT %(most)s

-- name: expire_action
-- Fails an action that nobody has executed before it expired, once; false where somebody holds or has executed it.
SELECT expire_action(%(action_id)s, %(reason)s, %(wake_event)s::json)

-- name: approvals_waiting
-- How many requests for an approval can still be answered and are not, and for how many seconds the oldest has waited.
SELECT count(*), coalesce(extract(epoch FROM clock_timestamp() - min(request.requested_at)), 0)::float8
FROM decisions AS decision
JOIN approval_requests AS request USING (decision_id)
WHERE decision.closed_at IS NULL
    AND decision.state IN ('proposed', 'awaiting_approval')
    AND request.expires_at > clock_timestamp()
    AND NOT EXISTS (SELECT FROM approvals WHERE approvals.approval_id = request.approval_id)

-- name: budget_used
-- How many per cent of the day's tightest budget are spent or reserved.
SELECT coalesce(max(100.0 * (reserved_micros + spent_micros) / greatest(limit_micros, 1)), 0)::float8
FROM budgets
WHERE day = (clock_timestamp() AT TIME ZONE 'UTC')::date

-- name: anchor_heads
-- Anchors the heads of the next chains that grew, after one of them; returns the line that belongs into the log, or no row.
SELECT anchor_id, root, prev_root, heads FROM anchor_heads(%(most)s, %(after)s)

-- name: now
-- The database's time, which leases and deadlines are counted in.
SELECT clock_timestamp()

-- name: audited_decisions
-- Decisions in the order of their ids, after one of them.
SELECT decision_id, to_jsonb(decision)
FROM decisions AS decision
WHERE %(after)s::uuid IS NULL OR decision_id > %(after)s
ORDER BY decision_id
LIMIT %(most)s

-- name: audited_steps
-- All of some decisions' steps, as they were hashed.
SELECT
    decision_id, seq, parent, kind, author, at, input_sha256, output_sha256, cost_micros, body, prev_hash, hash
FROM decision_steps
WHERE decision_id = ANY(%(ids)s)
ORDER BY decision_id, seq

-- name: audited_rows
-- Every row about some decisions whose content is also a step, with the name of its table.
SELECT 'agent_calls' AS held_in, decision_id, to_jsonb(held) - 'decision_id'
FROM agent_calls AS held
WHERE decision_id = ANY(%(ids)s)
UNION ALL
SELECT 'budget_reservations', call.decision_id, to_jsonb(held)
FROM budget_reservations AS held
JOIN agent_calls AS call USING (call_id)
WHERE call.decision_id = ANY(%(ids)s)
UNION ALL
SELECT 'verdicts', decision_id, to_jsonb(held) - 'judged_in' FROM verdicts AS held WHERE decision_id = ANY(%(ids)s)
UNION ALL
SELECT 'approval_requests', decision_id, to_jsonb(held) FROM approval_requests AS held WHERE decision_id = ANY(%(ids)s)
UNION ALL
SELECT 'approvals', decision_id, to_jsonb(held) FROM approvals AS held WHERE decision_id = ANY(%(ids)s)
UNION ALL
SELECT 'actions', decision_id, to_jsonb(held) - 'released_in' FROM actions AS held WHERE decision_id = ANY(%(ids)s)
UNION ALL
SELECT 'executions', action.decision_id, to_jsonb(held)
FROM executions AS held
JOIN actions AS action USING (action_id)
WHERE action.decision_id = ANY(%(ids)s)
UNION ALL
SELECT 'outcomes', decision_id, to_jsonb(held) FROM outcomes AS held WHERE decision_id = ANY(%(ids)s)
UNION ALL
SELECT 'agent_scores', decision_id, to_jsonb(held) FROM agent_scores AS held WHERE decision_id = ANY(%(ids)s)

-- name: audited_strays
-- Rows about a decision, a call or an action that there is not, with the name of their table.
SELECT 'decision_steps' AS held_in, decision_id AS stray FROM decision_steps WHERE decision_id NOT IN (SELECT decision_id FROM decisions)
UNION
SELECT 'agent_calls', decision_id FROM agent_calls WHERE decision_id NOT IN (SELECT decision_id FROM decisions)
UNION
SELECT 'budget_reservations', call_id FROM budget_reservations WHERE call_id NOT IN (SELECT call_id FROM agent_calls)
UNION
SELECT 'verdicts', decision_id FROM verdicts WHERE decision_id NOT IN (SELECT decision_id FROM decisions)
UNION
SELECT 'approval_requests', decision_id FROM approval_requests WHERE decision_id NOT IN (SELECT decision_id FROM decisions)
UNION
SELECT 'approvals', decision_id FROM approvals WHERE decision_id NOT IN (SELECT decision_id FROM decisions)
UNION
SELECT 'actions', decision_id FROM actions WHERE decision_id NOT IN (SELECT decision_id FROM decisions)
UNION
SELECT 'executions', action_id FROM executions WHERE action_id NOT IN (SELECT action_id FROM actions)
UNION
SELECT 'outcomes', decision_id FROM outcomes WHERE decision_id NOT IN (SELECT decision_id FROM decisions)
UNION
SELECT 'agent_scores', decision_id FROM agent_scores WHERE decision_id NOT IN (SELECT decision_id FROM decisions)

-- name: audited_anchors
-- Every anchor of chains' heads, in the order they were made.
SELECT anchor_id, anchored_at, prev_root, heads, root FROM anchors ORDER BY anchor_id

-- name: audited_tombstones
-- The decisions that were removed, with their heads, why, and whether the operation that did it is on record.
SELECT
    decision_id, head_seq, head_hash, cause,
    CASE cause
        WHEN 'erasure' THEN EXISTS (SELECT FROM erasures WHERE operation_id = tombstone.operation_id)
        ELSE operation_id IS NULL
            OR EXISTS (SELECT FROM operations WHERE operation_id = tombstone.operation_id AND kind = 'retention')
    END
FROM decision_tombstones AS tombstone
ORDER BY decision_id

-- name: audited_budgets
-- Each day's budget beside what its reservations, and those of removed decisions, add up to; either may be missing.
SELECT
    scope, day, budget.reserved_micros, budget.spent_micros, budget.overrun_micros,
    CASE WHEN removed.scope IS NULL THEN held.reserved ELSE coalesce(held.reserved, 0) END,
    CASE WHEN removed.scope IS NULL THEN held.spent ELSE coalesce(held.spent, 0) + removed.spent_micros END,
    CASE WHEN removed.scope IS NULL THEN held.overrun ELSE coalesce(held.overrun, 0) + removed.overrun_micros END
FROM budgets AS budget
FULL JOIN (
    SELECT
        scope, day,
        coalesce(sum(micros) FILTER (WHERE settled_at IS NULL), 0) AS reserved,
        coalesce(sum(spent_micros), 0) AS spent,
        coalesce(sum(greatest(spent_micros - micros, 0)), 0) AS overrun
    FROM budget_reservations
    GROUP BY scope, day
) AS held USING (scope, day)
LEFT JOIN removed_spending AS removed USING (scope, day)
-- name: claim_call
-- Takes an attempt of an agent's call, once; no row where it was taken, ended, is too late, or its agent is switched off. What
-- costs nothing does not wait for the disk: after a server's death it may be asked again, and one of its answers counts.
SELECT fence, decision_id, agent, agent_version, attempt, request, reserved_micros, seconds_left, trace_id, entity_id, occurred_at
FROM claim_call(%(call_id)s, %(claimant)s, %(lease_seconds)s::float8)
WHERE reserved_micros > 0 OR set_config('synchronous_commit', 'off', true) IS NOT NULL

-- name: model_is_off
-- Whether a model is switched off.
SELECT model_is_off(%(model)s::text)

-- name: answer_call
-- Ends an attempt that this fence holds, and wakes its decision; false where the answer comes too late.
SELECT answer_call(
    %(call_id)s, %(fence)s, %(outcome)s, %(answer)s::bytea, %(error)s, %(cost_micros)s, %(input_tokens)s::integer,
    %(output_tokens)s::integer, %(model)s, %(event)s::json, %(switch_event)s::json, %(retry_after_seconds)s::integer
)
