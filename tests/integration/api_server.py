"""The API on loopback for the tests of acp: as a deployment, or as the API of the stand-in of the local cloud."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.conftest import TestDatabase
from tests.integration.ops_api.client import TOKEN
from tests.integration.ops_api.server import ApiServer
from tests.integration.running_cloud import RunningCloud

from local_cloud.run_state import RunState

__all__ = ["ApiServer", "lead_to", "no_deployment", "serving"]


@contextmanager
def serving(database: TestDatabase) -> Iterator[ApiServer]:
    """Serves the API until the block ends."""
    api = ApiServer(database, TOKEN)
    try:
        yield api
    finally:
        api.close()


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
