-- A claim is bounded by bytes. Counted once, when the promise is made, they need not be found out by reading every
-- message that might be claimed: with bodies of a mebibyte that was most of a claim's work. Rewrites the table.

ALTER TABLE outbox
    ADD COLUMN payload_bytes integer NOT NULL GENERATED ALWAYS AS (octet_length(payload_json::text)) STORED;
COMMENT ON COLUMN outbox.payload_bytes IS 'Of the message''s body, as published.';

-- Moved there as it is; unknown of what was moved before.
ALTER TABLE outbox_archive ADD COLUMN payload_bytes integer;
