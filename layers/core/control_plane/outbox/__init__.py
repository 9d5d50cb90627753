"""The outbox: the relay claims pending deliveries, publishes their messages and settles them."""
