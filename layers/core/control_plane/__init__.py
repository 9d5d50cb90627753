"""The AI Control Plane: it stores events together with their outbox messages, and delivers these at least once."""
