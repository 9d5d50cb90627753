"""The licences of what the layers ship, as the installed packages declare them."""

import re
from importlib.metadata import metadata
from pathlib import Path

import pytest

LAYERS = Path(__file__).parent.parent.parent / "layers"
SHIPPED = sorted(
    {
        name
        for lock in LAYERS.glob("*/requirements.txt")
        for name in re.findall(r"^([a-z0-9-]+)==", lock.read_text(), re.MULTILINE)
    }
)
ALLOWED = re.compile(r"\b(MIT|BSD|Apache|0BSD|MIT-0|PSF|MPL|Mozilla|LGPL-3\.0-only|Zlib|CC0-1\.0)\b")
"""Permissive, or weak copyleft for packages shipped unchanged: psycopg is LGPL, certifi MPL."""
UNDECLARED = {"peewee": "MIT, in its LICENSE file"}


def declared(name: str) -> list[str]:
    """The parts of a package's licence expression, or its licence field and classifiers."""
    found = metadata(name)
    if expression := found.get("License-Expression"):
        return re.split(r" AND ", expression)
    classifiers = [one for one in found.get_all("Classifier") or [] if one.startswith("License")]
    return classifiers or [line for line in [found.get("License")] if line]


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_package_has_an_allowed_licence(name: str) -> None:
    licences = declared(name)
    assert licences or name in UNDECLARED, f"{name} declares no licence: read its LICENSE file, and list it here"
    assert [licence for licence in licences if not ALLOWED.search(licence)] == []
