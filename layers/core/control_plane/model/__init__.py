"""Pure logic without any I/O: the contract, ids, backoff, a delivery's outcomes. It imports no driver and no SDK."""
