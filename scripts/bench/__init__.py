"""The bench: what the relay takes and gives, each figure beside a bare loop or a limit, measured in one run."""
