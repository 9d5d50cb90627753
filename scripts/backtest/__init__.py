"""The backtest: real years through detector, engine, gatekeeper and outcome, and how good the forecasts were."""
