"""Asks OpsApiFunction as deployed, functions/ops_api/app.py, for the same things of several databases, turn about.

Options: sides (side → the variable of the environment with its URL), requests (side → title → the requests' paths and
queries, of which each round asks the next), rounds. Each side is an environment of its own: the function is loaded once
for each, and warm. What it keeps for a moment (/flow, /health) is read again for each request.
"""

import importlib.util
import json
import os
import time
from functools import partial
from types import SimpleNamespace
from typing import Any, Final

from bench.child import Parent
from control_plane.api import flow

_TOKEN: Final = "the-token-of-the-bench-is-long-enough"  # noqa: S105  it opens nothing
_PATIENCE_SECONDS: Final = 60
"""For how long the function waits for the database: a busy machine answers late, and that is what is measured."""


def load(url: str) -> Any:
    """Returns the function's module, made again, with settings for a database."""
    os.environ |= {
        "DATABASE_URL": url,
        "API_TOKEN": _TOKEN,
        "RETRIAL_FUNCTION": "none",
        "HEALTH_MAX_PENDING_AGE_SECONDS": "604800",
    }
    spec = importlib.util.find_spec("app")
    assert spec is not None, "the function's folder is on the path"
    assert spec.loader is not None, "it is a file"
    app: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(app)
    app.PATIENCE_SECONDS = app.HEALTH_PATIENCE_SECONDS = _PATIENCE_SECONDS
    app.settings()
    return app


def ask(app: Any, request: dict[str, Any]) -> float:
    """Returns how many milliseconds the answer took. Ends the process if there is another answer than 200."""
    event = {
        "httpMethod": "GET",
        "path": request["path"],
        "queryStringParameters": request["query"],
        "multiValueQueryStringParameters": {name: [value] for name, value in request["query"].items()},
        "headers": {"Authorization": f"Bearer {_TOKEN}"},
        "multiValueHeaders": {"Authorization": [f"Bearer {_TOKEN}"]},
    }
    context = SimpleNamespace(
        aws_request_id="bench",
        function_name="ops_api",
        log_stream_name="bench",
        get_remaining_time_in_millis=lambda: 60_000,
    )
    app.health().expire()
    began = time.perf_counter()
    answer = app.handler(event, context)
    milliseconds = 1000 * (time.perf_counter() - began)
    if answer["statusCode"] != 200:
        msg = f"{request} was answered with {answer['statusCode']}: {answer['body'][:500]}"
        raise SystemExit(msg)
    items = json.loads(answer["body"]).get("items")
    if items is not None and len(items) != request["items"]:
        msg = f"{request} has {len(items)} items."
        raise SystemExit(msg)
    return milliseconds


def main() -> None:
    """Prepares, waits for the start, asks, and reports each request's milliseconds."""
    parent = Parent()
    options = parent.options()
    flow.FlowPictures = partial(flow.FlowPictures, keep_seconds=0)  # type: ignore[assignment, misc]
    apps = {side: load(os.environ[variable]) for side, variable in options["sides"].items()}
    requests: dict[str, dict[str, list[dict[str, Any]]]] = options["requests"]
    for side, app in apps.items():
        for those in requests[side].values():
            ask(app, those[0])
    parent.wait_for_go()
    taken: dict[str, dict[str, list[float]]] = {side: {title: [] for title in requests[side]} for side in apps}
    titles = list(next(iter(requests.values())))
    for number in range(options["rounds"]):
        for title in titles:
            # The side that is asked first takes turns, too.
            for side in list(apps)[:: 1 if number % 2 else -1]:
                those = requests[side][title]
                taken[side][title].append(round(ask(apps[side], those[number % len(those)]), 3))
    parent.report(taken)


if __name__ == "__main__":
    main()
