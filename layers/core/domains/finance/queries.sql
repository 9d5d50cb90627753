-- name: judged_bar
-- A bar's event as it is stored, the newest revision of its instant, and the newest close before it. In millionths.
SELECT
    bar.event_id,
    bar.event_type,
    bar.source,
    bar.entity_id,
    bar.series,
    bar.occurred_at,
    bar.revision,
    newest.revision AS newest_revision,
    round((bar.payload_json ->> 'open')::numeric * 1000000)::bigint AS open_micros,
    round((bar.payload_json ->> 'high')::numeric * 1000000)::bigint AS high_micros,
    round((bar.payload_json ->> 'low')::numeric * 1000000)::bigint AS low_micros,
    round((bar.payload_json ->> 'price')::numeric * 1000000)::bigint AS close_micros,
    bar.payload_json ->> 'currency' AS currency,
    before.close_micros AS previous_close_micros
FROM events AS bar
CROSS JOIN LATERAL (
    SELECT max(revision) AS revision
    FROM events
    WHERE entity_id = bar.entity_id AND source = bar.source AND event_type = bar.event_type AND series = bar.series
        AND occurred_at = bar.occurred_at
) AS newest
LEFT JOIN LATERAL (
    SELECT round((payload_json ->> 'price')::numeric * 1000000)::bigint AS close_micros
    FROM events
    WHERE entity_id = bar.entity_id AND source = bar.source AND event_type = bar.event_type AND series = bar.series
        AND occurred_at < bar.occurred_at
    ORDER BY occurred_at DESC, revision DESC
    LIMIT 1
) AS before ON true
WHERE bar.event_id = %(event_id)s AND bar.event_type = 'MARKET_TICK_INGESTED'

-- name: judged_actions
-- The splits and dividends as they are stored, in their newest revision, that took effect after the bar before a bar and no
-- later than it, dividends in its own currency; computed as the detector does it, who may not have seen them yet.
SELECT
    CASE newest.event_type WHEN 'CORPORATE_SPLIT_INGESTED' THEN 'split' ELSE 'dividend' END AS kind,
    coalesce(
        round((
            (newest.payload_json ->> 'numerator')::double precision / (newest.payload_json ->> 'denominator')::double precision
        )::numeric * 1000000)::bigint,
        1000000
    ) AS ratio_ppm,
    coalesce(round((newest.payload_json ->> 'amount')::double precision::numeric * 1000000)::bigint, 0) AS amount_micros
FROM events AS bar
CROSS JOIN LATERAL (
    SELECT max(occurred_at) AS occurred_at
    FROM events
    WHERE entity_id = bar.entity_id AND source = bar.source AND event_type = bar.event_type AND series = bar.series
        AND occurred_at < bar.occurred_at
) AS before
CROSS JOIN LATERAL (
    SELECT DISTINCT ON (event_type, occurred_at) event_type, occurred_at, payload_json
    FROM events
    WHERE entity_id = bar.entity_id
        AND source = bar.source
        AND event_type IN ('CORPORATE_SPLIT_INGESTED', 'CORPORATE_DIVIDEND_INGESTED')
        AND occurred_at > before.occurred_at
        AND occurred_at <= bar.occurred_at
    ORDER BY event_type, occurred_at, revision DESC
) AS newest
WHERE bar.event_id = %(event_id)s
    AND coalesce(newest.payload_json ->> 'currency', bar.payload_json ->> 'currency') = bar.payload_json ->> 'currency'
ORDER BY newest.occurred_at, kind

-- name: live_releases
-- What an account was released and has executed near an instant, and whatever it was released and may still execute. The
-- margin is for an execution that began in time and is not committed. What one decision was released can be left out.
SELECT
    decision.source,
    decision.entity_id,
    decision.occurred_at,
    execution.action_id IS NOT NULL AS is_executed,
    convert_from(request.bytes, 'UTF8')::jsonb -> 'context' AS context
FROM actions AS action
JOIN decisions AS decision USING (decision_id)
JOIN verdicts AS verdict USING (verdict_id)
JOIN artifacts AS request ON request.sha256 = verdict.request_sha256
LEFT JOIN executions AS execution USING (action_id)
WHERE action.domain = %(domain)s
    AND action.account = %(account)s
    AND action.decision_id IS DISTINCT FROM %(left_out)s::uuid
    AND CASE
        WHEN execution.action_id IS NULL THEN action.expires_at > clock_timestamp() - interval '5 minutes'
        ELSE execution.outcome = 'executed'
            AND decision.occurred_at BETWEEN %(at)s::timestamptz - interval '7 days' AND %(at)s::timestamptz + interval '7 days'
    END

