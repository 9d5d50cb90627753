"""This program's version."""

import tomllib
from importlib.metadata import version as installed_version

from local_cloud.workspace import CHECKOUT, has_checkout


def version() -> str:
    """Returns the version of the checkout, or of the package where acp was installed alone."""
    if not has_checkout():
        return installed_version("ai-control-plane")
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return str(project["version"])
