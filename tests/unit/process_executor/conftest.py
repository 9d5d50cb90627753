"""The fixture that starts a function's environment."""

import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.unit.process_executor.functions import LAMBDA_SETS, Start

from process_executor.environment import ExecutionEnvironment
from process_executor.process import FunctionSpec


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts an environment for a function whose app.py is the given code, and stops it after the test."""
    started: list[ExecutionEnvironment] = []

    def start(
        code: str,
        *,
        layers: tuple[Path, ...] = (),
        environment: dict[str, str] | None = None,
        timeout_s: float = 20,
        init_timeout_s: float = 20,
        handler: str = "app.handler",
    ) -> ExecutionEnvironment:
        folder = tmp_path / f"code-{len(started)}"
        folder.mkdir()
        (folder / "app.py").write_text(textwrap.dedent(code))
        spec = FunctionSpec(
            python=Path(sys.executable),
            handler=handler,
            code=folder,
            layers=layers,
            environment=LAMBDA_SETS | (environment or {}),
            timeout_s=timeout_s,
            memory_mb=256,
        )
        started.append(ExecutionEnvironment(spec, init_timeout_s=init_timeout_s))
        started[-1].start()
        return started[-1]

    yield start
    for environment in started:
        environment.stop()
