-- SignalLab's own tables: the latest price per entity, the bars behind it, and the risk they show.
-- The source is part of each key, so replayed prices never pass for live ones.

CREATE TABLE signal_lab_latest_prices (
    source      text             NOT NULL,
    entity_id   text             NOT NULL,
    price       double precision NOT NULL,
    currency    text             NOT NULL,
    occurred_at timestamptz      NOT NULL,
    ingested_at timestamptz      NOT NULL,
    event_id    uuid             NOT NULL,
    PRIMARY KEY (source, entity_id)
);
COMMENT ON TABLE signal_lab_latest_prices IS 'The newest tick by occurred_at, then ingested_at, then event_id: any order of delivery ends the same.';

CREATE TABLE signal_lab_bars (
    source       text             NOT NULL,
    entity_id    text             NOT NULL,
    bar_interval text             NOT NULL,
    occurred_at  timestamptz      NOT NULL,
    open         double precision NOT NULL,
    high         double precision NOT NULL,
    low          double precision NOT NULL,
    price        double precision NOT NULL,
    volume       bigint           NOT NULL,
    ingested_at  timestamptz      NOT NULL,
    event_id     uuid             NOT NULL,
    PRIMARY KEY (source, entity_id, bar_interval, occurred_at)
);
COMMENT ON TABLE signal_lab_bars IS 'One row per bar; a corrected bar replaces the one it corrects. price is the close.';

CREATE VIEW signal_lab_returns AS
SELECT
    source,
    entity_id,
    bar_interval,
    occurred_at,
    price,
    bar_return,
    stddev_samp(bar_return) OVER (series ROWS BETWEEN 29 PRECEDING AND CURRENT ROW) AS rolling_volatility,
    usable_price
        / NULLIF(greatest(max(usable_price) OVER (series ROWS UNBOUNDED PRECEDING), 1e-9), 1e-9) - 1 AS drawdown
FROM (
    SELECT
        *,
        usable_price / NULLIF(
            greatest(lag(usable_price) OVER (PARTITION BY source, entity_id, bar_interval ORDER BY occurred_at), 1e-9),
            1e-9
        ) - 1 AS bar_return
    FROM (
        -- One absurd price must not make the arithmetic overflow for all entities.
        SELECT *, CASE WHEN abs(price) <= 1e15 THEN price END AS usable_price FROM signal_lab_bars
    ) AS usable_bars
) AS bars
WINDOW series AS (PARTITION BY source, entity_id, bar_interval ORDER BY occurred_at);
COMMENT ON VIEW signal_lab_returns IS 'Per bar, as fractions: its return, the standard deviation of the last 30 returns (not annualised), the fall from the highest price so far. Null where that would be a fraction of nothing or of less, and for prices beyond 1e15.';

CREATE VIEW signal_lab_risk AS
SELECT DISTINCT ON (source, entity_id, bar_interval)
    source,
    entity_id,
    bar_interval,
    occurred_at,
    price,
    bar_return,
    rolling_volatility,
    drawdown,
    min(drawdown) OVER series AS maximum_drawdown,
    count(*) OVER series AS bars
FROM signal_lab_returns
WINDOW series AS (PARTITION BY source, entity_id, bar_interval)
ORDER BY source, entity_id, bar_interval, occurred_at DESC;
COMMENT ON VIEW signal_lab_risk IS 'Per entity: the newest bar of signal_lab_returns, and the maximum drawdown of all.';

GRANT SELECT, INSERT, UPDATE ON signal_lab_latest_prices, signal_lab_bars TO acp_app;
GRANT SELECT ON signal_lab_returns, signal_lab_risk TO acp_app;
