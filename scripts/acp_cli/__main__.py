"""`python -m acp_cli`, which scripts/acp runs."""

from acp_cli.cli import main

if __name__ == "__main__":
    main()
