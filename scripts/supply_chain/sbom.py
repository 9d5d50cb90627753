"""scripts/sbom: writes what is shipped as a CycloneDX document.

The functions and layers are those of template.yaml, a layer's packages those of its lock, and what the page ships of
npm's packages that of vendor.lock. A package has the hashes of all files that the lock admits. What Lambda's own
runtime adds is not included.
"""

from __future__ import annotations

import argparse
import base64
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import HashAlgorithm, HashType
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL

from local_cloud.template import read_template
from local_cloud.workspace import CHECKOUT
from supply_chain.licences import licence
from supply_chain.locks import Locked, read_lock
from supply_chain.vendored import UI, VendoredPackage, read_vendor_lock

if TYPE_CHECKING:
    from collections.abc import Sequence


def sbom(checkout: Path) -> Bom:
    """Returns the document: the application, its functions, their layers, and the layers' packages."""
    project = tomllib.loads((checkout / "pyproject.toml").read_text(encoding="utf-8"))["project"]

    def own(name: str, kind: ComponentType) -> Component:
        licences = [LicenseFactory().make_from_string(project["license"])]
        return Component(name=name, type=kind, version=project["version"], bom_ref=name, licenses=licences)

    bom = Bom()
    bom.metadata.component = application = own(project["name"], ComponentType.APPLICATION)
    packages: dict[Locked, Component] = {}
    layers: dict[str, Component] = {}
    template = read_template(checkout / "template.yaml")
    resources = template["Resources"]
    everywhere = template["Globals"]["Function"].get("Layers", [])
    for name, resource in resources.items():
        if resource["Type"] == "AWS::Serverless::LayerVersion":
            layers[name] = layer = own(name, ComponentType.LIBRARY)
            lock = read_lock(checkout / resource["Properties"]["ContentUri"] / "requirements.txt")
            for locked in lock:
                packages.setdefault(locked, _package(locked))
            bom.components.add(layer)
            bom.register_dependency(layer, [packages[locked] for locked in lock])
    bom.components.update(packages.values())
    vendored = {package: _vendored(package) for package in read_vendor_lock()}
    bom.components.update(vendored.values())
    functions = []
    for name, resource in resources.items():
        if resource["Type"] == "AWS::Serverless::Function":
            functions.append(function := own(name, ComponentType.APPLICATION))
            bom.components.add(function)
            used = [*everywhere, *resource["Properties"].get("Layers", [])]
            own_files = vendored.values() if checkout / resource["Properties"]["CodeUri"] == UI.parent else ()
            bom.register_dependency(function, [*(layers[one["Ref"]] for one in used), *own_files])
    bom.register_dependency(application, functions)
    return bom


def _package(locked: Locked) -> Component:
    purl = PackageURL("pypi", name=locked.name, version=locked.version)
    return Component(
        name=locked.name,
        version=locked.version,
        type=ComponentType.LIBRARY,
        bom_ref=purl.to_string(),
        purl=purl,
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=one) for one in locked.sha256],
        licenses=[LicenseFactory().make_from_string(licence(locked.name))],
    )


def _vendored(package: VendoredPackage) -> Component:
    purl = PackageURL("npm", name=package.name, version=package.version)
    content = base64.b64decode(package.integrity.removeprefix("sha512-")).hex()
    return Component(
        name=package.name,
        version=package.version,
        type=ComponentType.LIBRARY,
        bom_ref=purl.to_string(),
        purl=purl,
        hashes=[HashType(alg=HashAlgorithm.SHA_512, content=content)],
        licenses=[LicenseFactory().make_from_string(package.licence)],
    )


def main(arguments: Sequence[str]) -> int:
    """Writes it to the file named, or to standard output."""
    parser = argparse.ArgumentParser("scripts/sbom", description="Write what is shipped as a CycloneDX 1.6 document.")
    parser.add_argument("file", nargs="?", type=Path, help="the file to write; without it, standard output")
    file = parser.parse_args(arguments).file
    text = JsonV1Dot6(sbom(CHECKOUT)).output_as_string(indent=2) + "\n"
    if file is None:
        sys.stdout.write(text)
    else:
        file.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
