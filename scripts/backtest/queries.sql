-- name: new_messages
-- Messages of deciding that were stored after one of them, as published, in the order of the instants that they are about.
SELECT id, topic, payload_json::text
FROM outbox
WHERE topic = ANY (%(topics)s::text[]) AND id > %(after)s
ORDER BY id

-- name: anomalies
-- Every anomaly that stands at the end of the fold, in the order of its bar: the newest event of each.
SELECT DISTINCT ON (event.occurred_at, event.entity_id, event.series) message.payload_json::text
FROM outbox AS message
JOIN events AS event USING (event_id)
WHERE message.topic = 'decisions.work' AND event.event_type = 'ANOMALY_DETECTED'
ORDER BY event.occurred_at, event.entity_id, event.series, event.revision DESC

-- name: analyze
-- What autovacuum would have done by now.
ANALYZE

-- name: hold_equal_amounts
-- Gives the account so many of each entity, as if it were bought at these prices.
INSERT INTO paper_positions (account, source, entity_id, quantity_micros)
SELECT %(account)s, %(source)s, entity_id, quantity
FROM unnest(%(entities)s::text[], %(quantities)s::bigint[]) AS wanted (entity_id, quantity)
ON CONFLICT (account, source, entity_id) DO UPDATE SET quantity_micros = excluded.quantity_micros

-- name: open_account
-- The account that the actions are for.
INSERT INTO paper_accounts (account, currency, opening_cash_micros, cash_micros)
VALUES (%(account)s, %(currency)s, %(cash_micros)s, %(cash_micros)s)
ON CONFLICT (account) DO UPDATE
SET currency = excluded.currency, opening_cash_micros = excluded.cash_micros, cash_micros = excluded.cash_micros

-- name: closes_at
-- The last close of each entity at an instant, no older than ten days.
SELECT DISTINCT ON (entity_id) entity_id, round(price::numeric * 1000000)::bigint
FROM detector_bars
WHERE source = %(source)s
    AND bar_interval = %(interval)s
    AND occurred_at BETWEEN %(at)s::timestamptz - interval '10 days' AND %(at)s
ORDER BY entity_id, occurred_at DESC

-- name: decisions
-- All decisions in the order of their bars.
SELECT decision_id
FROM decisions
ORDER BY occurred_at, entity_id, anomaly_kind

-- name: verdicts
-- The last verdict of each decision that has one.
SELECT DISTINCT ON (decision_id) decision_id, verdict, reasons
FROM verdicts
ORDER BY decision_id, judged_at DESC

-- name: claim_call
-- Takes an attempt of an agent's call.
SELECT fence, agent, attempt, request
FROM claim_call(%(call_id)s, 'backtest', %(lease_seconds)s)

-- name: answer_call
-- Ends an attempt with its answer.
SELECT answer_call(%(call_id)s, %(fence)s, 'answered', %(answer)s, NULL, 0, NULL, NULL, NULL, %(event)s::json)

-- name: show_bars
-- Bars up to an instant as SignalLab keeps them, those that it has not seen; all of them where there is no instant.
INSERT INTO signal_lab_bars (
    source, entity_id, bar_interval, occurred_at, open, high, low, price, volume, revision, event_id
)
SELECT source, entity_id, bar_interval, occurred_at, open, high, low, price, volume, revision, event_id
FROM detector_bars
WHERE occurred_at > (SELECT coalesce(max(occurred_at), '-infinity') FROM signal_lab_bars)
    AND occurred_at <= coalesce(%(until)s::timestamptz, 'infinity')

-- name: open_orders
-- The instruments of orders that are not filled.
SELECT DISTINCT source, entity_id, series
FROM paper_orders
WHERE filled_at IS NULL

-- name: approval_request
-- What a person is asked.
SELECT approval_id, action_sha256
FROM approval_requests
WHERE decision_id = %(decision_id)s

-- name: answer_approval
-- Gives an approval.
SELECT answer_approval(%(approval_id)s, %(action_sha256)s, true, 'backtest', %(event)s::json)
