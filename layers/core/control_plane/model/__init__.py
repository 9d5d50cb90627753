"""What is true without any I/O: the contract, ids, backoff, a delivery's outcomes. Imports no driver and no SDK."""
