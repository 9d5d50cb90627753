-- Finance. The detector's own tables: the bars and corporate actions that it has seen, and the anomalies that they make.
-- A fold of the events: any order of delivery ends in the same rows. And what SignalLab knows of corporate actions.

CREATE TABLE detector_bars (
    source       text             NOT NULL,
    entity_id    text             NOT NULL,
    bar_interval text             NOT NULL,
    occurred_at  timestamptz      NOT NULL,
    open         double precision NOT NULL,
    high         double precision NOT NULL,
    low          double precision NOT NULL,
    price        double precision NOT NULL,
    volume       bigint           NOT NULL,
    currency     text             NOT NULL,
    revision     integer          NOT NULL,
    event_id     uuid             NOT NULL,
    previous_at  timestamptz,
    follows_gap  boolean          NOT NULL,
    log_return   double precision,
    adjustment   double precision NOT NULL,
    excursion    double precision,
    open_micros  bigint           GENERATED ALWAYS AS (
        CASE WHEN abs(open) < 9e12 THEN round(open::numeric * 1000000)::bigint END
    ) STORED,
    high_micros  bigint           GENERATED ALWAYS AS (
        CASE WHEN abs(high) < 9e12 THEN round(high::numeric * 1000000)::bigint END
    ) STORED,
    low_micros   bigint           GENERATED ALWAYS AS (
        CASE WHEN abs(low) < 9e12 THEN round(low::numeric * 1000000)::bigint END
    ) STORED,
    close_micros bigint           GENERATED ALWAYS AS (
        CASE WHEN abs(price) < 9e12 THEN round(price::numeric * 1000000)::bigint END
    ) STORED,
    PRIMARY KEY (source, entity_id, bar_interval, occurred_at)
);
COMMENT ON TABLE detector_bars IS 'One row per bar: its latest revision, and what is derived from it, the bar before it and the corporate actions between.';
COMMENT ON COLUMN detector_bars.price IS 'The close, as traded.';
COMMENT ON COLUMN detector_bars.previous_at IS 'When the bar before it began.';
COMMENT ON COLUMN detector_bars.follows_gap IS 'Whether the market was closed between the bar before and this one: such returns are compared with such alone.';
COMMENT ON COLUMN detector_bars.log_return IS 'The logarithm of the close over the close before, adjusted; null where one of them is not above 0.';
COMMENT ON COLUMN detector_bars.adjustment IS 'What splits and dividends between the two closes have added to log_return.';
COMMENT ON COLUMN detector_bars.close_micros IS 'The close in millionths, as decisions count; computed once, for each decision reads hundreds of bars.';
COMMENT ON COLUMN detector_bars.excursion IS 'How far the bar went beyond its open and close, as a logarithm; below 0 where the farther side is the low.';
CREATE INDEX detector_bars_alike ON detector_bars (source, entity_id, bar_interval, follows_gap, occurred_at);
-- By the instant alone: otherwise it could be taken for a window's, and would hold the bars of all entities.
CREATE INDEX detector_bars_at_once ON detector_bars (occurred_at);

CREATE VIEW detector_market AS
SELECT
    source,
    bar_interval,
    occurred_at,
    count(*)::integer AS entities,
    count(*) FILTER (WHERE log_return < 0)::integer AS fell,
    percentile_cont(0.5) WITHIN GROUP (ORDER BY log_return) AS median_log_return
FROM detector_bars
WHERE log_return IS NOT NULL
GROUP BY source, bar_interval, occurred_at;
COMMENT ON VIEW detector_market IS 'Per instant: of how many entities there is a return, how many of them fell, and the median.';

CREATE TABLE detector_corporate_actions (
    source      text             NOT NULL,
    entity_id   text             NOT NULL,
    kind        text             NOT NULL CHECK (kind IN ('split', 'dividend')),
    occurred_at timestamptz      NOT NULL,
    amount      double precision NOT NULL CHECK (amount > 0),
    currency    text,
    revision    integer          NOT NULL,
    event_id    uuid             NOT NULL,
    PRIMARY KEY (source, entity_id, kind, occurred_at),
    CONSTRAINT detector_corporate_actions_dividends_are_money CHECK ((currency IS NOT NULL) = (kind = 'dividend'))
);
COMMENT ON TABLE detector_corporate_actions IS 'Splits and dividends: the latest revision of each.';
COMMENT ON COLUMN detector_corporate_actions.amount IS 'Of a split the new shares per old one, of a dividend the money per share.';

