"""Runs MiniStack behind the guard against web pages, with an interpreter of their own for its functions.

It is run by path, under MiniStack's interpreter.

MiniStack starts a Python function with the interpreter it runs under itself, so the function would find MiniStack's
packages, and a dependency that is missing from a layer would not show. $ACP_LAMBDA_PYTHON is the functions'
interpreter: of their version, with boto3 and nothing else, as in Lambda.
"""

import os
import sys
from pathlib import Path

import ministack.app

# Run by path: only this folder is on the path by itself.
sys.path.append(str(Path(__file__).parents[1]))

from loopback_guard.asgi import guarded

VARIABLE = "ACP_LAMBDA_PYTHON"

interpreter = Path(os.environ.pop(VARIABLE, ""))
if not (interpreter.is_absolute() and os.access(interpreter, os.X_OK)):
    sys.exit(f"{VARIABLE} must be the absolute path of a Python interpreter, not '{interpreter}'")
sys.executable = str(interpreter)
sys.argv = [sys.argv[0]]
# Its main serves whatever this name holds.
ministack.app.app = guarded(ministack.app.app)
ministack.app.main()
