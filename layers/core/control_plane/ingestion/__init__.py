"""From a source to stored events."""