CREATE TABLE detector_findings (
    source      text             NOT NULL,
    entity_id   text             NOT NULL,
    series      text             NOT NULL,
    occurred_at timestamptz      NOT NULL,
    kind        text             NOT NULL CHECK (kind IN ('return', 'range')),
    state       text             NOT NULL CHECK (state IN ('detected', 'explained')),
    score       double precision NOT NULL,
    threshold   double precision NOT NULL,
    event_id    uuid             NOT NULL,
    revision    integer          NOT NULL,
    details     jsonb            NOT NULL CHECK (jsonb_typeof(details) = 'object'),
    PRIMARY KEY (source, entity_id, series, occurred_at, kind)
);
COMMENT ON TABLE detector_findings IS 'What is unusual now. It depends on the bars and the corporate actions alone, whatever order they came in.';
COMMENT ON COLUMN detector_findings.state IS 'explained: unusual but for a corporate action.';
COMMENT ON COLUMN detector_findings.event_id IS 'The event of the bar that it is about.';
CREATE INDEX detector_findings_by_time ON detector_findings (occurred_at);

CREATE TABLE detector_told (
    source        text             NOT NULL,
    entity_id     text             NOT NULL,
    series        text             NOT NULL,
    occurred_at   timestamptz      NOT NULL,
    kind          text             NOT NULL CHECK (kind IN ('return', 'range')),
    threshold     double precision NOT NULL,
    bar_event_id  uuid             NOT NULL,
    bar_revision  integer          NOT NULL,
    told          integer          NOT NULL CHECK (told > 0),
    told_as       text,
    told_event_id uuid             NOT NULL,
    PRIMARY KEY (source, entity_id, series, occurred_at, kind)
);
COMMENT ON TABLE detector_told IS 'What was said of each bar by ANOMALY_DETECTED. No fold of the bars: a rebuild leaves it alone, so that nothing is told twice.';
COMMENT ON COLUMN detector_told.bar_event_id IS 'The bar, as it was when the last of them was told.';
COMMENT ON COLUMN detector_told.told IS 'How many ANOMALY_DETECTED there are of it; the revision of the next one.';
COMMENT ON COLUMN detector_told.told_as IS 'The bar and the figure that stand told; null where none does.';
CREATE INDEX detector_told_by_time ON detector_told (occurred_at);

CREATE VIEW detector_anomalies AS
SELECT
    source,
    entity_id,
    series,
    occurred_at,
    kind,
    coalesce(finding.state, 'withdrawn') AS state,
    coalesce(finding.score, 0) AS score,
    coalesce(finding.threshold, told.threshold) AS threshold,
    coalesce(finding.event_id, told.bar_event_id) AS bar_event_id,
    coalesce(finding.revision, told.bar_revision) AS bar_revision,
    coalesce(finding.details, '{}') AS details,
    coalesce(told.told, 0) AS told,
    told.told_as,
    told.told_event_id
FROM detector_findings AS finding
FULL JOIN detector_told AS told USING (source, entity_id, series, occurred_at, kind);
COMMENT ON VIEW detector_anomalies IS 'What is unusual now, with what was said of it; and, as withdrawn, what was once said to be unusual and is so no longer.';

GRANT SELECT, INSERT, UPDATE ON detector_bars, detector_corporate_actions, detector_findings, detector_told TO acp_detect;
GRANT DELETE ON detector_findings TO acp_detect;
GRANT SELECT ON detector_market TO acp_detect;
GRANT SELECT ON detector_findings, detector_told TO acp_reader;
GRANT SELECT ON detector_bars, detector_corporate_actions, detector_anomalies, detector_market
    TO acp_decide, acp_gatekeeper, acp_action, acp_reader;


CREATE TABLE signal_lab_corporate_actions (
    source      text             NOT NULL,
    entity_id   text             NOT NULL,
    kind        text             NOT NULL CHECK (kind IN ('split', 'dividend')),
    occurred_at timestamptz      NOT NULL,
    amount      double precision NOT NULL CHECK (amount > 0),
    revision    integer          NOT NULL,
    event_id    uuid             NOT NULL,
    PRIMARY KEY (source, entity_id, kind, occurred_at)
);
COMMENT ON TABLE signal_lab_corporate_actions IS 'Splits (new shares per old one) and dividends (money per share): the latest revision of each.';

CREATE VIEW signal_lab_adjustments AS
SELECT
    action.source,
    action.entity_id,
    series.bar_interval,
    first_bar.occurred_at,
    exp(least(greatest(sum(ln(action.amount)) FILTER (WHERE action.kind = 'split'), -50), 50)) AS split_ratio,
    sum(action.amount) FILTER (WHERE action.kind = 'dividend') AS dividends
