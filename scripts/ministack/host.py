"""Runs MiniStack behind the guard against web pages, and gives its functions another interpreter.

It is run by path, under MiniStack's interpreter. MiniStack starts a Python function with its own interpreter, so the
function would find MiniStack's packages, and a dependency that is missing from a layer would not be noticed.
$ACP_LAMBDA_PYTHON names the interpreter to use instead: of the functions' version, with boto3 and nothing else, as in
Lambda.
"""

import os
import sys
from pathlib import Path

import ministack.app

# A script that is run by path has only its own folder on the path.
sys.path.append(str(Path(__file__).parents[1]))

from loopback_guard.asgi import guarded

VARIABLE = "ACP_LAMBDA_PYTHON"

interpreter = Path(os.environ.pop(VARIABLE, ""))
if not (interpreter.is_absolute() and os.access(interpreter, os.X_OK)):
    sys.exit(f"{VARIABLE} must be the absolute path of a Python interpreter, not '{interpreter}'")
sys.executable = str(interpreter)
# By this variable acp recognises the service that it started; a function inherits the service's environment.
os.environ.pop("ACP_SERVICE", None)
sys.argv = [sys.argv[0]]
# MiniStack's main function serves whatever this name holds.
ministack.app.app = guarded(ministack.app.app)
ministack.app.main()