-- name: held_quantity
-- How much of an entity an account holds, and how much of that its unfilled orders sell. In millionths of a unit.
SELECT
    coalesce((
        SELECT quantity_micros FROM paper_positions
        WHERE account = %(account)s AND source = %(source)s AND entity_id = %(entity_id)s
    ), 0)::bigint,
    coalesce((
        SELECT sum(quantity_micros) FROM paper_orders
        WHERE account = %(account)s AND source = %(source)s AND entity_id = %(entity_id)s
            AND side = 'sell' AND filled_at IS NULL
    ), 0)::bigint

-- name: judged_account
-- An account's cash, and each position with the last price of its entity that the events tell at an instant; null where
-- none is known in the account's currency. Prices in millionths.
SELECT
    account.currency,
    account.cash_micros,
    position.source,
    position.entity_id,
    position.quantity_micros,
    bar.price_micros
FROM paper_accounts AS account
LEFT JOIN paper_positions AS position ON position.account = account.account AND position.quantity_micros <> 0
LEFT JOIN LATERAL (
    SELECT
        round((payload_json ->> 'price')::numeric * 1000000)::bigint AS price_micros,
        payload_json ->> 'currency' AS currency
    FROM events
    WHERE entity_id = position.entity_id AND source = position.source AND source = %(source)s
        AND event_type = 'MARKET_TICK_INGESTED' AND series = %(series)s AND occurred_at <= %(at)s
    ORDER BY occurred_at DESC, revision DESC
    LIMIT 1
) AS bar ON bar.currency = account.currency
WHERE account.account = %(account)s

-- name: keep_bar
-- Keeps the latest revision of a bar, whatever order revisions are delivered in.
INSERT INTO signal_lab_bars AS kept (
    source, entity_id, bar_interval, occurred_at, open, high, low, price, volume, revision, event_id
)
VALUES (
    %(source)s, %(entity_id)s, %(interval)s, %(occurred_at)s, %(open)s, %(high)s, %(low)s, %(price)s, %(volume)s,
    %(revision)s, %(event_id)s
)
ON CONFLICT (source, entity_id, bar_interval, occurred_at) DO UPDATE
SET
    open = excluded.open,
    high = excluded.high,
    low = excluded.low,
    price = excluded.price,
    volume = excluded.volume,
    revision = excluded.revision,
    event_id = excluded.event_id
WHERE excluded.revision > kept.revision

-- name: keep_latest_price
-- Keeps the latest price: an older tick never overwrites a newer one, nor an earlier revision a later one.
INSERT INTO signal_lab_latest_prices AS kept (
    source, entity_id, price, currency, occurred_at, series, revision, event_id
)
VALUES (
    %(source)s, %(entity_id)s, %(price)s, %(currency)s, %(occurred_at)s, %(series)s, %(revision)s, %(event_id)s
)
ON CONFLICT (source, entity_id) DO UPDATE
SET
    price = excluded.price,
    currency = excluded.currency,
    occurred_at = excluded.occurred_at,
    series = excluded.series,
    revision = excluded.revision,
    event_id = excluded.event_id
WHERE (excluded.occurred_at, excluded.series, excluded.revision) > (kept.occurred_at, kept.series, kept.revision)

-- name: keep_corporate_action
-- Keeps the latest revision of a split or a dividend, whatever order revisions are delivered in.
INSERT INTO signal_lab_corporate_actions AS kept (source, entity_id, kind, occurred_at, amount, revision, event_id)
VALUES (%(source)s, %(entity_id)s, %(kind)s, %(occurred_at)s, %(amount)s, %(revision)s, %(event_id)s)
ON CONFLICT (source, entity_id, kind, occurred_at) DO UPDATE
SET
    amount = excluded.amount,
    revision = excluded.revision,
    event_id = excluded.event_id
WHERE excluded.revision > kept.revision

-- name: forget
-- Removes the domain's rows about what a running erasure is about, or about these events. Returns how many.
SELECT forget_finance(%(operation_id)s::uuid, %(event_ids)s::uuid[])
