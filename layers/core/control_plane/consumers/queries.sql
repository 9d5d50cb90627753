-- name: mark_processed
-- Returns a row where this consumer sees the event for the first time. Waits for another delivery of it under way.
INSERT INTO processed_events (consumer, event_id)
VALUES (%(consumer)s, %(event_id)s)
ON CONFLICT DO NOTHING
RETURNING event_id

-- name: keep_bar
-- A corrected bar replaces the one it corrects, never the other way round.
INSERT INTO signal_lab_bars AS kept (
    source, entity_id, bar_interval, occurred_at, open, high, low, price, volume, ingested_at, event_id
)
VALUES (
    %(source)s, %(entity_id)s, %(interval)s, %(occurred_at)s, %(open)s, %(high)s, %(low)s, %(price)s, %(volume)s,
    %(ingested_at)s, %(event_id)s
)
ON CONFLICT (source, entity_id, bar_interval, occurred_at) DO UPDATE
SET
    open = excluded.open,
    high = excluded.high,
    low = excluded.low,
    price = excluded.price,
    volume = excluded.volume,
    ingested_at = excluded.ingested_at,
    event_id = excluded.event_id
WHERE (excluded.ingested_at, excluded.event_id) > (kept.ingested_at, kept.event_id)

-- name: keep_latest_price
-- An older tick never overwrites a newer one.
INSERT INTO signal_lab_latest_prices AS kept (source, entity_id, price, currency, occurred_at, ingested_at, event_id)
VALUES (
    %(source)s, %(entity_id)s, %(price)s, %(currency)s, %(occurred_at)s, %(ingested_at)s, %(event_id)s
)
ON CONFLICT (source, entity_id) DO UPDATE
SET
    price = excluded.price,
    currency = excluded.currency,
    occurred_at = excluded.occurred_at,
    ingested_at = excluded.ingested_at,
    event_id = excluded.event_id
WHERE (excluded.occurred_at, excluded.ingested_at, excluded.event_id)
    > (kept.occurred_at, kept.ingested_at, kept.event_id)
