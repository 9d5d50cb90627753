"""The `acp` command: brings the pipeline up on this machine, and shows what it does."""
