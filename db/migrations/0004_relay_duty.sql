-- Of the relays that linger, one is on duty. The next scheduled one takes over, and the one before it goes.

CREATE TABLE relay_duty (
    only_one boolean     PRIMARY KEY DEFAULT true CHECK (only_one),
    token    uuid        NOT NULL,
    name     text        NOT NULL CHECK (name <> ''),
    since    timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE relay_duty IS 'The relay that lingers, if any. Two at once do no harm: this saves their cost, and leaves no gap between them.';
GRANT SELECT, INSERT, UPDATE, DELETE ON relay_duty TO acp_app;
