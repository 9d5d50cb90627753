"""The built layers hold the wheels of their platform, and the current code."""

from __future__ import annotations

import struct
import subprocess
import sys
import zipfile
from typing import TYPE_CHECKING

import pytest

from local_cloud.build import build_for_lambda, build_layer
from local_cloud.workspace import CHECKOUT, Workspace

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

pytestmark = pytest.mark.timeout(600)  # the first build fetches its wheels
LAYERS = ("core", "market_data")
MACH_O_ARM64 = struct.pack("<II", 0xFEEDFACF, 0x0100000C)
MACH_O_X86_64 = struct.pack("<II", 0xFEEDFACF, 0x01000007)
MACH_O_UNIVERSAL = struct.pack(">I", 0xCAFEBABE)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A workspace with the checkout's environments and caches, and a build of its own."""
    real = Workspace.from_environ({})
    return Workspace(CHECKOUT, real.home, tmp_path_factory.mktemp("state"))


def shared_objects(archive: Path) -> Mapping[str, bytes]:
    """Returns the first bytes of each compiled file, by its name."""
    with zipfile.ZipFile(archive) as file:
        return {name: file.read(name)[:20] for name in file.namelist() if name.endswith((".so", ".dylib"))}


def elf_machine(head: bytes) -> str:
    assert head[:4] == b"\x7fELF"
    return {62: "x86_64", 183: "aarch64"}[struct.unpack("<H", head[18:20])[0]]


def build(workspace: Workspace, layer: str, target: str | None) -> Path:
    folder = workspace.state / (target or "host")
    return build_layer(workspace, CHECKOUT / "layers" / layer, folder, platform=target)


@pytest.mark.parametrize("layer", LAYERS)
def test_a_layer_for_a_mac_holds_only_mac_wheels(workspace: Workspace, layer: str) -> None:
    for target, magic in (("aarch64-apple-darwin", MACH_O_ARM64), ("x86_64-apple-darwin", MACH_O_X86_64)):
        found = shared_objects(build(workspace, layer, target))
        assert found
        for name, head in found.items():
            assert head.startswith((magic, MACH_O_UNIVERSAL)), name


@pytest.mark.parametrize("layer", LAYERS)
def test_a_layer_for_linux_on_arm_holds_its_wheels_alone(workspace: Workspace, layer: str) -> None:
    found = shared_objects(build(workspace, layer, "aarch64-unknown-linux-gnu"))
    assert found
    assert {elf_machine(head) for head in found.values()} == {"aarch64"}


def test_the_host_s_layers_can_be_imported_by_the_host(workspace: Workspace, tmp_path: Path) -> None:
    for layer in LAYERS:
        with zipfile.ZipFile(build(workspace, layer, None)) as file:
            file.extractall(tmp_path)
    code = "import psycopg, pydantic, yfinance, control_plane; print(psycopg.pq.__impl__, control_plane.__file__)"
    completed = subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.insert(0, {str(tmp_path / 'python')!r}); {code}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert completed.returncode == 0, completed.stderr
    assert completed.stdout.split() == ["binary", str(tmp_path / "python" / "control_plane" / "__init__.py")]


def test_the_core_layer_ships_the_current_shared_code(workspace: Workspace) -> None:
    source = CHECKOUT / "layers" / "core"
    expected = {
        f"python/{path.relative_to(source)}": path.read_bytes()
        for path in (source / "control_plane").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    with zipfile.ZipFile(build(workspace, "core", None)) as file:
        shipped = {name: file.read(name) for name in file.namelist() if name.startswith("python/control_plane/")}
    assert shipped == expected


@pytest.mark.parametrize(("architecture", "machine"), [(None, "x86_64"), ("arm64", "aarch64")])
def test_sam_build_holds_lambda_wheels_and_the_shared_code(
    workspace: Workspace, architecture: str | None, machine: str
) -> None:
    built = build_for_lambda(workspace, workspace.state / f"lambda-{machine}", architecture=architecture).parent
    for path in ("__init__.py", "platform/rds-global-bundle.pem"):
        assert (built / "CoreLayer/python/control_plane" / path).exists()
    assert (built / "CoreLayer/python/certifi/cacert.pem").exists()
    assert (built / "MigrationFunction/migrations/0001_control_plane.sql").exists()
    for layer in ("CoreLayer", "MarketDataLayer"):
        found = [path.read_bytes()[:20] for path in (built / layer).rglob("*.so") if path.is_file()]
        assert found
        # The architecture is the stack's, whatever this machine's is.
        assert {elf_machine(head) for head in found} == {machine}
