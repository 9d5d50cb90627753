-- The flow: how much of what happened, and how long it took. Whatever stores, settles, consumes or decides appends a row in
-- the same statement or transaction, so a count says what is committed, and nothing else. Each minute the rows are folded into
-- minutes and totals. A count is totals and deltas together, read in one snapshot: it never falls, and every reader sees the
-- same.

-- The upper bounds of the buckets that durations are counted in, in seconds.
CREATE FUNCTION flow_bounds() RETURNS double precision[] LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN ARRAY[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 1800]::double precision[];

-- The number of the bucket that a duration belongs to: how many bounds are below it. width_bucket counts those that are not
-- above, so this counts downwards, in the bounds negated; they are written out because every settled message is searched in
-- them, and a test holds the two lists equal.
CREATE FUNCTION flow_bucket(seconds double precision) RETURNS smallint LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN (cardinality(flow_bounds()) - width_bucket(
    -seconds,
    ARRAY[
        -1800, -900, -300, -60, -30, -10, -5, -2.5, -1, -0.5, -0.25, -0.1, -0.05, -0.025, -0.01, -0.005
    ]::double precision[]
))::smallint;


CREATE TABLE flow_deltas (
    at            timestamptz      NOT NULL DEFAULT clock_timestamp(),
    stage         text             NOT NULL,
    name          text             NOT NULL,
    outcome       text             NOT NULL,
    bucket        smallint,
    n             bigint           NOT NULL DEFAULT 1 CHECK (n > 0),
    seconds       double precision CHECK (seconds >= 0),
    trace_id      uuid,
    trace_seconds double precision,
    CONSTRAINT flow_deltas_are_measured_or_not CHECK ((bucket IS NULL) = (seconds IS NULL))
)
-- Each row is deleted within minutes. So autovacuum starts after a number of dead rows, not a share of the table.
WITH (
    autovacuum_vacuum_scale_factor = 0,
    autovacuum_vacuum_threshold = 5000,
    autovacuum_vacuum_insert_scale_factor = 0,
    autovacuum_vacuum_insert_threshold = 50000
);
COMMENT ON TABLE flow_deltas IS 'What happened in the last minutes: a row per statement, kind and bucket, appended by what did it. Folded into flow_minutes and flow_totals.';
COMMENT ON COLUMN flow_deltas.name IS 'The part of the stage: a subscription, topic, consumer, source, playbook, agent or type of action.';
COMMENT ON COLUMN flow_deltas.bucket IS 'Which bucket of flow_bounds() the durations are in; null where none was measured.';
COMMENT ON COLUMN flow_deltas.seconds IS 'The sum of the durations.';
COMMENT ON COLUMN flow_deltas.trace_id IS 'The trace of one of those that are counted, as an example, with its own duration in trace_seconds.';

CREATE TABLE flow_minutes (
    minute  timestamptz      NOT NULL,
    stage   text             NOT NULL,
    name    text             NOT NULL,
    outcome text             NOT NULL,
    n       bigint           NOT NULL,
    seconds double precision,
    PRIMARY KEY (minute, stage, name, outcome)
);
COMMENT ON TABLE flow_minutes IS 'How much happened in each minute of the last seven days.';

CREATE TABLE flow_totals (
    stage         text             NOT NULL,
    name          text             NOT NULL,
    outcome       text             NOT NULL,
    bucket        smallint,
    n             bigint           NOT NULL,
    seconds       double precision,
    newest_at     timestamptz      NOT NULL,
    trace_id      uuid,
    trace_seconds double precision,
    traced_at     timestamptz,
    CONSTRAINT flow_totals_key UNIQUE NULLS NOT DISTINCT (stage, name, outcome, bucket)
);
COMMENT ON TABLE flow_totals IS 'How much ever happened, without what is still in flow_deltas. Nothing lowers it: neither retention, erasure nor a rebuild.';

CREATE TRIGGER flow_deltas_are_immutable BEFORE UPDATE OR DELETE OR TRUNCATE ON flow_deltas
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

CREATE VIEW flow_counts AS
SELECT stage, name, outcome, bucket, sum(n)::bigint AS n, sum(seconds) AS seconds, max(newest_at) AS newest_at
FROM (
    SELECT stage, name, outcome, bucket, n, seconds, newest_at FROM flow_totals
    UNION ALL
    SELECT stage, name, outcome, bucket, n, seconds, at FROM flow_deltas
) AS both_of_them
GROUP BY stage, name, outcome, bucket;
COMMENT ON VIEW flow_counts IS 'How much ever happened, up to this moment.';


-- Folds what is older than a minute into minutes and totals, so many rows at most, and forgets minutes after seven days.
-- Returns how many rows it folded. Only one folds at a time; another one finds nothing to do.
CREATE FUNCTION fold_flow(most integer DEFAULT 100000) RETURNS bigint
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, public, pg_temp
SET plan_cache_mode = force_custom_plan
AS $$
DECLARE
    folded bigint;
