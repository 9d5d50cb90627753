-- name: has_all_bars
-- Whether all entities that had a bar at the instant of the entity's bar before have one at this instant, too.
SELECT NOT EXISTS (
    SELECT FROM detector_bars AS earlier
    WHERE earlier.source = %(source)s
        AND earlier.bar_interval = %(interval)s
        AND earlier.occurred_at = (
            SELECT max(own.occurred_at) FROM detector_bars AS own
            WHERE own.source = %(source)s
                AND own.entity_id = %(entity_id)s
                AND own.bar_interval = %(interval)s
                AND own.occurred_at < %(at)s
        )
        AND NOT EXISTS (
            SELECT FROM detector_bars AS bar
            WHERE bar.source = earlier.source
                AND bar.entity_id = earlier.entity_id
                AND bar.bar_interval = earlier.bar_interval
                AND bar.occurred_at = %(at)s
        )
)

-- name: bars_until
-- The newest bars up to an instant of the entity, of whatever is held, and of up to 64 others that have a bar at that
-- instant. Prices in millionths.
SELECT
    bar.entity_id,
    bar.occurred_at,
    bar.open_micros,
    bar.high_micros,
    bar.low_micros,
    bar.close_micros,
    bar.currency,
    bar.revision,
    bar.event_id,
    bar.follows_gap
FROM (
    SELECT %(entity_id)s::text AS entity_id
    UNION
    SELECT entity_id
    FROM paper_positions
    WHERE account = %(account)s AND source = %(source)s AND quantity_micros <> 0
    UNION
    (
        SELECT entity_id
        FROM detector_bars
        WHERE source = %(source)s AND bar_interval = %(series)s AND occurred_at = %(at)s
        ORDER BY entity_id
        LIMIT 64
    )
) AS wanted
CROSS JOIN LATERAL (
    SELECT *
    FROM detector_bars
    WHERE source = %(source)s
        AND entity_id = wanted.entity_id
        AND bar_interval = %(series)s
        AND occurred_at <= %(at)s
    ORDER BY occurred_at DESC
    LIMIT %(count)s
) AS bar
ORDER BY bar.entity_id, bar.occurred_at

-- name: bars_of_entity
-- The newest bars of one entity up to an instant. Prices in millionths.
SELECT
    entity_id,
    occurred_at,
    open_micros,
    high_micros,
    low_micros,
    close_micros,
    currency,
    revision,
    event_id,
    follows_gap
FROM (
    SELECT
        entity_id,
        occurred_at,
        open_micros,
        high_micros,
        low_micros,
        close_micros,
        currency,
        revision,
        event_id,
        follows_gap
    FROM detector_bars
    WHERE source = %(source)s AND entity_id = %(entity_id)s AND bar_interval = %(series)s AND occurred_at <= %(at)s
    ORDER BY occurred_at DESC
    LIMIT %(count)s
) AS newest
ORDER BY occurred_at

-- name: bars_between
-- Bars of some entities until an instant, from the last one that is not after another. Prices in millionths.
SELECT
    bar.entity_id,
    bar.occurred_at,
    bar.open_micros,
    bar.high_micros,
    bar.low_micros,
    bar.close_micros,
    bar.currency,
    bar.revision,
    bar.event_id,
    bar.follows_gap
FROM unnest(%(entities)s::text[]) AS wanted (entity_id)
JOIN detector_bars AS bar
    ON bar.source = %(source)s
    AND bar.entity_id = wanted.entity_id
    AND bar.bar_interval = %(series)s
    AND bar.occurred_at BETWEEN coalesce(
        (
            SELECT max(occurred_at)
            FROM detector_bars AS earlier
            WHERE earlier.source = %(source)s
                AND earlier.entity_id = wanted.entity_id
                AND earlier.bar_interval = %(series)s
                AND earlier.occurred_at <= %(at)s
        ),
        %(at)s
    ) AND %(until)s
ORDER BY bar.entity_id, bar.occurred_at

-- name: horizon_end
-- The instant of the n-th bar of an entity after an instant; no row where there are fewer.
SELECT occurred_at
FROM detector_bars
WHERE source = %(source)s
    AND entity_id = %(entity_id)s
    AND bar_interval = %(series)s
    AND occurred_at > %(at)s
ORDER BY occurred_at
OFFSET %(bars)s - 1
LIMIT 1

-- name: corporate_actions
-- The splits and dividends of some entities within a time, in order.
SELECT
    entity_id,
    occurred_at,
    kind,
    CASE WHEN kind = 'split' THEN round(amount::numeric * 1000000)::bigint END AS ratio_ppm,
    CASE WHEN kind = 'dividend' THEN round(amount::numeric * 1000000)::bigint END AS amount_micros,
    currency
