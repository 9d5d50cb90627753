-- name: lock_entity
-- Makes whoever folds events of one entity wait until this transaction ends.
SELECT pg_advisory_xact_lock(hashtextextended(%(source)s::text || chr(10) || %(entity_id)s::text, 2))

-- name: clock
-- The time, by the shared clock.
SELECT clock_timestamp()

-- name: bars_around
-- The bar at an instant, the one before it and the one after it, as far as there are any, and whether actions follow.
(
    SELECT
        occurred_at, open, high, low, price, currency, revision, event_id, follows_gap,
        EXISTS (
            SELECT FROM detector_corporate_actions AS action
            WHERE action.source = bar.source AND action.entity_id = bar.entity_id AND action.occurred_at > bar.occurred_at
        )
    FROM detector_bars AS bar
    WHERE source = %(source)s AND entity_id = %(entity_id)s AND bar_interval = %(interval)s AND occurred_at < %(at)s
    ORDER BY occurred_at DESC
    LIMIT 1
)
UNION ALL
(
    SELECT
        occurred_at, open, high, low, price, currency, revision, event_id, follows_gap,
        EXISTS (
            SELECT FROM detector_corporate_actions AS action
            WHERE action.source = bar.source AND action.entity_id = bar.entity_id AND action.occurred_at > bar.occurred_at
        )
    FROM detector_bars AS bar
    WHERE source = %(source)s AND entity_id = %(entity_id)s AND bar_interval = %(interval)s AND occurred_at >= %(at)s
    ORDER BY occurred_at
    LIMIT 2
)

-- name: first_bars_from
-- Per interval the instant of the first bar from an instant on.
SELECT bar_interval, min(occurred_at)
FROM detector_bars
WHERE source = %(source)s AND entity_id = %(entity_id)s AND occurred_at >= %(at)s
GROUP BY bar_interval

-- name: actions_between
-- Splits and dividends after an instant, up to another.
SELECT kind, occurred_at, amount, currency
FROM detector_corporate_actions
WHERE source = %(source)s AND entity_id = %(entity_id)s AND occurred_at > %(after)s AND occurred_at <= %(until)s
ORDER BY occurred_at, kind

-- name: keep_bar
-- Keeps a bar with its measures in the place of its earlier revision.
INSERT INTO detector_bars AS kept (
    source, entity_id, bar_interval, occurred_at, open, high, low, price, volume, currency, revision, event_id, previous_at,
    follows_gap, log_return, adjustment, excursion
)
VALUES (
    %(source)s, %(entity_id)s, %(interval)s, %(occurred_at)s, %(open)s, %(high)s, %(low)s, %(price)s, %(volume)s,
    %(currency)s, %(revision)s, %(event_id)s, %(previous_at)s, %(follows_gap)s, %(log_return)s, %(adjustment)s, %(excursion)s
)
ON CONFLICT (source, entity_id, bar_interval, occurred_at) DO UPDATE
SET
    open = excluded.open,
    high = excluded.high,
    low = excluded.low,
    price = excluded.price,
    volume = excluded.volume,
    currency = excluded.currency,
    revision = excluded.revision,
    event_id = excluded.event_id,
    previous_at = excluded.previous_at,
    follows_gap = excluded.follows_gap,
    log_return = excluded.log_return,
    adjustment = excluded.adjustment,
    excursion = excluded.excursion

-- name: measure_bar
-- Notes what a bar measures, now that the bar before it or an action between has changed.
UPDATE detector_bars
SET
    previous_at = %(previous_at)s,
    follows_gap = %(follows_gap)s,
    log_return = %(log_return)s,
    adjustment = %(adjustment)s,
    excursion = %(excursion)s
WHERE source = %(source)s AND entity_id = %(entity_id)s AND bar_interval = %(interval)s AND occurred_at = %(occurred_at)s

-- name: keep_action
-- Keeps the latest revision of a split or a dividend; returns a row where that is this one.
INSERT INTO detector_corporate_actions AS kept (
    source, entity_id, kind, occurred_at, amount, currency, revision, event_id
)
VALUES (
    %(source)s, %(entity_id)s, %(kind)s, %(occurred_at)s, %(amount)s, %(currency)s, %(revision)s, %(event_id)s
)
ON CONFLICT (source, entity_id, kind, occurred_at) DO UPDATE
SET
    amount = excluded.amount,
    currency = excluded.currency,
    revision = excluded.revision,
    event_id = excluded.event_id
