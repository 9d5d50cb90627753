"""One file per source of signals."""