FROM detector_corporate_actions
WHERE source = %(source)s
    AND entity_id = ANY (%(entities)s::text[])
    AND occurred_at BETWEEN %(since)s AND %(until)s
ORDER BY entity_id, occurred_at, kind

-- name: paper_account
-- An account's currency and cash.
SELECT currency, cash_micros
FROM paper_accounts
WHERE account = %(account)s

-- name: paper_positions
-- What an account holds, in order.
SELECT source, entity_id, quantity_micros
FROM paper_positions
WHERE account = %(account)s AND quantity_micros <> 0
ORDER BY source, entity_id

-- name: newest_episodes
-- The newest stored episode of each entity: what is older has been searched before.
SELECT entity_id, max(occurred_at)
FROM episodes
WHERE source = %(source)s AND series = %(series)s AND entity_id = ANY (%(entities)s::text[])
GROUP BY entity_id

-- name: stored_episodes
-- Entities' episodes, each within a time of its own, without those that are none any more.
SELECT
    episode.entity_id, occurred_at, event_id, return_milli, prior_milli, range_milli, followed_ppm, followed_milli, ended_at
FROM unnest(%(entities)s::text[], %(since)s::timestamptz[], %(until)s::timestamptz[]) AS searched (entity_id, since, until)
JOIN episodes AS episode
    ON episode.source = %(source)s
    AND episode.series = %(series)s
    AND episode.entity_id = searched.entity_id
    AND episode.occurred_at BETWEEN searched.since AND searched.until
WHERE event_id <> '00000000-0000-0000-0000-000000000000'

-- name: lock_episodes
-- Waits until nobody else changes the episodes of a source and series: two orders would wait for each other in a circle.
SELECT pg_advisory_xact_lock(hashtextextended('episodes ' || %(source)s || ' ' || %(series)s, 0))

-- name: keep_episode
-- Stores an episode as it is now.
INSERT INTO episodes (
    source, entity_id, series, occurred_at, event_id, return_milli, prior_milli, range_milli, followed_ppm, followed_milli,
    ended_at
)
VALUES (
    %(source)s, %(entity_id)s, %(series)s, %(occurred_at)s, %(event_id)s, %(return_milli)s, %(prior_milli)s,
    %(range_milli)s, %(followed_ppm)s, %(followed_milli)s, %(ended_at)s
)
ON CONFLICT (source, entity_id, series, occurred_at) DO UPDATE
SET
    event_id = excluded.event_id,
    return_milli = excluded.return_milli,
    prior_milli = excluded.prior_milli,
    range_milli = excluded.range_milli,
    followed_ppm = excluded.followed_ppm,
    followed_milli = excluded.followed_milli,
    ended_at = excluded.ended_at

-- name: forget_episode
-- Marks what is no episode any more, for a bar was corrected: no bar has this event, so that it is not found.
UPDATE episodes
SET event_id = '00000000-0000-0000-0000-000000000000'
WHERE source = %(source)s AND entity_id = %(entity_id)s AND series = %(series)s AND occurred_at = %(occurred_at)s

-- name: nearest_episodes
-- The episodes of a source nearest to these features by an exact search, among those that had ended by an instant; of a few
-- times as many as are wanted, those whose bar was not corrected since. Joined first, every episode would look up its bar.
WITH nearest AS MATERIALIZED (
    SELECT
        source,
        entity_id,
        series,
        occurred_at,
        event_id,
        (
            (return_milli - %(return_milli)s) * (return_milli - %(return_milli)s)
            + (prior_milli - %(prior_milli)s) * (prior_milli - %(prior_milli)s)
            + (range_milli - %(range_milli)s) * (range_milli - %(range_milli)s)
        ) AS squared_distance,
        followed_ppm,
        followed_milli
    FROM episodes
    WHERE source = %(source)s AND series = %(series)s AND ended_at <= %(at)s
    ORDER BY squared_distance, occurred_at DESC, entity_id
    LIMIT 5 * %(count)s
)
SELECT nearest.entity_id, nearest.occurred_at, nearest.squared_distance, nearest.followed_ppm, nearest.followed_milli
FROM nearest
CROSS JOIN LATERAL (
    SELECT event_id
    FROM detector_bars AS bar
    WHERE bar.source = nearest.source
        AND bar.entity_id = nearest.entity_id
        AND bar.bar_interval = nearest.series
        AND bar.occurred_at = nearest.occurred_at
    LIMIT 1
) AS latest
WHERE latest.event_id = nearest.event_id
ORDER BY nearest.squared_distance, nearest.occurred_at DESC, nearest.entity_id
LIMIT %(count)s
