-- name: insert_decision_events
-- Events of deciding, their messages, and one pending delivery per message and subscription.
SELECT topic, unsubscribed
FROM insert_decision_events(%(events)s::json)

-- name: decision
-- One decision as it stands, with the database's time.
SELECT
    decision_id, domain, playbook, playbook_version, pins_sha256, anomaly_kind, source, entity_id, series, occurred_at,
    trigger_event_id, trace_id, is_shadow, state, deadline, budget_micros, opened_at, closed_at, wake_seq, clock_timestamp()
FROM decisions
WHERE decision_id = %(decision_id)s

-- name: steps
-- A decision's steps after one of them, in order.
SELECT seq, parent, kind, author, at, body, input_sha256, output_sha256, cost_micros
FROM decision_steps
WHERE decision_id = %(decision_id)s AND seq > %(after_seq)s
ORDER BY seq

-- name: artifacts
-- The bytes of artifacts by their hashes.
SELECT sha256, bytes FROM artifacts WHERE sha256 = ANY(%(hashes)s)

-- name: store_artifact
-- Stores bytes under their hash; what is stored already stays.
INSERT INTO artifacts (sha256, kind, bytes)
VALUES (%(sha256)s, %(kind)s, %(bytes)s)
ON CONFLICT DO NOTHING

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

-- name: leave_decision
-- Gives the lease back: left, woken (a message came meanwhile), or lost (another has it).
SELECT leave_decision(%(decision_id)s, %(fence)s, %(wake_seq)s)

-- name: advance_decision
-- Appends a step and moves the decision on, under the fence of its claim; returns the step's number.
SELECT advance_decision(
    %(decision_id)s, %(fence)s, %(kind)s, %(parent)s, %(body)s, %(input_sha256)s, %(output_sha256)s, %(state)s, %(lease_seconds)s,
    %(seen_seq)s
)

-- name: set_timer
-- Has a decision looked at again at an instant.
SELECT set_timer(%(decision_id)s, %(fence)s, %(kind)s, %(due_at)s)

-- name: has_timer
-- Whether a decision waits for a timer of a kind.
SELECT EXISTS (
    SELECT FROM timers WHERE decision_id = %(decision_id)s AND kind = %(kind)s AND fired_at IS NULL
)

-- name: switched_off_scopes
-- Every scope that is switched off.
SELECT scope FROM switches WHERE is_off ORDER BY scope

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
-- What came of a decision, as of the step that says so.
INSERT INTO outcomes (decision_id, state, observed, observed_at)
SELECT decision_id, %(state)s, %(observed)s::jsonb, at
FROM decision_steps
WHERE decision_id = %(decision_id)s AND seq = %(seq)s

-- name: store_score
-- How good one forecast was, as of the step that says so.
INSERT INTO agent_scores (decision_id, agent, agent_version, forecast, probability, happened, brier, scored_at)
SELECT decision_id, %(agent)s, %(agent_version)s, %(forecast)s, %(probability)s, %(happened)s, %(brier)s, at
FROM decision_steps
WHERE decision_id = %(decision_id)s AND seq = %(seq)s

-- name: fire_timers
-- Decisions that somebody must look at although no message says so, and why; due timers are marked as fired.
SELECT decision_id, reason, trace_id, entity_id, clock_timestamp() FROM fire_timers(%(most)s)

-- name: anchor_heads
-- Anchors the heads of the chains that grew; returns the line that belongs into the log, or no row.
SELECT anchor_id, root, prev_root, heads FROM anchor_heads(%(most)s)

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
-- All anchors in order.
SELECT anchor_id, anchored_at, prev_root, heads, root FROM anchors ORDER BY anchor_id

-- name: audited_budgets
-- Each day's budget beside what its reservations add up to; either may be missing.
SELECT
    scope, day, budget.reserved_micros, budget.spent_micros, budget.overrun_micros, held.reserved, held.spent, held.overrun
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
