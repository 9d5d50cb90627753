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
