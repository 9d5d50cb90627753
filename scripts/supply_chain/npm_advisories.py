"""Asks npm's registry for known vulnerabilities of the packages that the page ships, as `npm audit` does."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import requests

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from supply_chain.vendored import VendoredPackage

REGISTRY: Final = "https://registry.npmjs.org/"
"""npm's public registry, its own default."""
_PATH: Final = "-/npm/v1/security/advisories/bulk"
_SETTING: Final = "npm_config_registry"


class RegistryAway(Exception):
    """Raised when the registry does not answer, or not as npm's does. Its text says what it did."""


def registry(environ: Mapping[str, str] = os.environ) -> str:
    """Returns the registry that npm would ask: of its variable, of its settings, or the public one."""
    named = next((value for name, value in environ.items() if name.lower() == _SETTING and value), None)
    if named is None and (npm := shutil.which("npm")) is not None:
        asked = subprocess.run([npm, "config", "get", "registry"], capture_output=True, text=True, check=False)
        named = asked.stdout.strip() if asked.returncode == 0 else None
    return f"{(named or REGISTRY).rstrip('/')}/"


def advisories(url: str, packages: Sequence[VendoredPackage]) -> dict[str, list[dict[str, Any]]]:
    """Returns what the registry knows against these versions, by the package's name. Raises RegistryAway."""
    wanted = {package.name: [package.version] for package in packages}
    # What stands before the host would be credentials.
    place = urlsplit(url)._replace(netloc=urlsplit(url).netloc.rpartition("@")[2]).geturl()
    try:
        response = requests.post(url + _PATH, json=wanted, timeout=30)
        response.raise_for_status()
        answer = response.json()
    except requests.RequestException as error:
        status = error.response.status_code if error.response is not None else type(error).__name__
        msg = f"npm's registry at {place} does not answer {_PATH} ({status}); {_SETTING} can name another"
        raise RegistryAway(msg) from error
    if not isinstance(answer, dict) or not all(isinstance(found, list) for found in answer.values()):
        msg = f"npm's registry at {place} does not answer {_PATH} as npm's does; {_SETTING} can name another"
        raise RegistryAway(msg)
    return answer
