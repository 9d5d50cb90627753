"""scripts/vendor: brings what the page ships of npm's packages, byte for byte, as vendor.lock names it."""

from __future__ import annotations

import argparse
import base64
import hashlib
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from local_cloud.workspace import CHECKOUT

if TYPE_CHECKING:
    from collections.abc import Sequence

UI: Final = CHECKOUT / "functions" / "ops_api" / "ui"
LOCK: Final = UI / "vendor.lock"
VENDOR: Final = UI / "vendor"


class NotAsLocked(Exception):
    """Raised when npm, or a file, has other bytes than the lock says."""


@dataclass(frozen=True, slots=True)
class VendoredFile:
    """A file of a package: where npm's archive has it, its name in the folder vendor, and its hash."""

    origin: str
    name: str
    sha256: str


@dataclass(frozen=True, slots=True)
class VendoredPackage:
    """A package of npm, with the files that are taken from it."""

    name: str
    version: str
    licence: str
    integrity: str
    """npm's own hash of the archive: ``sha512-`` and Base64."""
    files: tuple[VendoredFile, ...]


def read_vendor_lock(path: Path = LOCK) -> Sequence[VendoredPackage]:
    """Returns the packages of the lock, in its order."""
    return [
        VendoredPackage(
            name=one["name"],
            version=one["version"],
            licence=one["licence"],
            integrity=one["integrity"],
            files=tuple(VendoredFile(file["from"], file["to"], file["sha256"]) for file in one["files"]),
        )
        for one in tomllib.loads(path.read_text(encoding="utf-8"))["package"]
    ]


def fetch(package: VendoredPackage, folder: Path) -> dict[str, bytes]:
    """Returns the wanted files of npm's archive, by their names here. Raises NotAsLocked."""
    wanted = f"{package.name}@{package.version}"
    packed = subprocess.run(
        ["npm", "pack", wanted, "--silent", "--ignore-scripts", "--pack-destination", str(folder)],
        check=True,
        capture_output=True,
        text=True,
    )
    archive = folder / packed.stdout.split()[-1]
    found = "sha512-" + base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
    if found != package.integrity:
        msg = f"{wanted} has the integrity {found}, and vendor.lock says {package.integrity}: find out who changed it"
        raise NotAsLocked(msg)
    with tarfile.open(archive) as tar:
        contents = {}
        for file in package.files:
            member = tar.extractfile(f"package/{file.origin}")
            assert member is not None, f"{wanted} has no file {file.origin}"
            contents[file.name] = member.read()
    return contents


def main(arguments: Sequence[str]) -> int:
    """Fetches every file of the lock, and writes those that are as the lock says."""
    parser = argparse.ArgumentParser("scripts/vendor", description="Fetch what the page ships of npm's packages.")
    parser.add_argument("--update", action="store_true", help="write the files' new hashes into vendor.lock")
    update = parser.parse_args(arguments).update
    text = LOCK.read_text(encoding="utf-8")
    VENDOR.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for package in read_vendor_lock():
            contents = fetch(package, Path(folder))
            for file in package.files:
                sha256 = hashlib.sha256(contents[file.name]).hexdigest()
                if update:
                    line = f'to = "{file.name}", sha256 = "'
                    text = text.replace(f'{line}{file.sha256}"', f'{line}{sha256}"')
                elif sha256 != file.sha256:
                    msg = f"{file.name} of {package.name}@{package.version} is not as vendor.lock says: see --update"
                    raise NotAsLocked(msg)
                (VENDOR / file.name).write_bytes(contents[file.name])
    if update:
        LOCK.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
