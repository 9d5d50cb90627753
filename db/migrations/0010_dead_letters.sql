-- One list of dead letters: consumers say why they failed on a message, DeadLetterFunction takes what was given up on out of
-- the SQS queues, and people redrive it or discard it.

CREATE TABLE consume_failures (
    id           bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    subscription text        NOT NULL CHECK (subscription <> ''),
    message_id   text        NOT NULL CHECK (message_id <> ''),
    event_id     uuid,
    trace_id     uuid,
    attempt      integer     NOT NULL CHECK (attempt >= 0),
    failed_at    timestamptz NOT NULL DEFAULT now(),
    error        text        NOT NULL CHECK (error <> '')
);
COMMENT ON TABLE consume_failures IS 'Why consumers failed on messages: the newest ten failures of each. Written apart from the effect, which was rolled back.';
COMMENT ON COLUMN consume_failures.attempt IS 'How often the queue had given out the message; 0 where it did not say.';
CREATE INDEX consume_failures_of_a_message ON consume_failures (subscription, message_id, id);
CREATE INDEX consume_failures_by_event ON consume_failures (event_id) WHERE event_id IS NOT NULL;
CREATE INDEX consume_failures_by_time ON consume_failures (failed_at);


-- Records that a consumer failed on a message. Of one message the newest ten failures are kept.
CREATE FUNCTION record_consume_failure(
    of_subscription text, of_message text, of_event uuid, of_trace uuid, nth integer, why text
) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, public, pg_temp
AS $$
BEGIN
    INSERT INTO consume_failures (subscription, message_id, event_id, trace_id, attempt, error)
    VALUES (left(of_subscription, 128), left(of_message, 128), of_event, of_trace, nth, left(why, 1024));
    DELETE FROM consume_failures
    WHERE id IN (
        SELECT id
        FROM consume_failures
        WHERE subscription = left(of_subscription, 128) AND message_id = left(of_message, 128)
        ORDER BY id DESC
        OFFSET 10
    );
END
$$;


-- What bytes say as JSON; null where they are none.
CREATE FUNCTION json_of(body bytea) RETURNS jsonb
LANGUAGE plpgsql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN convert_from(body, 'UTF8')::jsonb;
EXCEPTION
    WHEN data_exception OR program_limit_exceeded THEN
        RETURN NULL;
END
$$;


