"""Other queues on PostgreSQL, each a measured program in an environment of its own; ``bench.peering`` starts them."""
