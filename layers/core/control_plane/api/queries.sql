-- name: use_token
-- The token with this digest, and whether it is valid, revoked or expired; notes its use, at most once a minute.
SELECT name, scopes, state FROM use_api_token(%(sha256)s)

-- name: make_token
-- Makes a token; returns made, taken or lacking.
SELECT make_api_token(%(made_by)s, %(name)s, %(sha256)s, %(scopes)s::text[], %(expires_at)s)

-- name: revoke_token
-- Revokes a token for good; returns revoked, already or unknown.
SELECT revoke_api_token(%(revoked_by)s, %(name)s)

-- name: token
-- One token as it is listed.
SELECT name, scopes, created_at, created_by, expires_at, revoked_at, revoked_by, last_used_at
FROM api_tokens
WHERE name = %(name)s

-- name: tokens
-- Tokens by name, after one of them.
SELECT name, scopes, created_at, created_by, expires_at, revoked_at, revoked_by, last_used_at
FROM api_tokens
WHERE name > coalesce(%(after)s, '')
ORDER BY name
LIMIT %(limit)s

-- name: begin_change
-- Begins a change under an Idempotency-Key, or returns what was answered under it.
SELECT is_new, is_same, status, body FROM begin_api_change(%(token)s, %(key)s, %(request)s)

-- name: end_change
-- Keeps the answer of a change, and writes the audit's row.
SELECT end_api_change(
    %(token)s, %(key)s, %(address)s, %(agent)s, %(route)s, %(reason)s, %(before)s::json, %(after)s::json, %(status)s,
    %(body)s::json
)

-- name: audit
-- What was changed by the API, newest first, of one token or all, before one of the rows.
SELECT id, at, token, address, agent, route, reason, idempotency_key, before, after, status
FROM api_audit
WHERE id < coalesce(%(before_id)s::bigint, 9223372036854775807)
    AND (%(token)s::text IS NULL OR token = %(token)s)
ORDER BY id DESC
LIMIT %(limit)s

-- name: events
-- Events, newest stored first, that meet every condition which is not null; without their payload, before one of them.
SELECT
    seq, event_id, event_type, source, entity_id, entity_type, series, occurred_at, revision, observed_at, ingested_at,
    schema_version, trace_id
FROM events
WHERE seq < coalesce(%(before_seq)s::bigint, 9223372036854775807)
    AND (%(event_type)s::text IS NULL OR event_type = %(event_type)s)
    AND (%(source)s::text IS NULL OR source = %(source)s)
    AND (%(entity_id)s::text IS NULL OR entity_id = %(entity_id)s)
    AND (%(trace_id)s::uuid IS NULL OR trace_id = %(trace_id)s)
    AND (%(since)s::timestamptz IS NULL OR ingested_at >= %(since)s)
    AND (%(until)s::timestamptz IS NULL OR ingested_at < %(until)s)
ORDER BY seq DESC
LIMIT %(limit)s

-- name: events_by_prefix
-- The events whose ids are between two ids, that is, begin with the same digits, by id, after one of them.
SELECT
    seq, event_id, event_type, source, entity_id, entity_type, series, occurred_at, revision, observed_at, ingested_at,
    schema_version, trace_id
FROM events
WHERE event_id BETWEEN %(lowest)s AND %(highest)s
    AND (%(after_id)s::uuid IS NULL OR event_id > %(after_id)s)
ORDER BY event_id
LIMIT %(limit)s

-- name: event_states
-- Where each of these events stands with all its subscriptions: the state that most asks for somebody; null for an event that
-- was published to none. It is processed where every consumer that took its message has recorded so.
SELECT
    event.event_id,
    CASE
        WHEN bool_or(letters.are_open) THEN 'dead_lettered'
        WHEN bool_or(pending.last_error IS NOT NULL) THEN 'retrying'
        WHEN bool_or(pending.outbox_id IS NOT NULL) THEN 'pending'
        WHEN bool_or(delivery.outbox_id IS NOT NULL AND processed.event_id IS NULL) THEN 'delivered'
        WHEN bool_or(delivery.outbox_id IS NOT NULL) THEN 'processed'
        WHEN bool_or(letters.are_open IS NOT NULL) THEN 'discarded'
    END AS state
FROM unnest(%(event_ids)s::uuid[]) AS event (event_id)
LEFT JOIN LATERAL (
    SELECT bool_or(resolution IS NULL) AS are_open FROM dead_letters WHERE dead_letters.event_id = event.event_id
) AS letters ON true
LEFT JOIN outbox AS message ON message.event_id = event.event_id
LEFT JOIN pending_deliveries AS pending ON pending.outbox_id = message.id
LEFT JOIN deliveries AS delivery ON delivery.outbox_id = message.id
LEFT JOIN processed_events AS processed
    ON processed.event_id = event.event_id AND processed.consumer = delivery.subscription
