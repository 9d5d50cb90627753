"""Both local clouds as `acp up` starts them, empty, as targets for web pages."""

import os
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from local_cloud.aws import LocalCloud
from local_cloud.emulators.localstack import LocalStack
from local_cloud.emulators.ministack import MiniStack
from local_cloud.workspace import CHECKOUT, Workspace

SECRET = "read-by-a-page"
HEALTH = {"localstack": "/_localstack/health", "ministack": "/_ministack/health"}


class RunningEmulator:
    """An emulator that holds one queue and one secret."""

    def __init__(self, name: str, endpoint: str) -> None:
        self.name = name
        self.endpoint = endpoint
        self.port = urlsplit(endpoint).port or 0
        self.health = HEALTH[name]
        self._cloud = LocalCloud(endpoint)

    def made(self) -> list[str]:
        """Returns the names of all queues and stacks except the test's own queue."""
        stacks = self._cloud.cloudformation
        found = [url.rpartition("/")[2] for url in self._cloud.queues.list_queues().get("QueueUrls", [])]
        found += [stack["StackName"] for stack in stacks.list_stacks()["StackSummaries"]]
        return sorted(set(found) - {"own"})

    def fill(self) -> None:
        """Stores what a hostile page would like to read."""
        queue = self._cloud.queues.create_queue(QueueName="own")["QueueUrl"]
        self._cloud.queues.send_message(QueueUrl=queue, MessageBody=SECRET)
        self._cloud.secrets.create_secret(Name="own", SecretString=SECRET)


@pytest.fixture(scope="session", params=[LocalStack, MiniStack], ids=lambda emulator: emulator.name)
def emulator(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningEmulator]:
    home = Workspace.from_environ(os.environ).home
    workspace = Workspace(CHECKOUT, home, tmp_path_factory.mktemp("browser") / "state")
    emulator: LocalStack | MiniStack = request.param(workspace)
    emulator.prepare()
    endpoint = emulator.endpoint(None, None)
    try:
        emulator.start(endpoint)
        emulator.wait_until_ready(endpoint)
        running = RunningEmulator(emulator.name, endpoint)
        running.fill()
        yield running
    finally:
        emulator.stop()
