"""The market replay, the queue endpoint and the model endpoint ask the guard before they answer."""

from http.client import HTTPConnection
from urllib.parse import urlsplit

import pytest

from market_replay.server import serve as serve_market
from model_endpoint.client import serve as serve_models
from queue_endpoint.client import serve as serve_queues

PAGES = [{"Origin": "https://evil.example"}, {"Sec-Fetch-Site": "same-site"}, {"Host": "evil.example"}]


def status(url: str, method: str, path: str, headers: dict[str, str]) -> int:
    parts = urlsplit(url)
    connection = HTTPConnection(parts.hostname or "", parts.port, timeout=10)
    try:
        connection.request(method, path, headers=headers)
        return connection.getresponse().status
    finally:
        connection.close()


@pytest.mark.parametrize("headers", PAGES, ids=str)
def test_the_market_replay_refuses_web_pages(headers: dict[str, str]) -> None:
    with serve_market() as replay:
        assert status(replay.url, "GET", "/health", headers) == 403
        assert status(replay.url, "DELETE", "/faults", headers) == 403
        assert status(replay.url, "GET", "/health", {}) == 200


@pytest.mark.parametrize("headers", PAGES, ids=str)
def test_the_queue_endpoint_refuses_web_pages(headers: dict[str, str]) -> None:
    with serve_queues() as endpoint:
        assert status(endpoint.url, "POST", "/reset", headers) == 403
        assert status(endpoint.url, "GET", "/state", {}) == 200


@pytest.mark.parametrize("headers", PAGES, ids=str)
def test_the_model_endpoint_refuses_web_pages(headers: dict[str, str]) -> None:
    with serve_models() as endpoint:
        assert status(endpoint.url, "POST", "/reset", headers) == 403
        assert status(endpoint.url, "GET", "/ledger", headers) == 403
        assert status(endpoint.url, "GET", "/ledger", {}) == 200
