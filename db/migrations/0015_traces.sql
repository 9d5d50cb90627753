-- Traces: how far TraceFunction has exported what is recorded, and what it has met that was not over yet.

-- The order in which events become complete: once a transaction's number is below a snapshot's xmin, nothing is added to it.
CREATE INDEX events_in_order ON events (stored_by, seq);

CREATE TABLE trace_cursor (
    only_one    boolean     PRIMARY KEY DEFAULT true CHECK (only_one),
    stored_by   xid8        NOT NULL,
    seq         bigint      NOT NULL CHECK (seq >= 0),
    begun_at    timestamptz NOT NULL DEFAULT now(),
    advanced_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE trace_cursor IS 'How far the export of traces has come, in the order (stored_by, seq) of events; one row, once there is an export.';
COMMENT ON COLUMN trace_cursor.begun_at IS 'What was stored before it is not exported.';

CREATE TABLE waiting_traces (
    kind    text        NOT NULL CHECK (kind IN ('event', 'decision')),
    id      uuid        NOT NULL,
    since   timestamptz NOT NULL DEFAULT now(),
    look_at timestamptz NOT NULL DEFAULT now() + interval '30 seconds',
    PRIMARY KEY (kind, id)
);
COMMENT ON TABLE waiting_traces IS 'Events and decisions before the cursor whose spans are exported once more is not expected to be recorded of them.';
CREATE INDEX waiting_traces_by_look ON waiting_traces (look_at);


-- Returns how far the export is, and the transaction's number below which all is complete. The export begins now where it has
-- not begun, where that is asked for, and where the database was restored elsewhere: its transactions' numbers are lower then.
CREATE FUNCTION begin_traces(anew boolean) RETURNS TABLE (stored_by xid8, seq bigint, stored_before xid8, is_new boolean)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, public, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    horizon xid8 := pg_snapshot_xmin(pg_current_snapshot());
    begun boolean;
BEGIN
    INSERT INTO trace_cursor AS cursor (stored_by, seq) VALUES (horizon, 0)
    ON CONFLICT (only_one) DO UPDATE
    SET stored_by = excluded.stored_by, seq = excluded.seq, begun_at = now(), advanced_at = now()
    WHERE anew OR cursor.stored_by > excluded.stored_by
    RETURNING true INTO begun;
    IF begun THEN
        DELETE FROM waiting_traces;
    END IF;
    RETURN QUERY SELECT stored_by, seq, horizon, coalesce(begun, false) FROM trace_cursor;
END
$$;

-- Notes that a receiver has accepted everything between two positions but what still waits, and whatever of the waiting has
-- ended. Returns false, and changes nothing, where another run has moved the cursor meanwhile.
CREATE FUNCTION advance_traces(
    from_stored_by xid8, from_seq bigint, to_stored_by xid8, to_seq bigint, ended_events uuid[], ended_decisions uuid[],
    waiting_events uuid[], waiting_decisions uuid[]
) RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, public, pg_temp
AS $$
#variable_conflict use_column
BEGIN
    IF (to_stored_by, to_seq) < (from_stored_by, from_seq)
        OR (to_stored_by, to_seq) <> (from_stored_by, from_seq) AND to_stored_by >= pg_snapshot_xmin(pg_current_snapshot())
    THEN
        RAISE EXCEPTION 'the export of traces cannot move from (%, %) to (%, %)', from_stored_by, from_seq, to_stored_by, to_seq
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    UPDATE trace_cursor
    SET stored_by = to_stored_by, seq = to_seq, advanced_at = now()
    WHERE stored_by = from_stored_by AND seq = from_seq;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    DELETE FROM waiting_traces
    WHERE kind = 'event' AND id = ANY (ended_events) OR kind = 'decision' AND id = ANY (ended_decisions);
    INSERT INTO waiting_traces AS waiting (kind, id)
    SELECT DISTINCT kind, id
    FROM (
        SELECT 'event' AS kind, unnest(waiting_events) AS id
        UNION ALL
        SELECT 'decision', unnest(waiting_decisions)
    ) AS given
    ORDER BY kind, id
    ON CONFLICT (kind, id) DO UPDATE
    SET look_at = now() + least(greatest((now() - waiting.since) / 4, interval '30 seconds'), interval '15 minutes');
    RETURN true;
END
$$;


REVOKE ALL ON ALL FUNCTIONS IN SCHEMA public FROM PUBLIC;
GRANT EXECUTE ON FUNCTION begin_traces, advance_traces TO acp_reader;
GRANT SELECT ON trace_cursor, waiting_traces TO acp_reader;
