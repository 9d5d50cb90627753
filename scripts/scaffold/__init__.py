"""The first files of a new consumer or migration."""
