"""The `acp` command: its subcommands, and how what they show is rendered."""
