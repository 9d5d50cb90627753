-- The API's own tables: tokens, the answers that are kept for a repeated request, and the audit. CommandApiFunction writes
-- them by the owner's functions alone, which ask for its login: people's logins are members of acp_command, too.
CREATE TABLE api_tokens (
    name         text        PRIMARY KEY CHECK (name ~ '^[a-z][a-z0-9_.-]{0,62}$' AND name <> 'root'),
    sha256       bytea       NOT NULL UNIQUE CHECK (octet_length(sha256) = 32),
    scopes       text[]      NOT NULL CHECK (
        cardinality(scopes) > 0 AND scopes <@ ARRAY['read', 'operate', 'approve', 'metrics', 'admin']
    ),
    created_at   timestamptz NOT NULL DEFAULT now(),
    created_by   text        NOT NULL,
    expires_at   timestamptz,
    revoked_at   timestamptz,
    revoked_by   text,
    last_used_at timestamptz,
    CONSTRAINT api_tokens_revoked_by_somebody CHECK ((revoked_at IS NULL) = (revoked_by IS NULL))
);
COMMENT ON TABLE api_tokens IS 'Who may call the API, and what for. The token itself is nowhere; the secret''s own token is called root and is not here.';
COMMENT ON COLUMN api_tokens.scopes IS 'All of its scopes, those that others imply included.';
COMMENT ON COLUMN api_tokens.last_used_at IS 'At most a minute behind.';

CREATE TABLE api_audit (
    id              bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at              timestamptz NOT NULL DEFAULT clock_timestamp(),
    token           text        NOT NULL CHECK (token <> ''),
    address         text        NOT NULL,
    agent           text        NOT NULL,
    route           text        NOT NULL CHECK (route <> ''),
    reason          text        NOT NULL,
    idempotency_key text        NOT NULL,
    before          jsonb,
    after           jsonb,
    status          integer     NOT NULL CHECK (status BETWEEN 200 AND 599)
);
COMMENT ON TABLE api_audit IS 'Every call of the API that changed something, written in the change''s own transaction.';
CREATE INDEX api_audit_by_token ON api_audit (token, id);
CREATE TRIGGER api_audit_is_immutable BEFORE UPDATE OR DELETE OR TRUNCATE ON api_audit
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

CREATE TABLE idempotency_keys (
    token          text        NOT NULL,
    key            text        NOT NULL,
    request_sha256 bytea       NOT NULL CHECK (octet_length(request_sha256) = 32),
    status         integer,
    body           json,
    at             timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (token, key)
);
COMMENT ON TABLE idempotency_keys IS 'What was answered to a request that changed something, for a day, so that the same request sent again changes nothing.';
CREATE INDEX idempotency_keys_by_age ON idempotency_keys (at);

-- A page of events is read by seq; these find an entity's and a type's without reading the others.
CREATE INDEX events_of_entity ON events (entity_id, seq);
CREATE INDEX events_of_type ON events (event_type, seq);


-- Raises unless the session is CommandApiFunction's: its own login, not that of a member.
CREATE FUNCTION check_is_api() RETURNS void
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, public, pg_temp
AS $$
BEGIN
    IF session_user <> 'acp_command' THEN
        RAISE EXCEPTION 'only the login acp_command itself speaks for the API''s tokens, and this is %', session_user
            USING ERRCODE = 'insufficient_privilege';
    END IF;
END
$$;

-- The token with this digest, and whether it is valid, revoked or expired; no row where there is none. Notes its use, at
-- most once a minute.
CREATE FUNCTION use_api_token(of_sha256 bytea) RETURNS TABLE (name text, scopes text[], state text)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, public, pg_temp
AS $$
#variable_conflict use_column
BEGIN
    UPDATE api_tokens SET last_used_at = clock_timestamp()
    WHERE sha256 = of_sha256 AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > clock_timestamp())
        AND (last_used_at IS NULL OR last_used_at < clock_timestamp() - interval '1 minute');
    RETURN QUERY
    SELECT
        name, scopes,
        CASE
            WHEN revoked_at IS NOT NULL THEN 'revoked'
            WHEN expires_at <= clock_timestamp() THEN 'expired'
            ELSE 'valid'
        END
    FROM api_tokens
    WHERE sha256 = of_sha256;
END
$$;

-- Makes a token: made, taken (its name was given before), lacking (its maker has not all of its scopes), outlives (it
-- would be valid for longer than its maker). root has all scopes, and no end.
CREATE FUNCTION make_api_token(
    made_by text, new_name text, new_sha256 bytea, new_scopes text[], expires timestamptz
) RETURNS text
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, public, pg_temp
AS $$
DECLARE
    makers_end timestamptz;
