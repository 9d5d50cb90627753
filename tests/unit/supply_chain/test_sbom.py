"""The document that scripts/sbom writes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.output.json import JsonV1Dot6
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from tests.template import FUNCTIONS

from supply_chain.sbom import sbom
from supply_chain.vendored import read_vendor_lock

ROOT = Path(__file__).parents[3]
LOCKS = {path: path.read_text(encoding="utf-8") for path in sorted(ROOT.glob("layers/*/requirements.txt"))}
PACKAGES = sorted({found for text in LOCKS.values() for found in re.findall(r"^([a-z0-9-]+)==([^ ]+)", text, re.M)})

VENDORED = {f"pkg:npm/{one.name}@{one.version}": one for one in read_vendor_lock()}


@pytest.fixture(scope="module")
def document() -> str:
    return JsonV1Dot6(sbom(ROOT)).output_as_string()


@pytest.fixture(scope="module")
def components(document: str) -> dict[str, Any]:
    return {one["bom-ref"]: one for one in json.loads(document)["components"]}


def test_it_is_valid_cyclonedx(document: str) -> None:
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(document) is None


@pytest.mark.parametrize(("name", "version"), PACKAGES)
def test_a_shipped_package_is_listed_completely(components: dict[str, Any], name: str, version: str) -> None:
    component = components[f"pkg:pypi/{name}@{version}"]
    assert (component["name"], component["version"]) == (name, version)
    assert component["purl"] == f"pkg:pypi/{name}@{version}"
    assert component["licenses"]
    entry = next(text for text in LOCKS.values() if f"\n{name}=={version}" in text).split(f"\n{name}==")[1]
    locked = re.findall(r"--hash=sha256:(\w{64})", re.split(r"^[a-z]", entry[1:], maxsplit=1, flags=re.M)[0])
    assert locked
    assert {(one["alg"], one["content"]) for one in component["hashes"]} == {("SHA-256", one) for one in locked}


def test_it_names_each_function_with_its_layers(document: str) -> None:
    needs = {one["ref"]: set(one.get("dependsOn", [])) for one in json.loads(document)["dependencies"]}
    assert needs["ai-control-plane"] == FUNCTIONS.keys()
    for name, properties in FUNCTIONS.items():
        layers = {"CoreLayer", *(layer["Ref"] for layer in properties.get("Layers", []))}
        assert needs[name] == layers | (VENDORED.keys() if name == "OpsApiFunction" else set())
        assert all(needs[layer] for layer in layers)


def test_what_the_page_ships_is_listed(components: dict[str, Any]) -> None:
    for reference, package in VENDORED.items():
        [hash_] = components[reference]["hashes"]
        assert (hash_["alg"], len(hash_["content"])) == ("SHA-512", 128)
        assert components[reference]["licenses"] == [{"license": {"id": package.licence}}]