BEGIN
    IF most IS NULL OR most < 1 THEN
        RAISE EXCEPTION 'a fold of % rows refused: 1 is the least', coalesce(most::text, 'no')
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF NOT pg_try_advisory_xact_lock(hashtextextended('fold_flow', 0)) THEN
        RETURN 0;
    END IF;
    PERFORM set_config('control_plane.retention', 'on', true);
    WITH gone AS (
        DELETE FROM flow_deltas
        WHERE ctid = ANY (ARRAY(
            SELECT ctid FROM flow_deltas WHERE at < clock_timestamp() - interval '1 minute' LIMIT most
        ))
        RETURNING *
    ),
    minutes AS (
        INSERT INTO flow_minutes AS kept (minute, stage, name, outcome, n, seconds)
        SELECT date_trunc('minute', at), stage, name, outcome, sum(n), sum(seconds)
        FROM gone
        GROUP BY date_trunc('minute', at), stage, name, outcome
        ON CONFLICT (minute, stage, name, outcome) DO UPDATE
        SET n = kept.n + excluded.n, seconds = coalesce(kept.seconds + excluded.seconds, kept.seconds, excluded.seconds)
    ),
    totals AS (
        INSERT INTO flow_totals AS kept (
            stage, name, outcome, bucket, n, seconds, newest_at, trace_id, trace_seconds, traced_at
        )
        SELECT
            stage, name, outcome, bucket, sum(n), sum(seconds), max(at),
            (array_agg(trace_id ORDER BY at DESC) FILTER (WHERE trace_id IS NOT NULL))[1],
            (array_agg(trace_seconds ORDER BY at DESC) FILTER (WHERE trace_id IS NOT NULL))[1],
            max(at) FILTER (WHERE trace_id IS NOT NULL)
        FROM gone
        GROUP BY stage, name, outcome, bucket
        ON CONFLICT ON CONSTRAINT flow_totals_key DO UPDATE
        SET
            n = kept.n + excluded.n,
            seconds = kept.seconds + excluded.seconds,
            newest_at = greatest(kept.newest_at, excluded.newest_at),
            trace_id = CASE WHEN excluded.traced_at IS NULL THEN kept.trace_id ELSE excluded.trace_id END,
            trace_seconds = CASE WHEN excluded.traced_at IS NULL THEN kept.trace_seconds ELSE excluded.trace_seconds END,
            traced_at = coalesce(excluded.traced_at, kept.traced_at)
    )
    SELECT count(*) INTO folded FROM gone;
    PERFORM set_config('control_plane.retention', 'off', true);
    DELETE FROM flow_minutes WHERE minute < now() - interval '7 days';
    RETURN folded;
END
$$;


-- Counts one message that a consumer has taken, in its effect's own transaction, with how long that was after its event was
-- stored; a replay says nothing about that. Returns whether it was new to the consumer.
CREATE FUNCTION count_consumed(of_consumer text, of_event uuid, is_new boolean, is_replay boolean) RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, public, pg_temp
AS $$
DECLARE
    consumed_at CONSTANT timestamptz := clock_timestamp();
    of_trace uuid;
    took double precision;
BEGIN
    IF is_new AND NOT is_replay THEN
        SELECT trace_id, greatest(extract(epoch FROM consumed_at - ingested_at), 0) INTO of_trace, took
        FROM events
        WHERE event_id = of_event;
    END IF;
    INSERT INTO flow_deltas (at, stage, name, outcome, bucket, seconds, trace_id, trace_seconds)
    VALUES (
        consumed_at, 'consumer', of_consumer, CASE WHEN is_new THEN 'processed' ELSE 'duplicate' END, flow_bucket(took), took,
        of_trace, took
    );
    RETURN is_new;
END
$$;

-- Counts how many fetches of a source succeeded and failed, in the transaction that stores what they brought.
CREATE FUNCTION count_fetches(of_source text, fetched integer, failed integer) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, public, pg_temp
AS $$
BEGIN
    INSERT INTO flow_deltas (stage, name, outcome, n)
    SELECT 'source', of_source, outcome, n
    FROM (VALUES ('fetched', fetched), ('failed', failed)) AS fetches (outcome, n)
    WHERE n > 0;
END
$$;

-- Counts what happens seldom, row by row: each of these tables has its own sentence.
CREATE FUNCTION count_row() RETURNS trigger
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, public, pg_temp
AS $$
DECLARE
    now_at CONSTANT timestamptz := clock_timestamp();
    stage text;
    name text;
    outcome text;
    since timestamptz;
    of_trace uuid;
    took double precision;
