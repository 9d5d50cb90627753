"""Adds a new consumer to template.yaml: its resources are copies of SignalLab's under its own names.

The file is edited as text, as a person would edit it, so comments, order and anchors stay.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from local_cloud.errors import AcpError

if TYPE_CHECKING:
    from collections.abc import Sequence

# Blocks that are copied together; each group of copies is inserted after the group's last block.
_GROUPS: Final = (
    ("SignalLabFunction",),
    ("SignalLabFunctionRole", "SignalLabLogPolicy"),
    ("MarketTicksQueue", "MarketTicksDeadLetterQueue"),
    ("SignalLabLogGroup",),
    ("SystemEventsDeadLettersAlarm",),  # Other blocks refer to MarketTicksDeadLettersAlarm by its anchor.
    ("ConsumerBehindAlarm",),
    ("SignalLabErrorsAlarm", "SignalLabThrottlesAlarm"),
    ("SignalLabFunctionName",),
    (
        "MarketTicksQueueName",
        "MarketTicksQueueUrl",
        "MarketTicksDeadLetterQueueName",
        "MarketTicksDeadLetterQueueUrl",
    ),
)
# Single lines that are copied wherever they occur: lists of queues, and the dashboard's.
_LINES: Final = (
    r"- !GetAtt MarketTicks(DeadLetter)?Queue\.Arn",
    r"- !Ref MarketTicks(DeadLetter)?Queue",
    r'"\$\{(MarketTicksDeadLetters|ConsumerBehind|SignalLabErrors|SignalLabThrottles)Alarm\.Arn\}",?',
    r'\["AWS/Lambda", "(Errors|Throttles)", "FunctionName", "\$\{SignalLabFunction\}".*\],?',
    r'\["AWS/SQS", .*"\$\{MarketTicksDeadLetterQueue\.QueueName\}", \{"label".*\],?',
)

# What DeadLetterFunction takes out of a dead-letter queue.
_MOVED: Final = re.compile(
    r"^        MarketTicks:\n          Type: SQS\n          Properties:\n"
    r"            Queue: !GetAtt MarketTicksDeadLetterQueue\.Arn\n(?:            .*\n)+",
    re.MULTILINE,
)


@dataclass(frozen=True, slots=True)
class Names:
    """One consumer's name as each place spells it."""

    name: str
    """source_watch"""

    @property
    def pascal(self) -> str:
        """SourceWatch"""
        return "".join(part.capitalize() for part in self.name.split("_"))

    @property
    def dashed(self) -> str:
        """source-watch"""
        return self.name.replace("_", "-")

    def renamed(self, text: str) -> str:
        """Returns the text with SignalLab's and its queue's names replaced by this consumer's."""
        for former in ("SignalLab", "MarketTicks", "SystemEvents", "ConsumerBehind"):
            text = text.replace(former, self.pascal if former != "ConsumerBehind" else f"{self.pascal}Behind")
        for former in ("signal_lab", "system_events"):
            text = text.replace(former, self.name)
        for former in ("signal-lab", "market-ticks"):
            text = text.replace(former, self.dashed)
        return text


def with_consumer(text: str, names: Names, topic: str) -> str:
    """Returns template.yaml with one more consumer, of this topic. Raises AcpError if it lacks what is to be copied."""
    for group in _GROUPS:
        text = _with_copies(text, group, names, topic)
    for pattern in _LINES:
        text = _with_lines(text, pattern, names)
    moved = _MOVED.search(text)
    if moved is None:
        raise _missing("no event MarketTicks of DeadLetterFunction")
    text = text[: moved.end()] + names.renamed(moved[0]) + text[moved.end() :]
    text = _with_entry(text, "SUBSCRIPTIONS", names.name, topic)
    text = _with_entry(text, "DEAD_LETTER_QUEUES", names.name, f"${{{names.pascal}DeadLetterQueue.QueueName}}")
    return _with_entry(text, "SUBSCRIPTION_QUEUE_URLS", names.name, f"${{{names.pascal}Queue}}")


def logical_ids(text: str) -> set[str]:
    """Returns the logical ids in the template: parameters, resources, outputs."""
    return set(re.findall(r"^  (\w+):$", text, re.MULTILINE))


def _with_copies(text: str, group: Sequence[str], names: Names, topic: str) -> str:
    copies, end = "", 0
    for logical_id in group:
        found = re.search(rf"^  {logical_id}:\n(?:(?:    .*)?\n)*(?:    .*\n)", text, re.MULTILINE)
        if found is None:
            raise _missing(f"no {logical_id}")
        separator = "\n" if text[found.end() :].startswith("\n") else ""
        copies += separator + _without_definitions(names.renamed(found[0]), found[0])
        end = max(end, found.end())
    copies = re.sub(
        r"^(      Description: ).*$", rf"\g<1>Consumes the events of {topic}.", copies, count=1, flags=re.MULTILINE
    )
    copies = re.sub(
        r"^(      AlarmDescription: >-\n        )The consumer of \w+ ",
        rf"\g<1>{names.pascal} ",
        copies,
        flags=re.MULTILINE,
    )
    return text[:end] + copies + text[end:]


def _without_definitions(copy: str, original: str) -> str:
    """Replaces the definition of an anchor in a copy by a reference, unless the copy gives it a name of its own."""
    lines: list[str] = []
    inner: int | None = None
    """How deep the lines of a value are indented that the copy refers to instead."""
    for line in copy.splitlines(keepends=True):
        depth = len(line) - len(line.lstrip(" "))
        if inner is not None and depth >= inner and line.strip():
            continue
        inner = None
        anchor = re.match(r"( *(?:- )?(?:\w+: )?)&(\w+)", line)
        if anchor and f"&{anchor[2]}" in original:
            lines.append(f"{anchor[1]}*{anchor[2]}\n")
            inner = depth + 1
        else:
            lines.append(line)
    return "".join(lines)


def _with_lines(text: str, pattern: str, names: Names) -> str:
    matching = re.compile(rf" +{pattern}")
    lines: list[str] = []
    found = 0
    for line in text.splitlines():
        lines.append(line)
        if matching.fullmatch(line):
            found += 1
            copy = names.renamed(line)
            if not line.endswith(",") and line.lstrip().startswith(('"', "[")):  # the last entry of a JSON list
                lines[-1] += ","
            lines.append(copy)
    if not found:
        raise _missing(f"no line like {pattern}")
    return "\n".join(lines) + "\n"


def _with_entry(text: str, variable: str, name: str, value: str) -> str:
    """Adds an entry to a variable that holds a JSON object, and writes the object with one entry a line."""
    found = re.search(
        rf"^( +){variable}: (!Sub )?(?:'(?P<one>{{.*}})'\n|[>|]-\n(?P<many>(?:\1  .*\n)+))",
        text,
        re.MULTILINE,
    )
    if found is None:
        raise _missing(f"no {variable} that is a JSON object")
    entries = json.loads(found["one"] or found["many"]) | {name: value}
    inner = f",\n{found[1]}  ".join(f"{json.dumps(key)}: {json.dumps(one)}" for key, one in entries.items())
    written = f"{found[1]}{variable}: {found[2] or ''}>-\n{found[1]}  {{{inner}}}\n"
    return text[: found.start()] + written + text[found.end() :]


def _missing(what: str) -> AcpError:
    return AcpError(
        f"template.yaml has {what}, which a new consumer is made like.",
        remedy="Add the consumer by hand: docs/writing_a_consumer.md lists what it needs.",
    )
