"""Fixtures of the operations API's tests: a client of the function, with settings or a database of its own."""

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from tests.integration.ops_api.client import TOKEN, VARIABLES, Client, Load


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Iterator[Load]:
    with ExitStack() as stack:

        def load(**variables: str) -> Client:
            for variable in VARIABLES:
                monkeypatch.delenv(variable, raising=False)
            token = {} if "API_TOKEN_SECRET_ARN" in variables else {"API_TOKEN": TOKEN}
            for variable, value in (token | variables).items():
                monkeypatch.setenv(variable, value)
            client = Client()
            stack.callback(client.function.close)
            return client

        yield load


@pytest.fixture
def api(load: Load, database: Any) -> Client:
    return load(DATABASE_URL=database.url("acp_reader"))
