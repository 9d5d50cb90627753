"""The user's own AWS account, which `logs --stack` reads; every other command is kept away from it."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from local_cloud.environ import LOCAL_AWS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_kept: Final[dict[str, str]] = {}


def keep(environ: Mapping[str, str]) -> None:
    """Keeps the AWS variables that the user has set, before the environment is cleaned of them."""
    _kept.clear()
    _kept.update({name: value for name, value in environ.items() if name.startswith("AWS_") and value})


@contextmanager
def own_aws() -> Iterator[None]:
    """Lets AWS's clients find what the user has set: a profile, keys, a region, the files where these are."""
    cleaned = dict(os.environ)
    for name in LOCAL_AWS:
        os.environ.pop(name, None)
    os.environ.update(_kept)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(cleaned)
