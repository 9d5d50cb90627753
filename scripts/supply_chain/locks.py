"""Reads locks in the format that scripts/lock writes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from packaging.utils import canonicalize_name
from pip_requirements_parser import RequirementsFile

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Locked:
    """A package in a lock. `sha256` has the hash of each of its files that may be installed."""

    name: str
    version: str
    sha256: tuple[str, ...]


def read_lock(path: Path) -> list[Locked]:
    """Returns the packages of a lock, in its order."""
    found = []
    for requirement in RequirementsFile.from_file(str(path)).requirements:
        assert requirement.name is not None, f"{path}: {requirement} has no name"
        hashes = [hash_.removeprefix("--hash=") for hash_ in requirement.hash_options]
        found.append(
            Locked(
                canonicalize_name(requirement.name),
                requirement.get_pinned_version,
                tuple(one.removeprefix("sha256:") for one in hashes if one.startswith("sha256:")),
            )
        )
    return found
