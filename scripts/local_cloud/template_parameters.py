"""The values of the template's parameters, held to what the template says of them before anything is started."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping


def parameter_problem(declared: Mapping[str, Any], value: str) -> str | None:
    """Why CloudFormation would not take the value, completing "it …", or None. `declared` is the parameter's part."""
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
