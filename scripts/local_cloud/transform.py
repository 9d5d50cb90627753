"""Writes template.yaml after the SAM transform, for the checks that do not know SAM."""

from __future__ import annotations

import copy
import json
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samtranslator.translator.transform import transform

from local_cloud.template import read_template

if TYPE_CHECKING:
    from collections.abc import Mapping

_CODE = {"CodeUri", "ContentUri"}
_CHECKOUT = Path(__file__).parents[2]


class _NoManagedPolicies:
    """Stands in for a lookup of AWS's managed policies by name; our roles use none."""

    def load(self) -> dict[str, str]:
        return {}


def transformed(template: Mapping[str, Any], parameters: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Returns the template after the SAM transform, with its code in a bucket, as `sam deploy` sends it."""
    template = copy.deepcopy(template)
    logging.getLogger("samtranslator").setLevel(logging.ERROR)  # The translator warns about its own feature toggles.
    # Only the partition is read from the region.
    os.environ.setdefault("AWS_DEFAULT_REGION", "us-east-1")
    for resource in template["Resources"].values():
        for name in _CODE & resource.get("Properties", {}).keys():
            resource["Properties"][name] = "s3://bucket/key"
    answer: dict[str, Any] = transform(template, dict(parameters or {}), _NoManagedPolicies())
    return answer


def main(arguments: list[str]) -> int:
    """Writes the result to the file named."""
    [target] = arguments
    template = read_template(_CHECKOUT / "template.yaml")
    Path(target).write_text(json.dumps(transformed(template), indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
