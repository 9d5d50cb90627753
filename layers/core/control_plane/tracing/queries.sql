-- name: traced_events
-- What is recorded of some events, as their spans are made of it: each delivery with its failed attempts, each processing,
-- and what consumers failed at or gave up on.
SELECT
    event.event_id::text,
    event.trace_id::text,
    event.event_type,
    event.source,
    event.entity_id,
    event.revision,
    event.observed_at,
    event.ingested_at,
    now() AS read_at,
    coalesce(
        (
            SELECT
                jsonb_agg(
                    to_jsonb(delivery) || jsonb_build_object(
                        'operation_kind', operation.kind,
                        'requested_at', operation.requested_at,
                        'failures', coalesce(
                            (
                                SELECT jsonb_agg(to_jsonb(failure) ORDER BY failure.failed_at, failure.attempt)
                                FROM delivery_failures AS failure
                                WHERE failure.outbox_id = delivery.id
                                    AND failure.subscription = delivery.subscription
                                    AND failure.operation_id IS NOT DISTINCT FROM delivery.operation_id
                            ),
                            '[]'
                        )
                    )
                    ORDER BY delivery.id, delivery.subscription, operation.requested_at NULLS FIRST
                )
            FROM outbox_states AS delivery
            LEFT JOIN operations AS operation ON operation.operation_id = delivery.operation_id
            WHERE delivery.event_id = event.event_id
        ),
        '[]'
    ) AS deliveries,
    coalesce(
        (
            SELECT jsonb_agg(to_jsonb(processed) ORDER BY processed.processed_at, processed.consumer)
            FROM processed_events AS processed
            WHERE processed.event_id = event.event_id
        ),
        '[]'
    ) AS processing,
    coalesce(
        (
            SELECT
                jsonb_agg(
                    jsonb_build_object(
                        'id', letter.id, 'subscription', letter.subscription, 'operation_id', letter.operation_id,
                        'message_id', letter.message_id, 'dead_lettered_at', letter.dead_lettered_at,
                        'delivery_attempts', letter.delivery_attempts, 'reason', letter.reason
                    )
                    ORDER BY letter.id
                )
            FROM dead_letters AS letter
            WHERE letter.event_id = event.event_id AND letter.kind = 'consumer'
        ),
        '[]'
    ) AS letters,
    coalesce(
        (
            SELECT jsonb_agg(to_jsonb(failed) ORDER BY failed.id)
            FROM (
                SELECT * FROM consume_failures AS newest WHERE newest.event_id = event.event_id ORDER BY newest.id DESC LIMIT 100
            ) AS failed
        ),
        '[]'
    ) AS failures
FROM events AS event
WHERE event.event_id = ANY (%(event_ids)s::uuid[])

-- name: traced_decisions
-- What is recorded of some decisions, as their spans are made of it: their steps without what is large, the attempts at
-- agents' calls, and what was pinned, which names the models.
SELECT
    decision.decision_id::text,
    decision.trace_id::text,
    decision.trigger_event_id::text,
    decision.domain,
    decision.playbook,
    decision.playbook_version,
    decision.entity_id,
    decision.state,
    decision.is_shadow,
    decision.opened_at,
    decision.closed_at,
    now() AS read_at,
    pins.bytes AS pins,
    coalesce(
        (
            SELECT
                jsonb_agg(
                    jsonb_build_object(
                        'seq', step.seq, 'parent', step.parent, 'kind', step.kind, 'author', step.author, 'at', step.at,
                        'cost_micros', step.cost_micros, 'body', convert_from(step.body, 'UTF8')
                    )
                    ORDER BY step.seq
                )
            FROM decision_steps AS step
            WHERE step.decision_id = decision.decision_id
        ),
        '[]'
    ) AS steps,
    coalesce(
        (
            SELECT
                jsonb_agg(
                    jsonb_build_object(
                        'call_id', call.call_id, 'agent', call.agent, 'agent_version', call.agent_version,
                        'attempt', call.attempt, 'intended_at', call.intended_at, 'ended_at', call.ended_at,
                        'outcome', call.outcome, 'error', call.error, 'cost_micros', call.cost_micros,
                        'input_tokens', call.input_tokens, 'output_tokens', call.output_tokens
                    )
                    ORDER BY call.intended_at, call.call_id
                )
            FROM agent_calls AS call
            WHERE call.decision_id = decision.decision_id
        ),
        '[]'
    ) AS calls
FROM decisions AS decision
LEFT JOIN artifacts AS pins ON pins.sha256 = decision.pins_sha256
WHERE decision.decision_id = ANY (%(decision_ids)s::uuid[])

-- name: begin_traces
-- How far the export of traces has come, and up to which transaction all events are complete; it begins now where it has not.
SELECT stored_by::text, seq, stored_before::text, is_new
FROM begin_traces(%(anew)s)

-- name: events_to_export
-- The next events in the order in which they became complete, each with the decision that it says was opened.
SELECT
    event_id,
    stored_by::text,
    seq,
    CASE WHEN event_type = 'DECISION_OPENED' THEN (payload_json ->> 'decision_id')::uuid END AS decision_id
FROM events
WHERE (stored_by, seq) > (%(stored_by)s::xid8, %(seq)s::bigint) AND stored_by < %(stored_before)s::xid8
ORDER BY events.stored_by, events.seq
LIMIT %(limit)s

-- name: due_traces
-- Events and decisions that were not over when they were last looked at, and are to be looked at again.
SELECT kind, id
FROM waiting_traces
WHERE look_at <= now()
ORDER BY look_at
LIMIT %(limit)s

-- name: advance_traces
-- Notes what a receiver has accepted. Returns false where another run has moved the cursor meanwhile.
SELECT advance_traces(
    %(from_stored_by)s::xid8, %(from_seq)s, %(to_stored_by)s::xid8, %(to_seq)s, %(ended_events)s::uuid[],
    %(ended_decisions)s::uuid[], %(waiting_events)s::uuid[], %(waiting_decisions)s::uuid[]
)

-- name: traces_behind
-- How many seconds ago the oldest event after the cursor was stored, or the longest overdue look was due; and how many wait.
SELECT
    coalesce(
        extract(
            epoch FROM now() - least(
                (
                    SELECT ingested_at
                    FROM events
                    WHERE (events.stored_by, events.seq) > (position.stored_by, position.seq)
                    ORDER BY events.stored_by, events.seq
                    LIMIT 1
                ),
                (SELECT min(look_at) FROM waiting_traces WHERE look_at <= now())
            )
        ),
        0
    )::double precision,
    (SELECT count(*) FROM waiting_traces)
FROM trace_cursor AS position
