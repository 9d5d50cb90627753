"""Consumers act on events; each event takes effect exactly once."""
