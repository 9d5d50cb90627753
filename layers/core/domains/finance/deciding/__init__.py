"""What finance plugs into the decision engine."""