BEGIN
    PERFORM check_is_api();
    IF made_by <> 'root' THEN
        -- Its row is locked: a maker that is revoked meanwhile makes nothing.
        SELECT expires_at INTO makers_end FROM api_tokens
        WHERE name = made_by AND 'admin' = ANY (scopes) AND new_scopes <@ scopes AND revoked_at IS NULL
            AND (expires_at IS NULL OR expires_at > clock_timestamp())
        FOR SHARE;
        IF NOT FOUND THEN
            RETURN 'lacking';
        END IF;
        IF coalesce(expires, 'infinity') > makers_end THEN
            RETURN 'outlives';
        END IF;
    END IF;
    INSERT INTO api_tokens (name, sha256, scopes, created_by, expires_at)
    VALUES (new_name, new_sha256, new_scopes, made_by, expires)
    ON CONFLICT (name) DO NOTHING;
    RETURN CASE WHEN FOUND THEN 'made' ELSE 'taken' END;
END
$$;

-- Revokes a token, for good: revoked, already, or unknown.
CREATE FUNCTION revoke_api_token(by_token text, of_name text) RETURNS text
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, public, pg_temp
AS $$
BEGIN
    PERFORM check_is_api();
    UPDATE api_tokens SET revoked_at = clock_timestamp(), revoked_by = by_token WHERE name = of_name AND revoked_at IS NULL;
    IF FOUND THEN
        RETURN 'revoked';
    END IF;
    RETURN CASE WHEN EXISTS (SELECT FROM api_tokens WHERE name = of_name) THEN 'already' ELSE 'unknown' END;
END
$$;

-- Begins a call that changes something. is_new: nothing was answered under this key within a day, and the change may be
-- made. Otherwise what was answered is returned, and whether it was the same request. A call under the same key that is
-- under way is waited for.
CREATE FUNCTION begin_api_change(of_token text, of_key text, of_request bytea)
RETURNS TABLE (is_new boolean, is_same boolean, status integer, body json)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, public, pg_temp
AS $$
#variable_conflict use_column
BEGIN
    PERFORM check_is_api();
    DELETE FROM idempotency_keys
    WHERE token = of_token AND key = of_key AND at < clock_timestamp() - interval '24 hours';
    INSERT INTO idempotency_keys (token, key, request_sha256) VALUES (of_token, of_key, of_request)
    ON CONFLICT DO NOTHING;
    IF FOUND THEN
        RETURN QUERY SELECT true, true, NULL::integer, NULL::json;
        RETURN;
    END IF;
    RETURN QUERY
    SELECT false, request_sha256 = of_request, status, body FROM idempotency_keys WHERE token = of_token AND key = of_key;
END
$$;

-- Ends it: keeps the answer, and writes the audit's row.
CREATE FUNCTION end_api_change(
    of_token text, of_key text, of_address text, of_agent text, of_route text, because text,
    state_before json, state_after json, answer_status integer, answer_body json
) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, public, pg_temp
AS $$
BEGIN
    PERFORM check_is_api();
    UPDATE idempotency_keys SET status = answer_status, body = answer_body
    WHERE token = of_token AND key = of_key AND status IS NULL;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'no change is under way under this key' USING ERRCODE = 'check_violation';
    END IF;
    INSERT INTO api_audit (token, address, agent, route, reason, idempotency_key, before, after, status)
    VALUES (of_token, of_address, of_agent, of_route, because, of_key, state_before, state_after, answer_status);
END
$$;

-- Deletes answers that were kept for a day; one batch. Returns how many.
CREATE FUNCTION delete_kept_answers(batch_size integer) RETURNS bigint
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, public, pg_temp
AS $$
DECLARE
    deleted bigint;
BEGIN
    -- LIMIT takes null for no limit at all.
    IF batch_size IS NULL OR batch_size < 1 THEN
        RAISE EXCEPTION 'a batch of % rows refused: 1 is the least', coalesce(batch_size::text, 'no')
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    DELETE FROM idempotency_keys
    WHERE ctid = ANY (ARRAY(
        SELECT ctid FROM idempotency_keys
        WHERE at < now() - interval '24 hours'
        ORDER BY at
        LIMIT batch_size
        FOR UPDATE SKIP LOCKED
    ));
    GET DIAGNOSTICS deleted = ROW_COUNT;
    RETURN deleted;
END
$$;


-- OpsApiFunction and CommandApiFunction: whose token it is. To note that it was used is all that acp_reader may write.
GRANT EXECUTE ON FUNCTION use_api_token TO acp_reader, acp_command;
GRANT SELECT (name, scopes, created_at, created_by, expires_at, revoked_at, revoked_by, last_used_at) ON api_tokens
    TO acp_reader, acp_command;
GRANT SELECT ON api_audit TO acp_reader;

-- CommandApiFunction: by the owner's functions, and people's holds.
GRANT EXECUTE ON FUNCTION make_api_token, revoke_api_token, begin_api_change, end_api_change TO acp_command;
GRANT SELECT ON subscriptions, circuit_breakers TO acp_command;
GRANT INSERT (name, state, opened_at, held_by, held_reason) ON circuit_breakers TO acp_command;
GRANT UPDATE (state, opened_at, retry_at, held_by, held_reason) ON circuit_breakers TO acp_command;
GRANT DELETE ON circuit_breakers TO acp_command;

GRANT EXECUTE ON FUNCTION delete_kept_answers TO acp_maintain;
