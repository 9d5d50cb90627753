-- Backfill. Events that are stored without being promised to anybody, and the pieces of files until they are ingested.

-- Stores events and their messages as insert_events does, and promises the messages to nobody: a replay does, if
-- somebody wants it to.
CREATE FUNCTION insert_unpromised_events(given_events json) RETURNS TABLE (topic text, unsubscribed integer)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, public, pg_temp
AS $$
BEGIN
    RETURN QUERY SELECT * FROM write_events(given_events, false, '^(decisions|agents|gatekeeper|client)\.');
END
$$;


CREATE TABLE backfill_pieces (
    file_sha256  text        NOT NULL CHECK (file_sha256 ~ '^[0-9a-f]{64}$'),
    number       integer     NOT NULL CHECK (number BETWEEN 1 AND 2000),
    sha256       text        NOT NULL,
    observations integer     NOT NULL CHECK (observations BETWEEN 1 AND 5000),
    body         text        NOT NULL,
    uploaded_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (file_sha256, number),
    CONSTRAINT backfill_pieces_are_bounded CHECK (octet_length(body) <= 1024 * 1024),
    CONSTRAINT backfill_pieces_are_whole CHECK (sha256 = encode(sha256(convert_to(body, 'UTF8')), 'hex')),
    CONSTRAINT backfill_pieces_say_how_many CHECK (json_array_length(body::json) = observations)
);
COMMENT ON TABLE backfill_pieces IS 'A file''s observations, as acp has read them, until a backfill has ingested them.';
COMMENT ON COLUMN backfill_pieces.file_sha256 IS 'The hash over the hashes of all pieces in order: the same file has the same.';
COMMENT ON COLUMN backfill_pieces.body IS 'JSON: a list of observations, each with entity_id, entity_type, event_type, series, occurred_at and payload.';
CREATE INDEX backfill_pieces_by_age ON backfill_pieces (uploaded_at);


-- Keeps a piece of a file. Once more the same changes nothing; another one under the same number is refused. Returns
-- whether it is new. What was uploaded and never ingested is forgotten after a week; until then there is room for 4 GiB.
CREATE FUNCTION keep_backfill_piece(
    of_file text, new_number integer, new_sha256 text, how_many integer, new_body text
) RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, public, pg_temp
AS $$
DECLARE
    kept_sha256 text;
BEGIN
    DELETE FROM backfill_pieces WHERE uploaded_at < now() - interval '7 days';
    IF (SELECT count(*) FROM backfill_pieces) >= 4096 THEN
        RAISE EXCEPTION 'a piece refused: 4096 pieces of files wait to be ingested'
            USING ERRCODE = 'program_limit_exceeded', HINT = 'Start or cancel the backfills that they belong to.';
    END IF;
    INSERT INTO backfill_pieces (file_sha256, number, sha256, observations, body)
    VALUES (of_file, new_number, new_sha256, how_many, new_body)
    ON CONFLICT (file_sha256, number) DO NOTHING;
    IF FOUND THEN
        RETURN true;
    END IF;
    SELECT piece.sha256 INTO kept_sha256
    FROM backfill_pieces AS piece
    WHERE piece.file_sha256 = of_file AND piece.number = new_number;
    IF kept_sha256 IS DISTINCT FROM new_sha256 THEN
        RAISE EXCEPTION 'a piece refused: piece % of this file is another one', new_number
            USING ERRCODE = 'unique_violation';
    END IF;
    RETURN false;
END
$$;

-- Forgets a file's pieces: they are ingested, or nobody wants them any more.
CREATE FUNCTION forget_backfill_pieces(of_file text) RETURNS bigint
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, public, pg_temp
AS $$
DECLARE
    forgotten bigint;
BEGIN
    DELETE FROM backfill_pieces WHERE file_sha256 = of_file;
    GET DIAGNOSTICS forgotten = ROW_COUNT;
    RETURN forgotten;
END
$$;


GRANT EXECUTE ON FUNCTION insert_unpromised_events TO acp_ingest;
GRANT SELECT ON backfill_pieces TO acp_ingest;
-- People upload pieces through the API; the operation looks whether all are there, and forgets them at its end.
GRANT EXECUTE ON FUNCTION keep_backfill_piece, forget_backfill_pieces TO acp_command;
GRANT EXECUTE ON FUNCTION forget_backfill_pieces TO acp_maintain;
GRANT SELECT (file_sha256, number, sha256, observations) ON backfill_pieces TO acp_maintain;
GRANT SELECT ON backfill_pieces TO acp_reader;
