-- Finance. SignalLab's paper account: what the actions that were released did to it. No money moves.

CREATE TABLE paper_accounts (
    account             text        PRIMARY KEY CHECK (account <> ''),
    currency            text        NOT NULL,
    opening_cash_micros bigint      NOT NULL,
    cash_micros         bigint      NOT NULL,
    opened_at           timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE paper_accounts IS 'Cash of each paper account, in millionths of its currency: its opening balance and what its fills left of it.';

CREATE TABLE paper_positions (
    account                 text   NOT NULL REFERENCES paper_accounts (account),
    source                  text   NOT NULL,
    entity_id               text   NOT NULL,
    opening_quantity_micros bigint NOT NULL DEFAULT 0,
    quantity_micros         bigint NOT NULL,
    PRIMARY KEY (account, source, entity_id)
);
COMMENT ON TABLE paper_positions IS 'How many units an account holds, in millionths; negative where it is short.';

CREATE TABLE paper_orders (
    action_id         uuid        PRIMARY KEY REFERENCES actions (action_id),
    account           text        NOT NULL REFERENCES paper_accounts (account),
    source            text        NOT NULL,
    entity_id         text        NOT NULL,
    series            text        NOT NULL,
    side              text        NOT NULL CHECK (side IN ('buy', 'sell')),
    quantity_micros   bigint      NOT NULL CHECK (quantity_micros > 0),
    placed_at         timestamptz NOT NULL DEFAULT clock_timestamp(),
    fill_after        timestamptz NOT NULL,
    filled_at         timestamptz,
    fill_occurred_at  timestamptz CHECK (fill_occurred_at > fill_after),
    fill_price_micros bigint      CHECK (fill_price_micros > 0),
    fill_event_id     uuid,
    CONSTRAINT paper_orders_fill_is_whole CHECK (
        (filled_at IS NULL) = (fill_price_micros IS NULL)
        AND (filled_at IS NULL) = (fill_event_id IS NULL)
        AND (filled_at IS NULL) = (fill_occurred_at IS NULL)
    )
);
COMMENT ON TABLE paper_orders IS 'One order per executed action; it is filled at the open of the next bar after fill_after.';
CREATE INDEX paper_orders_open ON paper_orders (source, entity_id, series) WHERE filled_at IS NULL;

-- Something to lose: the replayed symbols and their live namesakes.
INSERT INTO paper_accounts (account, currency, opening_cash_micros, cash_micros)
VALUES ('paper', 'USD', 100000000000, 100000000000);
INSERT INTO paper_positions (account, source, entity_id, opening_quantity_micros, quantity_micros)
SELECT 'paper', source, entity_id, 100000000, 100000000
FROM unnest(ARRAY['yfinance', 'yfinance-replay']) AS source
CROSS JOIN unnest(ARRAY['AAPL', 'FB', 'GOOG', 'IBM', 'MSFT']) AS entity_id;

-- Places the order of an action, once, for whoever began its execution; it is filled by the next bar.
GRANT SELECT ON paper_accounts, paper_positions, paper_orders TO acp_action, acp_consume, acp_decide, acp_gatekeeper, acp_reader;
GRANT INSERT (action_id, account, source, entity_id, series, side, quantity_micros, fill_after) ON paper_orders TO acp_action;
-- SignalLab fills it, at the bar that it has just stored.
GRANT UPDATE (filled_at, fill_occurred_at, fill_price_micros, fill_event_id) ON paper_orders TO acp_action, acp_consume;
GRANT UPDATE (cash_micros) ON paper_accounts TO acp_action, acp_consume;
GRANT INSERT (account, source, entity_id, quantity_micros), UPDATE (quantity_micros) ON paper_positions TO acp_action, acp_consume;
GRANT SELECT ON signal_lab_bars TO acp_action, acp_decide, acp_gatekeeper;
