"""The bench measures what the relay achieves and what it costs, each figure beside a bare loop or a limit."""
