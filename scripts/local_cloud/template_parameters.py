"""Checks the values of the template's parameters by the template's own rules, before anything is started."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping


def parameter_problem(declared: Mapping[str, Any], value: str) -> str | None:
    """Returns why CloudFormation would refuse the value, as the end of a sentence "it …", or None.

    `declared` is the parameter's part of the template.
    """
    if declared["Type"] == "Number":
        try:
            number = float(value)
        except ValueError:
            return "must be a number"
        if number < declared.get("MinValue", number) or number > declared.get("MaxValue", number):
            return f"must be from {declared.get('MinValue', 'any')} to {declared.get('MaxValue', 'any')}"
    if "AllowedValues" in declared and value not in map(str, declared["AllowedValues"]):
        return f"must be one of {', '.join(map(str, declared['AllowedValues']))}"
    if "AllowedPattern" in declared and not re.fullmatch(declared["AllowedPattern"], value):
        return str(declared.get("ConstraintDescription") or f"must match {declared['AllowedPattern']}")
    return None
