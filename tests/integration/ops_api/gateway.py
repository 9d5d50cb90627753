"""API Gateway before the API's two functions, as a WSGI application."""

import base64
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qs, unquote

from tests.integration.ops_api.client import Client

from control_plane.api.routes import Route


class Gateway:
    """Passes each request on to the function that has its route, in the shape of the REST proxy."""

    def __init__(self, *clients: Client) -> None:
        self.routes: Sequence[tuple[Route, Client]] = [
            (route, client) for client in clients for route in client.function.module.api.routes
        ]

    def __call__(self, environ: Mapping[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        raw_path = environ.get("REQUEST_URI", environ["PATH_INFO"]).partition("?")[0]
        method = environ["REQUEST_METHOD"]
        there = [
            (route, client, found) for route, client in self.routes if (found := matched(route, raw_path)) is not None
        ]
        if not there:
            start_response("404 Not Found", [("Content-Type", "application/problem+json")])
            return [b"{}"]
        # As the gateway does: a method that no function has goes nowhere; here the first function says which there are.
        route, client, parameters = next((one for one in there if method in one[0].methods), there[0])
        headers = {
            name.removeprefix("HTTP_").replace("_", "-").title(): value
            for name, value in environ.items()
            if name.startswith("HTTP_") or name in {"CONTENT_TYPE"}
        }
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        answer = client.function(
            {
                "resource": route.path,
                "path": unquote(raw_path),
                "httpMethod": method,
                "headers": headers,
                "multiValueHeaders": {name: [value] for name, value in headers.items()},
                "multiValueQueryStringParameters": parse_qs(environ.get("QUERY_STRING", ""), keep_blank_values=True),
                "pathParameters": parameters,
                "requestContext": {"identity": {"sourceIp": "203.0.113.7"}},
                "body": base64.b64encode(body).decode(),
                "isBase64Encoded": True,
            }
        )
        status = HTTPStatus(answer["statusCode"])
        start_response(f"{int(status)} {status.phrase}", list(answer["headers"].items()))
        return [answer["body"].encode(errors="surrogatepass")]


def matched(route: Route, raw_path: str) -> Mapping[str, str] | None:
    """Returns the path's parameters, decoded, if the path is the route's; a slash at its end changes nothing."""
    pattern = "".join(f"(?P<{part[1:-1]}>[^/]+)" if part[0] == "{" else re.escape(part) for part in split(route.path))
    found = re.fullmatch(f"{pattern}/?", raw_path)
    return None if found is None else {name: unquote(value) for name, value in found.groupdict().items()}


def split(path: str) -> Sequence[str]:
    return [part for part in re.split(r"(\{\w+\})", path) if part]
