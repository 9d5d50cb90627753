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

-- name: find_decisions
-- The decisions whose id begins so; two are enough to see that a prefix names more than one.
SELECT decision_id
FROM decisions
WHERE decision_id::text LIKE %(prefix)s || '%%'
ORDER BY decision_id
LIMIT 2

-- name: decision_facts
-- One decision as its row has it.
SELECT
    decision_id, domain, playbook, playbook_version, anomaly_kind, source, entity_id, series, occurred_at, trigger_event_id,
    trace_id, is_shadow, state, deadline, budget_micros, opened_at, closed_at
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
    CASE WHEN octet_length(output.bytes) <= 65536 THEN convert_from(output.bytes, 'UTF8') END AS output
FROM decision_steps AS step
LEFT JOIN artifacts AS output ON output.sha256 = step.output_sha256
WHERE step.decision_id = %(decision_id)s
ORDER BY step.seq
