"""Fixtures of the operations API's tests: a client of the function, with settings or a database of its own."""

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from tests.integration.ops_api.client import RUNS, TOKEN, VARIABLES, Client, Load


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Iterator[Load]:
    with ExitStack() as stack:

        def load(function: str = "ops_api", **variables: str) -> Client:
            for variable in VARIABLES:
                monkeypatch.delenv(variable, raising=False)
            token = {} if "API_TOKEN_SECRET_ARN" in variables else {"API_TOKEN": TOKEN}
            for variable, value in (RUNS | token | variables).items():
                monkeypatch.setenv(variable, value)
            client = Client(function)
            stack.callback(client.function.close)
            return client

        yield load


@pytest.fixture
def api(load: Load, database: Any) -> Client:
    return with_settings(load(DATABASE_URL=database.url("acp_reader")))


@pytest.fixture
def commands(load: Load, database: Any) -> Client:
    """CommandApiFunction; nothing can be started by it."""
    return with_settings(load("command_api", DATABASE_URL=database.url("acp_command")))


def with_settings(client: Client) -> Client:
    """Lets the function read its settings now: those of the next function replace them."""
    client.function.module.settings()
    return client
