-- The outbox stays small: what was delivered moves on to an archive (docs/decisions/0008-delivered-rows.md).

CREATE TABLE outbox_archive (LIKE outbox);
ALTER TABLE outbox_archive
    ADD PRIMARY KEY (id),
    ALTER COLUMN delivered_at SET NOT NULL,
    ALTER COLUMN message_id SET NOT NULL;
CREATE INDEX outbox_archive_by_event ON outbox_archive (event_id);
CREATE TRIGGER outbox_archive_is_immutable BEFORE UPDATE OR DELETE OR TRUNCATE ON outbox_archive
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
COMMENT ON TABLE outbox_archive IS 'Promises kept some days ago, moved here by maintenance as they were. Immutable. Without foreign keys: what a promise points to was there when it was made, and retention deletes the promise first.';
GRANT SELECT ON outbox_archive TO acp_app;

-- A failed attempt outlives its promise's move.
ALTER TABLE delivery_failures DROP CONSTRAINT delivery_failures_outbox_id_fkey;
COMMENT ON COLUMN delivery_failures.outbox_id IS 'The id of a row in outbox or outbox_archive.';

CREATE OR REPLACE VIEW outbox_states AS
SELECT
    o.*,
    CASE
        WHEN delivered_at IS NOT NULL THEN 'delivered'
        WHEN dead_lettered_at IS NOT NULL THEN 'dead_lettered'
        WHEN claim_token IS NOT NULL AND next_attempt_at > now() THEN 'in_flight'
        WHEN claim_token IS NULL AND last_error IS NOT NULL THEN 'retrying'
        ELSE 'pending'
    END AS state
FROM outbox AS o
UNION ALL
SELECT a.*, 'delivered' AS state
FROM outbox_archive AS a;
COMMENT ON VIEW outbox_states IS 'The outbox and its archive, with the one state each row is in at this moment: docs/architecture.md draws the machine.';

-- A relay claims topic by topic, each in the order of its due times.
DROP INDEX outbox_claimable;
CREATE INDEX outbox_claimable ON outbox (topic, next_attempt_at, id)
    WHERE delivered_at IS NULL AND dead_lettered_at IS NULL;

-- Every row is updated twice. With room for that on its own page Postgres logs what changed and not the message again.
-- Each update leaves a dead entry in every index, so vacuum comes by the number of dead rows, not by their share of the
-- table, and never skips the indexes because the dead are few among the delivered.
ALTER TABLE outbox SET (
    fillfactor = 70,
    autovacuum_vacuum_scale_factor = 0,
    autovacuum_vacuum_threshold = 20000,
    autovacuum_analyze_scale_factor = 0,
    autovacuum_analyze_threshold = 20000,
    autovacuum_vacuum_cost_delay = 0,
    vacuum_index_cleanup = on
);

-- Retention looks for what is oldest.
CREATE INDEX events_by_age ON events (ingested_at);
CREATE INDEX raw_payloads_by_age ON raw_payloads (fetched_at);
