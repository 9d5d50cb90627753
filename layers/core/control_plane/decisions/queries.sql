-- name: insert_decision_events
-- Events of deciding, their messages, and one pending delivery per message and subscription.
SELECT topic, unsubscribed
FROM insert_decision_events(%(events)s::json)

-- name: claim_call
-- Takes an attempt of an agent's call, once; no row where it was taken, ended, is too late, or its agent is switched off.
SELECT fence, decision_id, agent, agent_version, attempt, request, reserved_micros, seconds_left, trace_id, entity_id, occurred_at
FROM claim_call(%(call_id)s, %(claimant)s, %(lease_seconds)s::float8)

-- name: model_is_off
-- Whether a model is switched off.
SELECT model_is_off(%(model)s::text)

-- name: answer_call
-- Ends an attempt that this fence holds, and wakes its decision; false where the answer comes too late.
SELECT answer_call(
    %(call_id)s, %(fence)s, %(outcome)s, %(answer)s::bytea, %(error)s, %(cost_micros)s, %(input_tokens)s::integer,
    %(output_tokens)s::integer, %(model)s, %(event)s::json
)
