from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from samcli.yamlhelper import yaml_parse

from local_cloud import build, tools
from local_cloud.workspace import Workspace

if TYPE_CHECKING:
    from collections.abc import Sequence

TEMPLATE = """
Transform: AWS::Serverless-2016-10-31
Resources:
  CoreLayer:
    Type: AWS::Serverless::LayerVersion
    Metadata: {BuildMethod: python3.13}
    Properties: {ContentUri: layers/core}
  RelayFunction:
    Type: AWS::Serverless::Function
    Properties: {CodeUri: functions/relay, Layers: [!Ref CoreLayer]}
"""


class Tools:
    """Stand-ins for uv and SAM, as far as a build uses them: uv leaves a wheel's files in --target."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.uv_calls: list[Sequence[str]] = []
        self.sam_calls: list[Sequence[str]] = []
        monkeypatch.setattr(tools, "uv", self._uv)
        monkeypatch.setattr(tools, "sam", lambda _workspace, arguments, **_: self.sam_calls.append(arguments))

    def _uv(self, workspace: Workspace, arguments: Sequence[str], *, log: str) -> None:
        self.uv_calls.append(arguments)
        (target,) = [argument.removeprefix("--target=") for argument in arguments if argument.startswith("--target=")]
        wheel = Path(target) / "psycopg"
        (wheel / "__pycache__").mkdir(parents=True)
        for name in ("__init__.py", "_psycopg.so", "__pycache__/x.pyc"):
            (wheel / name).write_text(name)


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> Tools:
    return Tools(monkeypatch)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    checkout = tmp_path / "checkout"
    package = checkout / "layers" / "core" / "control_plane"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "__pycache__").mkdir()
    (package / "__pycache__" / "__init__.pyc").write_text("stale")
    (checkout / "db").mkdir()
    (checkout / "db" / "0001_first.sql").write_text("SELECT 1")
    (package / "migrations").symlink_to(checkout / "db")
    (package.parent / "requirements.txt").write_text("psycopg==3\n")
    (checkout / "template.yaml").write_text(TEMPLATE)
    return Workspace(checkout, tmp_path / "home", tmp_path / "home" / "state")


def layer(workspace: Workspace, platform: str | None = None) -> Path:
    return build.build_layer(
        workspace, workspace.checkout / "layers" / "core", workspace.layers / (platform or "host"), platform=platform
    )


def names(archive: Path) -> list[str]:
    with zipfile.ZipFile(archive) as file:
        return sorted(file.namelist())


def test_a_layer_holds_wheels_and_package_without_leftovers(workspace: Workspace, fakes: Tools) -> None:
    assert names(layer(workspace)) == [
        "python/control_plane/__init__.py",
        "python/control_plane/migrations/0001_first.sql",
        "python/psycopg/__init__.py",
        "python/psycopg/_psycopg.so",
    ]


def test_wheels_are_locked_prebuilt_and_for_the_requested_platform(workspace: Workspace, fakes: Tools) -> None:
    layer(workspace)
    layer(workspace, platform="aarch64-apple-darwin")
    host, mac = fakes.uv_calls
    for call in (host, mac):
        assert {"--require-hashes", "--only-binary=:all:", "--python-version=3.13"} <= set(call)
    assert not [argument for argument in host if argument.startswith("--python-platform")]
    assert "--python-platform=aarch64-apple-darwin" in mac


def test_an_edited_package_makes_a_new_layer_of_old_wheels(workspace: Workspace, fakes: Tools) -> None:
    first = layer(workspace).read_bytes()
    (workspace.checkout / "layers/core/control_plane/new.py").write_text("x = 1")
    assert "python/control_plane/new.py" in names(layer(workspace))
    assert layer(workspace).read_bytes() != first
    assert len(fakes.uv_calls) == 1


def test_a_new_lock_reinstalls_and_drops_removed_packages(workspace: Workspace, fakes: Tools) -> None:
    layer(workspace)
    (workspace.layers / "host" / "core" / "old_wheel.py").write_text("")
    (workspace.checkout / "layers/core/requirements.txt").write_text("psycopg==4\n")
    assert "python/old_wheel.py" not in names(layer(workspace))
    assert len(fakes.uv_calls) == 2


def test_an_interrupted_install_is_not_taken_for_a_whole_one(
    workspace: Workspace, fakes: Tools, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(workspace: Workspace, arguments: Sequence[str], *, log: str) -> None:
        (workspace.layers / "host" / "core").mkdir(parents=True)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tools, "uv", interrupted)
        with pytest.raises(KeyboardInterrupt):
            layer(workspace)
    assert "python/psycopg/__init__.py" in names(layer(workspace))


def test_the_same_content_is_the_same_archive(workspace: Workspace, fakes: Tools) -> None:
    first = layer(workspace)
    content = first.read_bytes()
    first.unlink()
    os.utime(workspace.checkout / "layers/core/control_plane/__init__.py", (1, 1))
    assert layer(workspace).read_bytes() == content


def test_the_hosts_template_changes_only_its_layers(workspace: Workspace, fakes: Tools) -> None:
    built = build.build_for_host(workspace)
    derived = yaml_parse((workspace.build / "template.yaml").read_text())
    core = derived["Resources"]["CoreLayer"]
    assert core["Properties"]["ContentUri"] == str(workspace.layers / "core.zip")
    assert "Metadata" not in core
    original = yaml_parse((workspace.checkout / "template.yaml").read_text())
    assert derived["Resources"]["RelayFunction"] == original["Resources"]["RelayFunction"]
    assert built == workspace.build / "sam" / "template.yaml"
    assert f"--base-dir={workspace.checkout}" in fakes.sam_calls[0]


def test_lambda_s_build_is_sam_s_own(workspace: Workspace, fakes: Tools) -> None:
    folder = workspace.home / "lambda"
    assert build.build_for_lambda(workspace, folder) == folder / "template.yaml"
    assert fakes.sam_calls[0][:2] == ["build", f"--build-dir={folder}"]
    assert not fakes.uv_calls