-- Stores messages of SQS's dead-letter queues as dead letters, and returns the new ones: a message is known by its queue
-- and id, and stored once. Bodies come in base64. A body that says what the outbox has for this event and the
-- subscription's topic can be redriven: the outbox's own text is sent. Of an event that was erased (it is gone, and marked as processed) neither body nor
-- reason nor attributes are kept. Why it failed is what its consumer recorded last, unless the message says so itself.
CREATE FUNCTION store_dead_letters(given json) RETURNS TABLE (
    letter_id bigint,
    kind text,
    queue text,
    message_id text,
    subscription text,
    topic text,
    event_id uuid,
    trace_id uuid,
    attempts integer,
    reason text,
    is_redrivable boolean
)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, public, pg_temp
SET plan_cache_mode = force_custom_plan
AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
    WITH letter AS MATERIALIZED (
        SELECT DISTINCT ON (queue, message_id)
            letter.*,
            decode(body_base64, 'base64') AS body,
            NOT EXISTS (SELECT FROM events WHERE events.event_id = letter.event_id)
                AND EXISTS (SELECT FROM processed_events AS processed WHERE processed.event_id = letter.event_id) AS is_erased
        FROM json_to_recordset(given) AS letter (
            kind text, queue text, message_id text, subscription text, body_base64 text, attributes jsonb, receives integer,
            sent_at timestamptz, event_id uuid, event_type text, trace_id uuid, reason text
        )
    )
    INSERT INTO dead_letters (
        kind, outbox_id, subscription, operation_id, delivery_attempts, reason, topic, event_id, event_type, trace_id, queue,
        message_id, sent_at, body, attributes
    )
    SELECT
        letter.kind,
        message.id,
        letter.subscription,
        delivery.operation_id,
        greatest(failure.attempt, letter.receives, 0),
        coalesce(
            CASE WHEN letter.is_erased THEN 'what it was about is erased' END,
            letter.reason,
            failure.error,
            'no reason recorded: the consumer was killed, timed out or did not reach Postgres before it could say'
        ),
        ordered.topic,
        letter.event_id,
        letter.event_type,
        letter.trace_id,
        letter.queue,
        letter.message_id,
        letter.sent_at,
        CASE WHEN letter.is_erased THEN '' ELSE letter.body END,
        CASE WHEN NOT letter.is_erased THEN letter.attributes END
    FROM letter
    LEFT JOIN subscriptions AS ordered ON ordered.name = letter.subscription
    LEFT JOIN outbox AS message
        ON message.event_id = letter.event_id
        AND message.topic = ordered.topic
        -- An emulator may write a JSON body anew before it hands it over.
        AND (
            convert_to(message.payload_json::text, 'UTF8') = letter.body
            OR message.payload_json::jsonb = json_of(letter.body)
        )
    LEFT JOIN deliveries AS delivery
        ON delivery.outbox_id = message.id
        AND delivery.subscription = letter.subscription
        AND delivery.message_id = letter.message_id
    LEFT JOIN LATERAL (
        SELECT attempt, error
        FROM consume_failures AS failed
        WHERE failed.subscription = letter.subscription AND failed.message_id = letter.message_id
        ORDER BY failed.id DESC
        LIMIT 1
    ) AS failure ON true
    ORDER BY letter.queue, letter.message_id
    ON CONFLICT (queue, message_id) DO NOTHING
    RETURNING
        id, kind, queue, message_id, subscription, topic, event_id, trace_id, delivery_attempts, reason,
        outbox_id IS NOT NULL;
END
$$;


-- Discards open dead letters for good, as one operation. Returns its id and the letters' ids; null and none if none of them
-- was open any more.
CREATE FUNCTION discard_dead_letters(letter_ids bigint[], because text, requester text, chosen jsonb)
RETURNS TABLE (operation_id uuid, discarded bigint[])
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, public, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    new_operation uuid := gen_random_uuid();
    who text := who_operates(requester, 'discard');
    resolved bigint[];
BEGIN
    IF coalesce(trim(because), '') = '' OR coalesce(trim(who), '') = '' THEN
        RAISE EXCEPTION 'a discard without a reason, or without the name of who asks, is refused' USING ERRCODE = 'check_violation';
    END IF;
    WITH gone AS (
        UPDATE dead_letters
        SET resolution = 'discarded', resolved_at = now(), resolved_by = who, resolved_because = because
        WHERE id = ANY (letter_ids) AND resolution IS NULL
        RETURNING id
    )
    SELECT array_agg(id ORDER BY id) INTO resolved FROM gone;
    IF resolved IS NULL THEN
        RETURN QUERY SELECT NULL::uuid, ARRAY[]::bigint[];
        RETURN;
    END IF;
    INSERT INTO operations (operation_id, kind, filter, state, progress, requested_by, reason, started_at, finished_at)
    VALUES (
        new_operation, 'discard', chosen, 'done', jsonb_build_object('dead_letters', cardinality(resolved)), who, because, now(), now()
    );
    RETURN QUERY SELECT new_operation, resolved;
END
$$;


-- Every function that consumes says why it failed, and reads no failure.
GRANT EXECUTE ON FUNCTION record_consume_failure
    TO acp_consume, acp_detect, acp_decide, acp_agent, acp_gatekeeper, acp_action;
GRANT EXECUTE ON FUNCTION store_dead_letters TO acp_maintain;
GRANT SELECT ON consume_failures TO acp_reader;
-- The relay counts the open ones for the alarm.
GRANT SELECT (resolution) ON dead_letters TO acp_relay;
GRANT SELECT ON dead_letters TO acp_command;
GRANT EXECUTE ON FUNCTION discard_dead_letters TO acp_command;
