"""template.yaml as CloudFormation gets it: what the SAM transform makes of it, for the checks that know no SAM."""

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
    """The translator asks for AWS's managed policies by name; ours are written out, so there are none to know."""

    def load(self) -> dict[str, str]:
        return {}


def transformed(template: Mapping[str, Any], parameters: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The template after the SAM transform, its code in a bucket, as `sam deploy` leaves it once uploaded."""
    template = copy.deepcopy(template)
    logging.getLogger("samtranslator").setLevel(logging.ERROR)  # it warns of its own feature toggles
    # Only the partition is read from it.
    os.environ.setdefault("AWS_DEFAULT_REGION", "us-east-1")
    for resource in template["Resources"].values():
        for name in _CODE & resource.get("Properties", {}).keys():
            resource["Properties"][name] = "s3://bucket/key"
    answer: dict[str, Any] = transform(template, dict(parameters or {}), _NoManagedPolicies())
    return answer


def main(arguments: list[str]) -> int:
    """Write it to the file named."""
    [target] = arguments
    template = read_template(_CHECKOUT / "template.yaml")
    Path(target).write_text(json.dumps(transformed(template), indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
