"""Finds the stack's functions by the names that people use."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from local_cloud.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

_OUTPUT_SUFFIX = "FunctionName"


def function_name(outputs: Mapping[str, str], asked: str) -> str:
    """Returns the deployed function meant by relay, signal-lab, signal_lab, SignalLabFunction, or its whole name.

    `outputs` are the stack's. Raises UsageError that lists the functions.
    """
    known = functions_of(outputs)
    wanted = re.sub(r"[-_ ]", "", asked).lower().removesuffix("function")
    for logical, name in known.items():
        if wanted == logical.lower() or asked == name:
            return name
    msg = f"There is no function {asked!r}. There are: {', '.join(short_name(logical) for logical in known)}."
    raise UsageError(msg)


def functions_of(outputs: Mapping[str, str]) -> Mapping[str, str]:
    """Returns the names of a stack's functions by the beginning of their logical ids: Relay, SignalLab."""
    return {
        output.removesuffix(_OUTPUT_SUFFIX): name for output, name in outputs.items() if output.endswith(_OUTPUT_SUFFIX)
    }


def short_names(resources: Mapping[str, Mapping[str, object]]) -> list[str]:
    """The functions among a template's resources, by the names people use."""
    return [short_name(name) for name, resource in resources.items() if resource["Type"] == "AWS::Serverless::Function"]


def short_name(logical_id: str) -> str:
    """Returns a function's short name: signal-lab for SignalLab or SignalLabFunction."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "-", logical_id.removesuffix("Function")).lower()
