"""Fixtures of the functions' tests: a function in an environment of its own, and an SQS for the relay."""

from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from moto.server import ThreadedMotoServer
from tests.integration.functions.invoked import NEEDED, VARIABLES, Function, Load


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Iterator[Load]:
    """Loads a function into an environment of its own, with the variables that it needs and those given."""
    with ExitStack() as stack:

        def load(name: str, **variables: str) -> Function:
            for variable in VARIABLES:
                monkeypatch.delenv(variable, raising=False)
            for variable, value in (NEEDED[name] | variables).items():
                monkeypatch.setenv(variable, value)
            function = Function(name)
            stack.callback(function.close)
            return function

        yield load


@pytest.fixture(scope="module")
def endpoint_url() -> Iterator[str]:
    """The URL of an SQS over HTTP, as the relay uses it."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()
