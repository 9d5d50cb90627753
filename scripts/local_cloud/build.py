"""Builds template.yaml, for Lambda or for processes of a host.

The target decides which wheels are built in. Lambda's layers hold wheels for Lambda whatever the host is, as `sam
build` makes them. A host's layers hold wheels for that host, so its functions can run without a container.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import sys
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from local_cloud import tools
from local_cloud.template import read_template
from local_cloud.workspace import locked

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from local_cloud.workspace import Workspace

PYTHON_VERSION = "3.13"
TEMPLATE = "template.yaml"
_NOT_SHIPPED = {".DS_Store", ".lock"}


def build_for_lambda(workspace: Workspace, folder: Path, *, architecture: str | None = None) -> Path:
    """Builds with Lambda's wheels into a folder, as plain `sam build` does. Returns the built template.

    `architecture` None is the template's default.
    """
    overrides = ["--parameter-overrides", f"Architecture={architecture}"] if architecture else []
    tools.sam(workspace, ["build", f"--build-dir={folder}", "--parallel", *overrides], log="sam build for Lambda")
    return folder / TEMPLATE


def build_for_containers(workspace: Workspace, *, on_wait: Callable[[str], object]) -> str:
    """Runs plain `sam build` for `sam local`, unless the sources are unchanged; returns in words whether it did."""
    built = workspace.checkout / ".aws-sam" / "build" / TEMPLATE
    sources = [workspace.checkout / name for name in (TEMPLATE, "samconfig.toml", "functions", "layers")]
    stamp = workspace.home / "build" / "containers.stamp"
    with locked(stamp, "build", on_wait=on_wait):
        if _is_built(built, stamp, inputs := digest(sources)):
            return "as it was"
        tools.sam(workspace, ["build"], log="sam build for containers")
        stamp.write_text(f"{inputs} {digest([built])}")
    return "done"


def _is_built(built: Path, stamp: Path, inputs: str) -> bool:
    """Whether we made what is there, from the same inputs; somebody's `sam build` may have had other parameters."""
    return built.exists() and stamp.exists() and stamp.read_text() == f"{inputs} {digest([built])}"


def build_for_host(workspace: Workspace) -> Path:
    """Builds with this host's wheels. Returns the built template."""
    from samcli.yamlhelper import yaml_dump  # noqa: PLC0415  as read_template does

    template = read_template(workspace.checkout / TEMPLATE)
    for resource in template["Resources"].values():
        if resource["Type"] == "AWS::Serverless::LayerVersion":
            source = workspace.checkout / resource["Properties"]["ContentUri"]
            resource["Properties"]["ContentUri"] = str(build_layer(workspace, source, workspace.layers))
            # The layers are built already, so SAM only has to pass them on.
            resource.pop("Metadata", None)
    derived, built = workspace.build / TEMPLATE, workspace.build / "sam"
    derived.parent.mkdir(parents=True, exist_ok=True)
    derived.write_text(yaml_dump(template), encoding="utf-8")
    tools.sam(
        workspace,
        ["build", f"--template-file={derived}", f"--base-dir={workspace.checkout}", f"--build-dir={built}"],
        log="sam build",
    )
    return built / TEMPLATE


def build_layer(workspace: Workspace, source: Path, folder: Path, *, platform: str | None = None) -> Path:
    """Returns the layer in `source` as an archive: its locked wheels, and the packages beside its requirements.txt.

    The wheels are this host's, or those of a `platform` in uv's words (aarch64-apple-darwin). It is an archive because
    SAM passes an archive on unchanged, but packs a folder again at each deployment.
    """
    requirements = source / "requirements.txt"
    packages = sorted(path.parent for path in source.glob("*/__init__.py"))
    wheels, layer = folder / source.name, folder / f"{source.name}.zip"
    if not _is_stamped(wheels, stamp := digest([requirements], platform or "host")):
        shutil.rmtree(wheels, ignore_errors=True)
        _install(workspace, requirements, wheels, platform)
        _stamp(wheels, stamp)
    if not _is_stamped(layer, stamp := stamp + digest(packages)):
        _archive(layer, [wheels, *packages])
        _stamp(layer, stamp)
    return layer


def _install(workspace: Workspace, requirements: Path, target: Path, platform: str | None) -> None:
    tools.uv(
        workspace,
        [
            "pip",
            "install",
            f"--target={target}",
            f"--python-version={PYTHON_VERSION}",
            f"--python={sys.executable}",
            *([f"--python-platform={platform}"] if platform else []),
            # A wheel that is built here would fit this machine alone.
            "--only-binary=:all:",
            "--require-hashes",
            f"--requirement={requirements}",
        ],
        log=f"layer {requirements.parent.name}",
    )


def _archive(archive: Path, folders: Sequence[Path]) -> None:
    """Writes the content of the first folder, and the further folders whole, below python/.

    The bytes depend on content alone.
    """
    wheels, *packages = folders
    contents = [(wheels, path) for path in _files(wheels)]
    contents += [(package.parent, path) for package in packages for path in _files(package)]
    unfinished = archive.with_name(f"{archive.name}.unfinished")
    with zipfile.ZipFile(unfinished, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
        for base, path in contents:
            entry = zipfile.ZipInfo(f"python/{path.relative_to(base)}", date_time=(1980, 1, 1, 0, 0, 0))
            entry.external_attr = (stat.S_IFREG | (0o755 if os.access(path, os.X_OK) else 0o644)) << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            file.writestr(entry, path.read_bytes())
    # Another local cloud of this checkout may be deploying the old archive.
    unfinished.replace(archive)


def _files(folder: Path) -> Iterator[Path]:
    """Yields all files below a folder in a fixed order, through symbolic links, without Python's caches."""
    for parent, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if name != "__pycache__")
        yield from (Path(parent) / name for name in sorted(names) if name not in _NOT_SHIPPED)


def digest(paths: Sequence[Path], *words: str) -> str:
    """Returns the SHA-256 of the names and contents of files and folders, as hexadecimal text."""
    digest = hashlib.sha256("\0".join(words).encode())
    for path in paths:
        for file in _files(path) if path.is_dir() else [path]:
            digest.update(f"\0{file.relative_to(path.parent)}\0".encode() + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def _is_stamped(path: Path, stamp: str) -> bool:
    """Whether `path` was finished, from exactly the inputs whose digest is `stamp`."""
    record = _stamp_of(path)
    return path.exists() and record.exists() and record.read_text() == stamp


def _stamp(path: Path, stamp: str) -> None:
    _stamp_of(path).write_text(stamp)


def _stamp_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.stamp")
