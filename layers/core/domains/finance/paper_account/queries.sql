-- name: released_action
-- A released action with the bytes that its hash is over.
SELECT actions.decision_id, actions.account, actions.action_type, artifacts.bytes
FROM actions
JOIN artifacts ON artifacts.sha256 = actions.action_sha256
WHERE actions.action_id = %(action_id)s

-- name: begin_execution
-- Whether the action may be executed now: ready, done, expired, unknown, or off: and what is switched off.
SELECT begin_execution(%(action_id)s)

-- name: record_execution
-- Puts on record what was done, once, and wakes the decision.
SELECT record_execution(%(action_id)s, %(outcome)s, %(reason)s, %(effect)s::jsonb, %(wake_event)s::json)

-- name: newest_bar
-- The instant of the newest bar of an instrument; an order is filled at the one after it.
SELECT max(occurred_at)
FROM signal_lab_bars
WHERE source = %(source)s AND entity_id = %(entity_id)s AND bar_interval = %(series)s

-- name: account_currency
-- The currency of an account; no row where there is no such account.
SELECT currency
FROM paper_accounts
WHERE account = %(account)s

-- name: place_order
-- Places the order of an action; the key is the action's, so that there is one.
INSERT INTO paper_orders (action_id, account, source, entity_id, series, side, quantity_micros, fill_after)
VALUES (
    %(action_id)s, %(account)s, %(source)s, %(entity_id)s, %(series)s, %(side)s, %(quantity_micros)s, %(fill_after)s
)

-- name: fill_orders
-- Fills the open orders of an instrument for which there is a later bar, each at the open of the earliest one, and books
-- them: cash and positions change by the same amounts. Returns how many.
WITH due AS (
    SELECT
        pending.action_id,
        pending.account,
        pending.source,
        pending.entity_id,
        CASE pending.side WHEN 'buy' THEN pending.quantity_micros ELSE -pending.quantity_micros END AS bought_micros,
        bar.occurred_at,
        bar.price_micros,
        bar.event_id
    FROM paper_orders AS pending
    CROSS JOIN LATERAL (
        SELECT occurred_at, round(open::numeric * 1000000)::bigint AS price_micros, event_id
        FROM signal_lab_bars
        WHERE source = pending.source
            AND entity_id = pending.entity_id
            AND bar_interval = pending.series
            AND occurred_at > pending.fill_after
            AND open BETWEEN 0.000001 AND 1e9
        ORDER BY occurred_at
        LIMIT 1
    ) AS bar
    WHERE pending.source = %(source)s
        AND pending.entity_id = %(entity_id)s
        AND pending.series = %(series)s
        AND pending.filled_at IS NULL
    ORDER BY pending.action_id
    FOR UPDATE OF pending
),
filled AS (
    UPDATE paper_orders AS pending
    SET
        filled_at = clock_timestamp(),
        fill_occurred_at = due.occurred_at,
        fill_price_micros = due.price_micros,
        fill_event_id = due.event_id
    FROM due
    WHERE pending.action_id = due.action_id AND pending.filled_at IS NULL
    RETURNING due.*
),
paid AS (
    UPDATE paper_accounts AS kept
    SET cash_micros = kept.cash_micros - spent.micros
    FROM (
        SELECT account, sum(round(bought_micros::numeric * price_micros / 1000000))::bigint AS micros
        FROM filled
        GROUP BY account
    ) AS spent
    WHERE kept.account = spent.account
),
held AS (
    INSERT INTO paper_positions AS kept (account, source, entity_id, quantity_micros)
    SELECT account, source, entity_id, sum(bought_micros)::bigint
    FROM filled
    GROUP BY account, source, entity_id
    ON CONFLICT (account, source, entity_id) DO UPDATE
    SET quantity_micros = kept.quantity_micros + excluded.quantity_micros
)
SELECT count(*)
FROM filled

-- name: audited_orders
-- Each order beside the action that it executes, and the open of the bar that filled it; either may be missing.
SELECT
    action.decision_id,
    coalesce(held.action_id, action.action_id),
    action.account,
    done.outcome,
    done.effect,
    artifact.bytes,
    to_jsonb(held),
    CASE WHEN held.filled_at IS NOT NULL THEN round((bar.payload_json ->> 'open')::double precision::numeric * 1000000)::bigint END
FROM paper_orders AS held
FULL JOIN (SELECT * FROM executions WHERE outcome = 'executed') AS done USING (action_id)
LEFT JOIN actions AS action ON action.action_id = coalesce(held.action_id, done.action_id)
LEFT JOIN artifacts AS artifact ON artifact.sha256 = action.action_sha256
LEFT JOIN events AS bar ON bar.event_id = held.fill_event_id
ORDER BY coalesce(held.action_id, action.action_id)

-- name: audited_balances
-- Every balance that is not its opening and what its fills add up to: of cash, then of units.
WITH fills AS (
    SELECT
        account, source, entity_id,
        CASE side WHEN 'buy' THEN quantity_micros ELSE -quantity_micros END AS bought_micros,
        fill_price_micros
    FROM paper_orders
    WHERE filled_at IS NOT NULL
),
balances AS (
    SELECT
        account, true AS is_cash, '' AS source, '' AS entity_id, held.cash_micros::numeric AS stated,
        held.opening_cash_micros - coalesce(sum(round(bought_micros::numeric * fill_price_micros / 1000000)), 0) AS counted
    FROM paper_accounts AS held
    LEFT JOIN fills USING (account)
    GROUP BY account
    UNION ALL
    SELECT
        account, false, source, entity_id, coalesce(held.quantity_micros, 0),
        coalesce(held.opening_quantity_micros, 0) + coalesce(bought.micros, 0)
    FROM paper_positions AS held
    FULL JOIN (
        SELECT account, source, entity_id, sum(bought_micros) AS micros FROM fills GROUP BY account, source, entity_id
    ) AS bought USING (account, source, entity_id)
)
SELECT account, is_cash, source, entity_id, stated::bigint, counted::bigint
FROM balances
WHERE stated <> counted
ORDER BY account, is_cash DESC, source, entity_id