FROM signal_lab_corporate_actions AS action
CROSS JOIN LATERAL (
    -- The intervals that the entity has, each found by one probe of the index.
    WITH RECURSIVE found AS (
        (
            SELECT bar.bar_interval
            FROM signal_lab_bars AS bar
            WHERE bar.source = action.source AND bar.entity_id = action.entity_id
            ORDER BY bar.bar_interval
            LIMIT 1
        )
        UNION ALL
        SELECT (
            SELECT bar.bar_interval
            FROM signal_lab_bars AS bar
            WHERE bar.source = action.source AND bar.entity_id = action.entity_id AND bar.bar_interval > found.bar_interval
            ORDER BY bar.bar_interval
            LIMIT 1
        )
        FROM found
        WHERE found.bar_interval IS NOT NULL
    )
    SELECT bar_interval FROM found WHERE bar_interval IS NOT NULL
) AS series
CROSS JOIN LATERAL (
    SELECT bar.occurred_at
    FROM signal_lab_bars AS bar
    WHERE bar.source = action.source
        AND bar.entity_id = action.entity_id
        AND bar.bar_interval = series.bar_interval
        AND bar.occurred_at >= action.occurred_at
    ORDER BY bar.occurred_at
    LIMIT 1
) AS first_bar
GROUP BY action.source, action.entity_id, series.bar_interval, first_bar.occurred_at;
COMMENT ON VIEW signal_lab_adjustments IS 'Per bar that is the first one from a split or a dividend on: the new shares per old one, and the money per share.';

CREATE OR REPLACE VIEW signal_lab_returns AS
SELECT
    source,
    entity_id,
    bar_interval,
    occurred_at,
    price,
    bar_return,
    stddev_samp(bar_return) OVER (series ROWS BETWEEN 29 PRECEDING AND CURRENT ROW) AS rolling_volatility,
    adjusted_price
        / NULLIF(greatest(max(adjusted_price) OVER (series ROWS UNBOUNDED PRECEDING), 1e-9), 1e-9) - 1 AS drawdown
FROM (
    SELECT
        *,
        usable_price * ratio / NULLIF(greatest(base, 1e-9), 1e-9) - 1 AS bar_return,
        usable_price * exp(
            least(
                greatest(
                    coalesce(
                        sum(ln(ratio) + CASE WHEN base < previous_price THEN ln(previous_price / base) ELSE 0 END) OVER (
                            PARTITION BY source, entity_id, bar_interval
                            ORDER BY occurred_at
                            ROWS UNBOUNDED PRECEDING
                        ),
                        0
                    ),
                    -50
                ),
                50
            )
        ) AS adjusted_price
    FROM (
        SELECT
            *,
            -- A split that brings the price no nearer to the one before is in the earlier prices already.
            CASE
                WHEN split_ratio IS NULL OR base IS NULL OR base <= 1e-9 OR usable_price <= 1e-9 THEN 1
                WHEN abs(ln(usable_price / base) + ln(split_ratio)) < abs(ln(usable_price / base)) THEN split_ratio
                ELSE 1
            END AS ratio
        FROM (
            SELECT
                *,
                CASE
                    WHEN dividends < previous_price AND previous_price - dividends > 1e-9 THEN previous_price - dividends
                    ELSE previous_price
                END AS base
            FROM (
                SELECT
                    usable_bars.*,
                    lag(usable_price) OVER (
                        PARTITION BY source, entity_id, bar_interval ORDER BY occurred_at
                    ) AS previous_price,
                    adjustment.split_ratio,
                    adjustment.dividends
                FROM (
                    -- One absurd price must not make the arithmetic overflow, or underflow, for all entities.
                    SELECT *, CASE WHEN abs(price) BETWEEN 1e-100 AND 1e15 THEN price END AS usable_price
                    FROM signal_lab_bars
                ) AS usable_bars
                LEFT JOIN signal_lab_adjustments AS adjustment USING (source, entity_id, bar_interval, occurred_at)
            ) AS adjusted_bars
        ) AS based_bars
    ) AS split_bars
) AS bars
WINDOW series AS (PARTITION BY source, entity_id, bar_interval ORDER BY occurred_at);
COMMENT ON VIEW signal_lab_returns IS 'Per bar, as fractions: its return, the standard deviation of the last 30 returns (not annualised), the fall from the highest price so far; all with splits and dividends taken out, while price is as traded. Null where that would be a fraction of nothing or of less, and for prices beyond 1e15 or below 1e-100.';

GRANT SELECT, INSERT, UPDATE ON signal_lab_corporate_actions TO acp_consume;
GRANT SELECT ON signal_lab_corporate_actions, signal_lab_adjustments TO acp_reader;