WHERE (excluded.revision, excluded.event_id) > (kept.revision, kept.event_id)
RETURNING event_id

-- name: window
-- Bars of one kind in order: so many before an instant, and those from it on whose windows a change touches of the bar
-- at it, or of the one after that. Of the former only what they measure, of the latter also what was found.
(
    SELECT
        log_return, excursion, occurred_at, NULL::uuid AS event_id, NULL::integer AS revision,
        NULL::double precision AS adjustment, NULL::timestamptz AS previous_at, NULL::jsonb AS findings
    FROM detector_bars
    WHERE source = %(source)s
        AND entity_id = %(entity_id)s
        AND bar_interval = %(interval)s
        AND follows_gap = %(follows_gap)s
        AND occurred_at < %(at)s
    ORDER BY occurred_at DESC
    LIMIT %(window)s
)
UNION ALL
(
    SELECT
        log_return, excursion, occurred_at, event_id, revision, adjustment, previous_at,
        (
            SELECT jsonb_agg(to_jsonb(finding))
            FROM detector_findings AS finding
            WHERE finding.source = bar.source
                AND finding.entity_id = bar.entity_id
                AND finding.series = bar.bar_interval
                AND finding.occurred_at = bar.occurred_at
        )
    FROM detector_bars AS bar
    WHERE source = %(source)s
        AND entity_id = %(entity_id)s
        AND bar_interval = %(interval)s
        AND follows_gap = %(follows_gap)s
        AND occurred_at >= %(at)s
    ORDER BY occurred_at
    LIMIT %(window)s + 2
)
ORDER BY occurred_at

-- name: keep_finding
-- Keeps what is found of a bar in the place of what was.
INSERT INTO detector_findings AS kept (
    source, entity_id, series, occurred_at, kind, state, score, threshold, event_id, revision, details
)
VALUES (
    %(source)s, %(entity_id)s, %(interval)s, %(occurred_at)s, %(kind)s, %(state)s, %(score)s, %(threshold)s, %(event_id)s,
    %(revision)s, %(details)s
)
ON CONFLICT (source, entity_id, series, occurred_at, kind) DO UPDATE
SET
    state = excluded.state,
    score = excluded.score,
    threshold = excluded.threshold,
    event_id = excluded.event_id,
    revision = excluded.revision,
    details = excluded.details

-- name: drop_finding
-- Drops what was found of a bar in one respect, and is so no longer.
DELETE FROM detector_findings
WHERE source = %(source)s
    AND entity_id = %(entity_id)s
    AND series = %(interval)s
    AND occurred_at = %(occurred_at)s
    AND kind = %(kind)s

-- name: told_between
-- What was told of an entity's bars from an instant to another, both included.
SELECT series, occurred_at, kind, threshold, told, told_as
FROM detector_told
WHERE source = %(source)s
    AND entity_id = %(entity_id)s
    AND series = ANY (%(series)s::text[])
    AND occurred_at BETWEEN %(first)s AND %(last)s

-- name: keep_told
-- Keeps what was told last of a bar in one respect.
INSERT INTO detector_told AS kept (
    source, entity_id, series, occurred_at, kind, threshold, bar_event_id, bar_revision, told, told_as, told_event_id
)
VALUES (
    %(source)s, %(entity_id)s, %(series)s, %(occurred_at)s, %(kind)s, %(threshold)s, %(bar_event_id)s, %(bar_revision)s,
    %(told)s, %(told_as)s, %(told_event_id)s
)
ON CONFLICT (source, entity_id, series, occurred_at, kind) DO UPDATE
SET
    threshold = excluded.threshold,
    bar_event_id = excluded.bar_event_id,
    bar_revision = excluded.bar_revision,
    told = excluded.told,
    told_as = excluded.told_as,
    told_event_id = excluded.told_event_id

-- name: market_at
-- How all entities of a source moved at an instant, as far as it is known.
SELECT entities, fell, median_log_return
FROM detector_market
WHERE source = %(source)s AND bar_interval = %(interval)s AND occurred_at = %(at)s
