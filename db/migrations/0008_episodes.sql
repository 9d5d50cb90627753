-- Finance. Past bars that moved unusually, and what followed: what a decision's evidence compares its bar with.

CREATE TABLE episodes (
    source         text        NOT NULL,
    entity_id      text        NOT NULL,
    series         text        NOT NULL,
    occurred_at    timestamptz NOT NULL,
    event_id       uuid        NOT NULL,
    return_milli   bigint      NOT NULL,
    prior_milli    bigint      NOT NULL,
    range_milli    bigint      NOT NULL,
    followed_ppm   bigint      NOT NULL,
    followed_milli bigint      NOT NULL,
    ended_at       timestamptz NOT NULL CHECK (ended_at > occurred_at),
    PRIMARY KEY (source, entity_id, series, occurred_at)
);
COMMENT ON TABLE episodes IS 'One row per bar that moved by two standard deviations or more and whose five bars that follow are known. Derived from detector_bars.';
COMMENT ON COLUMN episodes.event_id IS 'The bar as it was: until a corrected one is searched again, its episode is not found. All zeros: it is none any more.';
COMMENT ON COLUMN episodes.return_milli IS 'Features, in thousandths of a robust standard deviation of the 60 returns before: return, the move of the five bars before, range.';
COMMENT ON COLUMN episodes.ended_at IS 'When what followed was complete: nobody may look at the episode before.';

GRANT SELECT, INSERT ON episodes TO acp_decide;
GRANT UPDATE (event_id, return_milli, prior_milli, range_milli, followed_ppm, followed_milli, ended_at) ON episodes TO acp_decide;
GRANT SELECT ON episodes TO acp_detect, acp_gatekeeper, acp_reader;
