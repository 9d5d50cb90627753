"""acp installed alone, from a wheel: it asks a deployment, and says what it cannot do without a checkout."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
import sysconfig
import zipfile
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from typing import TYPE_CHECKING

import pytest
from tests.integration.api_server import ApiServer, serving

from local_cloud.workspace import CHECKOUT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.conftest import TestDatabase

# Without site, so that the environment's own way to the checkout's packages is not taken.
PROGRAM = """
import sys
sys.path[:0] = [{package!r}, {libraries!r}]
sys.argv[0] = "acp"
from acp_cli.cli import main
try:
    main()
finally:
    print(*sys.modules, file=open({modules!r}, "w"))
"""


class Installed:
    """The wheel's packages in a folder of their own, beside the libraries of this environment."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.modules = folder / "modules"

    def acp(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        program = PROGRAM.format(
            package=str(self.folder), libraries=sysconfig.get_path("purelib"), modules=str(self.modules)
        )
        return subprocess.run(
            [sys.executable, "-I", "-S", "-c", program, *arguments],
            check=False,
            env={"HOME": str(self.folder), "NO_COLOR": "1", "COLUMNS": "200"},
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=60,
        )


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder / "dist")]
    subprocess.run(build, cwd=CHECKOUT, check=True, capture_output=True, timeout=60)
    (wheel,) = (folder / "dist").iterdir()
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "package")
    return Installed(folder / "package")


@pytest.fixture
def api(database: TestDatabase) -> Iterator[ApiServer]:
    with serving(database) as served:
        yield served


def distributions_of(name: str) -> set[str]:
    """The distribution and all that it requires here, by normalized name."""
    found: set[str] = set()
    todo = [name]
    while todo:
        one = re.sub(r"[-_.]+", "-", todo.pop()).lower()
        if one in found:
            continue
        found.add(one)
        with contextlib.suppress(PackageNotFoundError):  # it is for another platform
            for line in requires(one) or []:
                requirement, _, marker = line.partition(";")
                # psycopg's binary part is an extra of it, and asked for.
                if "extra ==" not in marker or requirement.startswith("psycopg-binary"):
                    todo.append(re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0])
    return found


def test_a_deployment_is_asked_with_what_the_wheel_requires(installed: Installed, api: ApiServer) -> None:
    metadata = next(installed.folder.glob("*.dist-info")) / "METADATA"
    declared = re.findall(r"^Requires-Dist: ([A-Za-z0-9._-]+)", metadata.read_text(), flags=re.MULTILINE)
    allowed = set().union(*(distributions_of(one) for one in declared))
    providers = packages_distributions()
    own = {path.name for path in installed.folder.iterdir()}
    for command in (["status"], ["events"], ["decisions"], ["approvals"], ["dead-letters"], ["operations", "list"]):
        result = installed.acp(*api.options, *command)
        assert result.returncode == 0, (command, result.stderr)
        loaded = {name.partition(".")[0] for name in installed.modules.read_text().split()} - own
        needed = {one for name in loaded for one in providers.get(name, [])}
        assert {re.sub(r"[-_.]+", "-", one).lower() for one in needed} <= allowed, command


@pytest.mark.parametrize("command", ["up", "bench", "new"])
def test_what_needs_a_checkout_says_so(installed: Installed, command: str) -> None:
    result = installed.acp(command)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith(f"{command} works in a checkout alone")


def test_without_a_deployment_it_asks_which(installed: Installed) -> None:
    result = installed.acp("status")
    assert (result.returncode, result.stdout) == (2, "")
    assert "acp login NAME --url URL" in result.stderr


def test_it_tells_its_version(installed: Installed) -> None:
    assert re.fullmatch(r"acp \d+\.\d+\.\d+\n", installed.acp("--version").stdout)
