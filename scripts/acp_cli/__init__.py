"""The `acp` command: its subcommands, and the modules that render what they show."""
