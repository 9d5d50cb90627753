"""Decides which of the user's environment variables the programs that we start may see."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Mapping

REGION = "us-east-1"
LOCAL_AWS = {
    # An emulator accepts any key; a real one must never get near it.
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": REGION,
    "AWS_REGION": REGION,
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_PAGER": "",
}
"""An AWS environment that reaches only the endpoint that a program is given."""

# These variables lead to somebody's account, databases or Python, which we must not use.
_FOREIGN = ("AWS_", "SAM_", "PG", "LAMBDA_", "LOCALSTACK_", "POWERTOOLS_")
_FOREIGN_NAMES = {"PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "VIRTUAL_ENV", "CONDA_PREFIX"}
# A proxy is for the internet, not for this machine.
_NO_PROXY = ("NO_PROXY", "no_proxy")
_LOOPBACK = "127.0.0.1,localhost"


def isolated(environ: Mapping[str, str]) -> dict[str, str]:
    """Returns the environment without what would lead a local run elsewhere, and with an AWS that is nowhere."""
    kept = {
        name: value for name, value in environ.items() if not name.startswith(_FOREIGN) and name not in _FOREIGN_NAMES
    }
    return kept | {name: _joined(kept.get(name), _LOOPBACK) for name in _NO_PROXY} | LOCAL_AWS


def without_proxy(environ: Mapping[str, str], url: str) -> dict[str, str]:
    """Returns variables that keep the user's proxy from being used for the URL's host."""
    return {name: _joined(environ.get(name), _LOOPBACK, urlsplit(url).hostname) for name in _NO_PROXY}


def _joined(*hosts: str | None) -> str:
    return ",".join(dict.fromkeys(host for part in hosts if part for host in part.split(",")))
