-- Finance. SignalLab's paper account: what the actions that were released did to it. No money moves.

CREATE TABLE paper_accounts (
    account    text        PRIMARY KEY CHECK (account <> ''),
    currency   text        NOT NULL,
    cash_micros bigint     NOT NULL,
    opened_at  timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE paper_accounts IS 'Cash of each paper account, in millionths of its currency.';

CREATE TABLE paper_positions (
    account    text   NOT NULL REFERENCES paper_accounts (account),
    source     text   NOT NULL,
    entity_id  text   NOT NULL,
    quantity_micros bigint NOT NULL,
    PRIMARY KEY (account, source, entity_id)
);
COMMENT ON TABLE paper_positions IS 'How many units an account holds, in millionths; negative where it is short.';

CREATE TABLE paper_orders (
    action_id       uuid        PRIMARY KEY REFERENCES actions (action_id),
    account         text        NOT NULL REFERENCES paper_accounts (account),
    source          text        NOT NULL,
    entity_id       text        NOT NULL,
    side            text        NOT NULL CHECK (side IN ('buy', 'sell')),
    quantity_micros bigint      NOT NULL CHECK (quantity_micros > 0),
    placed_at       timestamptz NOT NULL DEFAULT clock_timestamp(),
    fill_after      timestamptz NOT NULL,
    filled_at       timestamptz,
    fill_price      double precision,
    fill_event_id   uuid,
    CONSTRAINT paper_orders_fill_is_whole CHECK (
        (filled_at IS NULL) = (fill_price IS NULL) AND (filled_at IS NULL) = (fill_event_id IS NULL)
    )
);
COMMENT ON TABLE paper_orders IS 'One order per executed action; it is filled at the next bar after fill_after.';

GRANT SELECT, INSERT, UPDATE ON paper_accounts, paper_positions, paper_orders TO acp_action;
GRANT SELECT ON paper_accounts, paper_positions, paper_orders TO acp_decide, acp_gatekeeper, acp_reader;
