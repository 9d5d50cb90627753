"""What the application stands on: settings, the connection, named queries, logs and metrics."""
