-- Finance. The detector's own tables: the bars and corporate actions that it has seen, and the anomalies that they make.
-- A fold of the events: any order of delivery ends in the same rows.

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
    PRIMARY KEY (source, entity_id, bar_interval, occurred_at)
);
COMMENT ON TABLE detector_bars IS 'One row per bar: its latest revision. price is the close, as traded.';

GRANT SELECT, INSERT, UPDATE ON detector_bars TO acp_detect;
GRANT SELECT ON detector_bars TO acp_decide, acp_gatekeeper, acp_action, acp_reader;
