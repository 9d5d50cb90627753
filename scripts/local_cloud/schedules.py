"""Checks EventBridge's schedule expressions, and mends rules that an update of a stack did not change."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from local_cloud.aws import LocalCloud

_RATE = re.compile(r"rate\(([1-9]\d*) (minute|hour|day)(s?)\)")
_CRON = re.compile(r"cron\((.+)\)")
_MONTHS = ["JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC"]
_DAYS = ["SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"]
_FIELDS: tuple[tuple[str, int, int, str, list[str]], ...] = (
    ("minutes", 0, 59, "", []),
    ("hours", 0, 23, "", []),
    ("day of month", 1, 31, "?LW", []),
    ("month", 1, 12, "", _MONTHS),
    ("day of week", 1, 7, "?L#", _DAYS),
    ("year", 1970, 2199, "", []),
)
"""The fields of cron: name, least and greatest number, wildcards beyond * and /, names in order from the least number
on."""
_NEVER_UPDATED = {
    "AWS::ApiGateway::RestApi",
    "AWS::ApiGateway::Stage",
    "AWS::CloudWatch::Alarm",
    "AWS::Lambda::EventInvokeConfig",
    "AWS::Logs::LogGroup",
}
"""Resource types, besides rules, whose updates LocalStack 4.14.0 accepts and ignores, because their providers have no
update."""


def problem_of(expression: str) -> str | None:
    """Returns why EventBridge would refuse the expression, or None.

    Source: https://docs.aws.amazon.com/eventbridge/latest/userguide/eb-scheduled-rule-pattern.html
    """
    if rate := _RATE.fullmatch(expression):
        number, unit, plural = rate.groups()
        if (number == "1") == bool(plural):
            return f"rate wants 'rate({number} {unit}{'' if number == '1' else 's'})'"
        return None
    if cron := _CRON.fullmatch(expression):
        return _problem_of_cron(cron[1].split(" "))
    return "it is neither 'rate(5 minutes)' nor 'cron(0 12 * * ? *)'"


def _problem_of_cron(values: list[str]) -> str | None:
    if len(values) != len(_FIELDS):
        return f"cron has six fields (minutes hours day-of-month month day-of-week year), not {len(values)}"
    for (name, least, greatest, wildcards, names), value in zip(_FIELDS, values, strict=True):
        if not all(_is_part(part, least, greatest, wildcards, names) for part in value.upper().split(",")):
            return f"{value!r} is no {name} of cron"
    if (values[2] == "?") == (values[4] == "?"):
        return "of cron's day of month and day of week exactly one is ?"
    return None


def _is_part(part: str, least: int, greatest: int, wildcards: str, names: list[str]) -> bool:
    """Whether a text is one of the parts that a field of cron lists."""

    def is_value(text: str) -> bool:
        number = names.index(text) + least if text in names else int(text) if text.isdecimal() else -1
        return least <= number <= greatest

    base, slash, step = part.partition("/")
    ends = base.split("-")
    special = (
        (base == "?" and "?" in wildcards and not slash)
        or (base == "L" and "L" in wildcards)
        or (base == "LW" and "W" in wildcards)
        or ("#" in wildcards and re.fullmatch(r"\w+#[1-5]", base) is not None and is_value(base[:-2]))
        or (base[-1:] in {"L", "W"} and base[-1:] in wildcards and is_value(base[:-1]))
    )
    is_range = base == "*" or (len(ends) <= 2 and all(map(is_value, ends)))
    return (special or is_range) and (not slash or (step.isdecimal() and int(step) > 0))


@dataclass(frozen=True, slots=True)
class UpdateGaps:
    """What an update of the stack would fail to change, on an emulator that ignores changed rules."""

    schedules: dict[str, str]
    """Schedule expressions by the rule's logical id."""
    others: str
    """Digest of all other resources whose updates are ignored."""


def update_gaps(template: Mapping[str, Any], parameters: Mapping[str, str]) -> UpdateGaps:
    """Returns them for a SAM template with these parameters."""
    from local_cloud.transform import transformed  # noqa: PLC0415 - slow to import, and needed here alone

    declared = template.get("Parameters", {})
    values = {name: str(parameters.get(name, field.get("Default", ""))) for name, field in declared.items()}
    resources = transformed(template, values)["Resources"] if template["Resources"] else {}
    schedules, others = {}, {}
    for logical_id, resource in resources.items():
        if resource["Type"] == "AWS::Events::Rule":
            expression = _resolved(resource["Properties"].get("ScheduleExpression"), values)
            if isinstance(expression, str):
                schedules[logical_id] = expression
        elif resource["Type"] in _NEVER_UPDATED:
            others[logical_id] = _resolved(resource, values)
    return UpdateGaps(schedules, hashlib.sha256(json.dumps(others, sort_keys=True).encode()).hexdigest())


def _resolved(part: Any, values: Mapping[str, str]) -> Any:
    """Returns a part of a template with each Ref of a parameter replaced."""
    if isinstance(part, dict):
        if part.keys() == {"Ref"} and part["Ref"] in values:
            return values[part["Ref"]]
        return {name: _resolved(value, values) for name, value in part.items()}
    if isinstance(part, list):
        return [_resolved(value, values) for value in part]
    return part


def bring_up_to_date(cloud: LocalCloud, stack: str, schedules: Mapping[str, str]) -> int:
    """Makes every rule again whose schedule is not as it should be; returns how many those were.

    If a rule were only put again, LocalStack would follow the old schedule as well as the new one.
    """
    events, changed = cloud.events, 0
    summaries = cloud.cloudformation.get_paginator("list_stack_resources").paginate(StackName=stack)
    names = {
        resource["LogicalResourceId"]: resource.get("PhysicalResourceId", "").rpartition("|")[2]
        for page in summaries
        for resource in page["StackResourceSummaries"]
        if resource["ResourceType"] == "AWS::Events::Rule"
    }
    for logical_id, expression in schedules.items():
        if logical_id not in names:
            continue
        name = names[logical_id]
        rule = events.describe_rule(Name=name)
        if rule.get("ScheduleExpression") == expression:
            continue
        targets = events.list_targets_by_rule(Rule=name)["Targets"]
        if targets:
            events.remove_targets(Rule=name, Ids=[target["Id"] for target in targets])
        events.delete_rule(Name=name)
        events.put_rule(
            Name=name, ScheduleExpression=expression, State="ENABLED", Description=rule.get("Description", "")
        )
        if targets:
            events.put_targets(Rule=name, Targets=targets)
        changed += 1
    return changed
