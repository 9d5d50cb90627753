"""Reads the template as a mapping, with its short forms (!Ref, !Sub) written out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path


def read_template(path: Path) -> dict[str, Any]:
    """Returns the template in a file."""
    # yaml is imported here because that takes half a second, which commands that read no template need not spend.
    from samcli.yamlhelper import yaml_parse  # noqa: PLC0415

    template: dict[str, Any] = yaml_parse(path.read_text(encoding="utf-8"))
    return template
