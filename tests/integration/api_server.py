"""The API on loopback: both of its functions behind an HTTP server, on the test's database."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import TestDatabase
from tests.integration.functions.invoked import Function
from tests.integration.ops_api.client import RUNS, TOKEN, VARIABLES, Client, asked_by
from tests.integration.ops_api.conftest import with_settings
from tests.integration.ops_api.gateway import Gateway
from tests.integration.running_cloud import RunningCloud
from werkzeug.serving import WSGIRequestHandler, make_server

from local_cloud.run_state import RunState


class Quiet(WSGIRequestHandler):
    """Logs nothing."""

    def log(self, type: str, message: str, *args: Any) -> None:  # noqa: A002 - werkzeug's name
        pass


@dataclass
class ApiServer:
    """An API that runs."""

    url: str
    commands: Client
    retrial: Function
    """RetrialFunction, which the API asks."""
    token: str = TOKEN
    started: list[str] = field(default_factory=list)
    """The functions that were started by it."""

    @property
    def options(self) -> tuple[str, ...]:
        """The options by which acp asks it."""
        return ("--url", self.url, "--token", self.token)

    def make_token(self, name: str, *scopes: str) -> str:
        answer = self.commands.ask("POST", "/tokens", {"name": name, "scopes": list(scopes), "reason": "a test"})
        assert answer.status == 201, answer.body
        token: str = answer.body["token"]
        return token


@contextmanager
def serving(database: TestDatabase, monkeypatch: pytest.MonkeyPatch) -> Iterator[ApiServer]:
    """Serves the API until the block ends."""
    clients = []
    for function, role in (("ops_api", "acp_reader"), ("command_api", "acp_command")):
        with monkeypatch.context() as environ:
            for variable in VARIABLES:
                environ.delenv(variable, raising=False)
            settings = {"API_TOKEN": TOKEN, "DATABASE_URL": database.url(role)} | RUNS
            for variable, value in settings.items():
                environ.setenv(variable, value)
            clients.append(with_settings(Client(function)))
    reads, commands = clients
    retrial = asked_by(reads, database.url("acp_reader"))
    # One request at a time, as one environment of a function has it.
    server = make_server("127.0.0.1", 0, Gateway(reads, commands), threaded=False, request_handler=Quiet)
    api = ApiServer(f"http://127.0.0.1:{server.server_port}", commands, retrial)
    monkeypatch.setattr(commands.function.module, "start_run", lambda name, **_: api.started.append(name))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield api
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
        for loaded in (retrial, *(client.function for client in clients)):
            loaded.close()


def no_deployment(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets nothing of the user's own environment or profiles name a deployment."""
    for variable in ("ACP_URL", "ACP_TOKEN", "ACP_PROFILE", "ACP_DATABASE_URL"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(folder))


def lead_to(api: ApiServer, cloud: RunningCloud, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the API that of the stand-in of the local cloud."""
    running = cloud.running

    def with_api() -> RunState:
        run = running()
        assert run.deployment is not None
        run.deployment.outputs["ApiUrl"] = api.url
        run.api_token = api.token
        return run

    monkeypatch.setattr(cloud, "running", with_api)
