"""Adds a second consumer of market.ticks to the template: two entries, and a function with its queue."""

import json
from pathlib import Path
from typing import Any

from samcli.yamlhelper import yaml_dump, yaml_parse

SUBSCRIPTION = "tick_count"
COPIED = (
    "SignalLabFunction",
    "SignalLabFunctionRole",
    "SignalLabLogPolicy",
    "SignalLabLogGroup",
    "MarketTicksQueue",
    "MarketTicksDeadLetterQueue",
)
"""A consumer's resources; the second one's differ only in names and code."""


def with_second_consumer(built: Path, folder: Path) -> Path:
    """Writes a built template with the second consumer into a folder. Returns its path."""
    template: dict[str, Any] = yaml_parse(built.read_text(encoding="utf-8"))
    resources = template["Resources"]
    for resource in resources.values():
        for key in ("CodeUri", "ContentUri"):
            if key in resource["Properties"]:
                resource["Properties"][key] = str((built.parent / resource["Properties"][key]).resolve())
    resources |= {_renamed(name): json.loads(_renamed(json.dumps(resources[name]))) for name in COPIED}
    resources["TickCountFunction"]["Properties"]["CodeUri"] = str(Path(__file__).parent)

    _entry(resources["MigrationFunction"], "SUBSCRIPTIONS", "market.ticks")
    _entry(resources["RelayFunction"], "SUBSCRIPTION_QUEUE_URLS", "${TickCountQueue}")
    (send,) = [
        statement
        for policy in resources["RelayFunctionRole"]["Properties"]["Policies"]
        for statement in policy["PolicyDocument"]["Statement"]
        if isinstance(statement.get("Resource"), list)
    ]
    send["Resource"].append({"Fn::GetAtt": ["TickCountQueue", "Arn"]})
    resources["QueuePolicy"]["Properties"]["Queues"] += [{"Ref": "TickCountQueue"}, {"Ref": "TickCountDeadLetterQueue"}]
    path = folder / "with_second_consumer.yaml"
    path.write_text(yaml_dump(template), encoding="utf-8")
    return path


def _renamed(text: str) -> str:
    for first, second in (("SignalLab", "TickCount"), ("MarketTicks", "TickCount"), ("market-ticks", "tick-count")):
        text = text.replace(first, second)
    return text


def _entry(function: dict[str, Any], variable: str, value: str) -> None:
    """Adds the subscription to a variable that is a JSON object, plain or within a Sub."""
    variables = function["Properties"]["Environment"]["Variables"]
    is_sub = isinstance(variables[variable], dict)
    mapping = json.loads(variables[variable]["Fn::Sub"] if is_sub else variables[variable]) | {SUBSCRIPTION: value}
    variables[variable] = {"Fn::Sub": json.dumps(mapping)} if is_sub else json.dumps(mapping)
