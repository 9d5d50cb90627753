"""`python -m acp_cli`, which scripts/acp runs."""

import sys

# scripts/acp names a folder for bytecode: without bytecode each command would compile its libraries again.
if sys.pycache_prefix is not None:
    sys.dont_write_bytecode = False

from acp_cli.cli import main

if __name__ == "__main__":
    main()