GROUP BY event.event_id

-- name: anomalies
-- What the view detector_anomalies has, newest first, each with how the entities of its source moved at that instant, after
-- one of them. The newest are found by the indexes of what is unusual and of what was told: the view reads all of both.
WITH newest AS (
    (
        SELECT source, entity_id, series, occurred_at, kind
        FROM detector_findings
        WHERE (%(entity_id)s::text IS NULL OR entity_id = %(entity_id)s)
            AND (
                %(occurred_at)s::timestamptz IS NULL
                OR occurred_at <= %(occurred_at)s
                AND (
                    occurred_at < %(occurred_at)s
                    OR (source, entity_id, series, kind)
                    > (%(source)s::text, %(after_entity_id)s::text, %(series)s::text, %(kind)s::text)
                )
            )
        ORDER BY occurred_at DESC, source, entity_id, series, kind
        LIMIT %(limit)s
    )
    UNION
    (
        SELECT source, entity_id, series, occurred_at, kind
        FROM detector_told
        WHERE (%(entity_id)s::text IS NULL OR entity_id = %(entity_id)s)
            AND (
                %(occurred_at)s::timestamptz IS NULL
                OR occurred_at <= %(occurred_at)s
                AND (
                    occurred_at < %(occurred_at)s
                    OR (source, entity_id, series, kind)
                    > (%(source)s::text, %(after_entity_id)s::text, %(series)s::text, %(kind)s::text)
                )
            )
        ORDER BY occurred_at DESC, source, entity_id, series, kind
        LIMIT %(limit)s
    )
    ORDER BY occurred_at DESC, source, entity_id, series, kind
    LIMIT %(limit)s
)
SELECT
    anomaly.source,
    anomaly.entity_id,
    anomaly.series,
    anomaly.occurred_at,
    anomaly.kind,
    coalesce(finding.state, 'withdrawn') AS state,
    coalesce(finding.score, 0) AS score,
    coalesce(finding.threshold, told.threshold) AS threshold,
    coalesce(finding.event_id, told.bar_event_id) AS bar_event_id,
    coalesce(finding.revision, told.bar_revision) AS bar_revision,
    coalesce(told.told, 0) AS told,
    told.told_event_id,
    coalesce(finding.details, '{}') AS details,
    market.entities,
    market.fell,
    exp(least(market.median_log_return, 30)) - 1 AS market_return
FROM newest AS anomaly
LEFT JOIN detector_findings AS finding USING (source, entity_id, series, occurred_at, kind)
LEFT JOIN detector_told AS told USING (source, entity_id, series, occurred_at, kind)
LEFT JOIN LATERAL (
    SELECT *
    FROM detector_market
    WHERE source = anomaly.source AND bar_interval = anomaly.series AND occurred_at = anomaly.occurred_at
) AS market ON true
ORDER BY anomaly.occurred_at DESC, anomaly.source, anomaly.entity_id, anomaly.series, anomaly.kind

-- name: decisions
-- Decisions, newest first, that meet every condition which is not null, before one of them. Each says what it released,
-- what it proposed, and what a person answered, which its record may not have yet.
SELECT
    decision.decision_id, decision.domain, decision.entity_id, decision.anomaly_kind, decision.occurred_at,
    decision.playbook, decision.state, decision.is_shadow, decision.opened_at, decision.closed_at, decision.deadline,
    (SELECT count(*) FROM decision_steps WHERE decision_steps.decision_id = decision.decision_id) AS steps,
    (SELECT coalesce(sum(cost_micros), 0)::bigint FROM agent_calls WHERE agent_calls.decision_id = decision.decision_id)
        AS cost_micros,
    (SELECT action_type FROM actions WHERE actions.decision_id = decision.decision_id) AS action_type,
    (
        SELECT convert_from(step.body, 'UTF8')::json ->> 'action_type'
        FROM decision_steps AS step
        WHERE step.decision_id = decision.decision_id AND step.kind = 'proposal'
        ORDER BY step.seq DESC
        LIMIT 1
    ) AS proposed_type,
    (
        SELECT
            json_build_object(
                'is_given', answer.is_given, 'decided_by', answer.decided_by, 'decided_at', answer.decided_at
            )
        FROM decision_steps AS step
        JOIN approvals AS answer
            ON answer.approval_id = (convert_from(step.body, 'UTF8')::json ->> 'approval_id')::uuid
        WHERE step.decision_id = decision.decision_id AND step.kind = 'approval_asked'
        ORDER BY step.seq DESC
        LIMIT 1
    ) AS answer
