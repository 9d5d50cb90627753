"""The licences of what the layers ship, as the installed packages declare them or their licence files say."""

import re
from importlib.metadata import distribution
from pathlib import Path

import pytest

from supply_chain.licences import READ_IN_FILE, declared, is_spdx, licence, licences_in
from supply_chain.locks import read_lock

LAYERS = Path(__file__).parent.parent.parent / "layers"
SHIPPED = sorted({locked.name for lock in LAYERS.glob("*/requirements.txt") for locked in read_lock(lock)})
ALLOWED = {
    "0BSD",
    "Apache-2.0",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "CC0-1.0",
    "LGPL-3.0-only",
    "MIT",
    "MIT-0",
    "MPL-2.0",
    "PSF-2.0",
    "Zlib",
}
"""Weak copyleft is allowed for packages shipped unchanged: psycopg is LGPL, certifi MPL."""
SAYS = {
    "Apache-2.0": "Apache License, Version 2.0|Apache License Version 2.0",
    "BSD-3-Clause": "Redistribution and use in source and binary forms.*Neither the name",
    "MIT": "Permission is hereby granted, free of charge.*The above copyright notice and this permission notice shall",
}


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_package_has_an_allowed_licence(name: str) -> None:
    assert licences_in(licence(name)) - ALLOWED == set()


@pytest.mark.parametrize("name", READ_IN_FILE)
def test_licences_read_in_files_are_found_there(name: str) -> None:
    assert declared(name) is None, f"{name} declares its licence: take it out"
    assert name in SHIPPED, f"{name} is not shipped: take it out"
    files = [file for file in distribution(name).files or [] if re.match("licen[cs]e", file.name, re.IGNORECASE)]
    text = " ".join(" ".join(file.read_text().split()) for file in files)
    for identifier in licences_in(READ_IN_FILE[name]):
        assert re.search(SAYS[identifier], text), f"{name}: its licence file does not say {identifier}"


@pytest.mark.parametrize("text", ["BSD", "Apache", "MIT License", "mit", "MIT AND", "Dual License", ""])
def test_texts_resembling_a_licence_are_not_spdx(text: str) -> None:
    assert not is_spdx(text)
