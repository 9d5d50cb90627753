"""What acts on events, each exactly once in effect."""