FROM decisions AS decision
WHERE (
        %(opened_at)s::timestamptz IS NULL
        OR decision.opened_at <= %(opened_at)s AND (decision.opened_at, decision.decision_id) < (%(opened_at)s, %(decision_id)s::uuid)
    )
    AND (%(state)s::text IS NULL OR decision.state = %(state)s)
    AND (%(entity_id)s::text IS NULL OR decision.entity_id = %(entity_id)s)
    AND (%(playbook)s::text IS NULL OR decision.playbook = %(playbook)s)
    AND (%(since)s::timestamptz IS NULL OR decision.opened_at >= %(since)s)
    AND (%(until)s::timestamptz IS NULL OR decision.opened_at < %(until)s)
    AND (%(among)s::uuid[] IS NULL OR decision.decision_id = ANY (%(among)s))
ORDER BY decision.opened_at DESC, decision.decision_id DESC
LIMIT %(limit)s

-- name: shadow_counts
-- Over a time, 7 days by default: the verdicts that policies were asked for, and how many no policies in shadow judged.
SELECT
    count(*) AS judged,
    count(*) FILTER (WHERE NOT EXISTS (
        SELECT FROM decision_steps AS step
        WHERE step.decision_id = verdict.decision_id
            AND step.kind = 'shadow_verdict'
            AND convert_from(step.body, 'UTF8')::json ->> 'verdict_id' = verdict.verdict_id::text
    )) AS without_shadow
FROM verdicts AS verdict
JOIN decisions AS decision USING (decision_id)
WHERE verdict.judged_at >= coalesce(%(since)s::timestamptz, clock_timestamp() - interval '7 days')
    AND (%(until)s::timestamptz IS NULL OR verdict.judged_at < %(until)s)
    AND (%(domain)s::text IS NULL OR decision.domain = %(domain)s)
    AND verdict.request_sha256 IS NOT NULL
    AND verdict.policy_sha256 IS NOT NULL

-- name: shadow_pairs
-- How often policies in shadow said what, beside what the enforced ones said, over a time, 7 days by default.
WITH said AS (
    SELECT
        decision.domain, step.decision_id, step.at, encode(step.output_sha256, 'hex') AS policy_sha256,
        told.content ->> 'enforced' AS enforced,
        CASE WHEN told.content -> 'errors' = '[]' THEN told.content ->> 'verdict' ELSE 'error' END AS shadow
    FROM decision_steps AS step
    JOIN decisions AS decision USING (decision_id)
    CROSS JOIN LATERAL (SELECT convert_from(step.body, 'UTF8')::jsonb AS content) AS told
    WHERE step.kind = 'shadow_verdict'
        AND step.at >= coalesce(%(since)s::timestamptz, clock_timestamp() - interval '7 days')
        AND (%(until)s::timestamptz IS NULL OR step.at < %(until)s)
        AND (%(domain)s::text IS NULL OR decision.domain = %(domain)s)
)
SELECT
    domain, policy_sha256, enforced, shadow, count(*) AS count, max(at) AS newest_at,
    (array_agg(decision_id ORDER BY at DESC))[1] AS newest_decision_id
FROM said
GROUP BY domain, policy_sha256, enforced, shadow
ORDER BY max(at) DESC, domain, policy_sha256, enforced, shadow
LIMIT 200

-- name: decisions_of_event
-- The decisions that an event opened, those about the instant that it tells of, and the one that it was told by. An
-- anomaly is about the instant of its bar, whose source and series its payload names.
SELECT decision_id
FROM decisions
WHERE trigger_event_id = %(event_id)s
UNION
SELECT decision.decision_id
FROM events AS event
JOIN decisions AS decision USING (entity_id, occurred_at)
WHERE event.event_id = %(event_id)s
    AND (decision.source, decision.series) = (
        CASE WHEN event.event_type = 'ANOMALY_DETECTED' THEN event.payload_json ->> 'observed_source' ELSE event.source END,
        CASE WHEN event.event_type = 'ANOMALY_DETECTED' THEN event.payload_json ->> 'series' ELSE event.series END
    )
UNION
SELECT decision.decision_id
FROM events AS event
JOIN decisions AS decision
    ON decision.decision_id = CASE
        WHEN event.payload_json ->> 'decision_id' ~ '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$'
            THEN (event.payload_json ->> 'decision_id')::uuid
    END
WHERE event.event_id = %(event_id)s AND event.source = 'decisions'

