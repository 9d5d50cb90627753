"""Runs OperationsFunction as deployed, functions/operations/app.py, until nothing is planning or running.

Options: remaining_seconds (the time that the invocation seems to have left).
"""

import importlib
from typing import Any

from bench.child import Parent
from bench.measured_relay import lambda_context


def main() -> None:
    """Prepares, waits for the start, works, and reports what the function returned."""
    parent = Parent()
    options = parent.options()
    app: Any = importlib.import_module("app")
    app.database().connection()
    parent.wait_for_go()
    parent.report(app.handler({}, lambda_context(options["remaining_seconds"])))


if __name__ == "__main__":
    main()