BEGIN
    CASE TG_TABLE_NAME
        WHEN 'decisions' THEN
            stage := 'decision';
            name := NEW.playbook;
            of_trace := NEW.trace_id;
            IF TG_OP = 'INSERT' THEN
                outcome := 'opened';
            ELSE
                outcome := NEW.state;
                since := NEW.opened_at;
            END IF;
        WHEN 'agent_calls' THEN
            stage := 'agent';
            name := NEW.agent;
            outcome := NEW.outcome;
            since := NEW.intended_at;
            of_trace := (SELECT trace_id FROM decisions WHERE decision_id = NEW.decision_id);
        WHEN 'verdicts' THEN
            stage := 'verdict';
            name := CASE WHEN NEW.is_shadow THEN 'shadow' ELSE 'binding' END;
            outcome := NEW.verdict;
        WHEN 'decision_steps' THEN -- a verdict of policies in shadow
            stage := 'verdict';
            name := 'shadow_policy';
            SELECT CASE WHEN told -> 'errors' = '[]' THEN told ->> 'verdict' ELSE 'error' END INTO outcome
            FROM (SELECT convert_from(NEW.body, 'UTF8')::jsonb) AS body (told);
        WHEN 'approval_requests' THEN
            stage := 'approval';
            name := 'person';
            outcome := 'requested';
        WHEN 'approvals' THEN
            stage := 'approval';
            name := 'person';
            outcome := CASE WHEN NEW.is_given THEN 'given' ELSE 'denied' END;
        WHEN 'actions' THEN
            stage := 'action';
            name := NEW.action_type;
            outcome := 'released';
        WHEN 'executions' THEN
            stage := 'action';
            name := (SELECT action_type FROM actions WHERE action_id = NEW.action_id);
            outcome := NEW.outcome;
        WHEN 'consume_failures' THEN
            stage := 'consumer';
            name := NEW.subscription;
            outcome := 'failed';
        WHEN 'dead_letters' THEN
            stage := 'queue';
            name := coalesce(NEW.subscription, NEW.queue);
            outcome := NEW.kind;
    END CASE;
    IF since IS NOT NULL THEN
        took := greatest(extract(epoch FROM now_at - since), 0);
    END IF;
    INSERT INTO flow_deltas (at, stage, name, outcome, bucket, seconds, trace_id, trace_seconds)
    VALUES (now_at, stage, name, outcome, flow_bucket(took), took, CASE WHEN took IS NOT NULL THEN of_trace END, took);
    RETURN NULL;
END
$$;

CREATE TRIGGER decisions_opened_are_counted AFTER INSERT ON decisions FOR EACH ROW EXECUTE FUNCTION count_row();
CREATE TRIGGER decisions_proposed_are_counted AFTER UPDATE ON decisions FOR EACH ROW
    WHEN (OLD.state <> 'proposed' AND NEW.state = 'proposed') EXECUTE FUNCTION count_row();
CREATE TRIGGER decisions_closed_are_counted AFTER UPDATE ON decisions FOR EACH ROW
    WHEN (OLD.closed_at IS NULL AND NEW.closed_at IS NOT NULL) EXECUTE FUNCTION count_row();
CREATE TRIGGER agent_calls_ended_are_counted AFTER UPDATE ON agent_calls FOR EACH ROW
    WHEN (OLD.outcome IS NULL AND NEW.outcome IS NOT NULL) EXECUTE FUNCTION count_row();
CREATE TRIGGER verdicts_are_counted AFTER INSERT ON verdicts FOR EACH ROW EXECUTE FUNCTION count_row();
CREATE TRIGGER shadow_verdicts_are_counted AFTER INSERT ON decision_steps FOR EACH ROW
    WHEN (NEW.kind = 'shadow_verdict') EXECUTE FUNCTION count_row();
CREATE TRIGGER approval_requests_are_counted AFTER INSERT ON approval_requests FOR EACH ROW EXECUTE FUNCTION count_row();
CREATE TRIGGER approvals_are_counted AFTER INSERT ON approvals FOR EACH ROW EXECUTE FUNCTION count_row();
CREATE TRIGGER actions_are_counted AFTER INSERT ON actions FOR EACH ROW EXECUTE FUNCTION count_row();
CREATE TRIGGER executions_are_counted AFTER INSERT ON executions FOR EACH ROW EXECUTE FUNCTION count_row();
CREATE TRIGGER consume_failures_are_counted AFTER INSERT ON consume_failures FOR EACH ROW EXECUTE FUNCTION count_row();
-- The relay's are counted by what settles.
CREATE TRIGGER dead_letters_of_queues_are_counted AFTER INSERT ON dead_letters FOR EACH ROW
    WHEN (NEW.kind <> 'relay') EXECUTE FUNCTION count_row();


GRANT EXECUTE ON FUNCTION count_fetches TO acp_ingest;
GRANT EXECUTE ON FUNCTION count_consumed TO acp_consume, acp_detect, acp_action;
GRANT EXECUTE ON FUNCTION fold_flow TO acp_maintain;
GRANT SELECT ON flow_deltas, flow_minutes, flow_totals, flow_counts TO acp_reader;
GRANT EXECUTE ON FUNCTION flow_bounds TO acp_reader;