-- name: decisions_by_prefix
-- The decisions whose ids are between two ids, that is, begin with the same digits, by id, after one of them.
SELECT
    decision.decision_id, decision.domain, decision.entity_id, decision.anomaly_kind, decision.occurred_at,
    decision.playbook, decision.state, decision.is_shadow, decision.opened_at, decision.closed_at, decision.deadline,
    (SELECT count(*) FROM decision_steps WHERE decision_steps.decision_id = decision.decision_id) AS steps,
    (SELECT coalesce(sum(cost_micros), 0)::bigint FROM agent_calls WHERE agent_calls.decision_id = decision.decision_id)
        AS cost_micros,
    (SELECT action_type FROM actions WHERE actions.decision_id = decision.decision_id) AS action_type,
    (
        SELECT convert_from(step.body, 'UTF8')::json ->> 'action_type'
        FROM decision_steps AS step
        WHERE step.decision_id = decision.decision_id AND step.kind = 'proposal'
        ORDER BY step.seq DESC
        LIMIT 1
    ) AS proposed_type,
    (
        SELECT
            json_build_object(
                'is_given', answer.is_given, 'decided_by', answer.decided_by, 'decided_at', answer.decided_at
            )
        FROM decision_steps AS step
        JOIN approvals AS answer
            ON answer.approval_id = (convert_from(step.body, 'UTF8')::json ->> 'approval_id')::uuid
        WHERE step.decision_id = decision.decision_id AND step.kind = 'approval_asked'
        ORDER BY step.seq DESC
        LIMIT 1
    ) AS answer
FROM decisions AS decision
WHERE decision.decision_id BETWEEN %(lowest)s AND %(highest)s
    AND (%(after_id)s::uuid IS NULL OR decision.decision_id > %(after_id)s)
ORDER BY decision.decision_id
LIMIT %(limit)s

-- name: artifact
-- A range of an artifact's bytes, its kind and its whole size.
SELECT kind, octet_length(bytes) AS size, substring(bytes FROM %(offset)s::integer + 1 FOR %(length)s::integer) AS bytes
FROM artifacts
WHERE sha256 = %(sha256)s

-- name: open_approvals
-- What people are asked now, the most urgent first, after one of them.
SELECT
    request.approval_id, request.decision_id, request.action_sha256, request.requested_at, request.expires_at,
    request.proposed_by, request.shown, decision.domain, decision.playbook, decision.entity_id, decision.trace_id
FROM approval_requests AS request
JOIN decisions AS decision USING (decision_id)
WHERE request.expires_at > clock_timestamp()
    AND decision.state IN ('proposed', 'awaiting_approval')
    AND NOT EXISTS (SELECT FROM approvals WHERE approvals.approval_id = request.approval_id)
    AND (
        %(expires_at)s::timestamptz IS NULL
        OR (request.expires_at, request.approval_id) > (%(expires_at)s, %(approval_id)s::uuid)
    )
ORDER BY request.expires_at, request.approval_id
LIMIT %(limit)s

-- name: approval
-- One request for an approval, whatever has become of it, with its answer.
SELECT
    request.approval_id, request.decision_id, request.action_sha256, request.requested_at, request.expires_at,
    request.proposed_by, request.shown, decision.domain, decision.playbook, decision.entity_id, decision.trace_id,
    decision.state AS decision_state, answer.is_given, answer.decided_by, answer.decided_at, answer.reason
FROM approval_requests AS request
JOIN decisions AS decision USING (decision_id)
LEFT JOIN approvals AS answer USING (approval_id)
WHERE request.approval_id = %(approval_id)s

-- name: subscription
-- One subscription, and whether it is active.
SELECT name, topic, created_at, removed_at, removed_at IS NULL AS is_active FROM subscriptions WHERE name = %(name)s

-- name: subscriptions
-- Every subscription, with its breaker where it has one.
SELECT
    subscription.name, subscription.topic, subscription.created_at, subscription.removed_at,
    coalesce(breaker.state, 'closed') AS breaker, breaker.held_by, breaker.held_reason
FROM subscriptions AS subscription
LEFT JOIN circuit_breakers AS breaker USING (name)
WHERE subscription.name > coalesce(%(after)s, '')
ORDER BY subscription.name
LIMIT %(limit)s

-- name: switch
-- One switch; no row for a scope that was never switched.
SELECT scope, is_off, set_by, set_at, reason FROM switches WHERE scope = %(scope)s

-- name: deliveries_of_operation
-- What has become of the messages that an operation made pending: how many still wait for a relay, and how many were
-- given up on again; at most 100,000 of each are counted. What is neither is in its queue.
SELECT
    (progress ->> 'done')::bigint AS done,
    (
        SELECT count(*)
        FROM (
            SELECT FROM pending_deliveries AS due WHERE due.operation_id = operation.operation_id LIMIT %(most)s + 1
        ) AS open
    ) AS waiting,
    (
        SELECT count(*)
        FROM (
            SELECT FROM dead_letters AS letter
            WHERE letter.dead_lettered_at >= operation.started_at
                AND letter.operation_id = operation.operation_id
                AND letter.kind = 'relay'
            LIMIT %(most)s + 1
        ) AS given_up
    ) AS dead_lettered
FROM operations AS operation
WHERE operation.operation_id = %(operation_id)s
