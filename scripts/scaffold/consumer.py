"""Makes the files of a new consumer, and its entries in the files that name every consumer."""

from __future__ import annotations

import ast
import json
import keyword
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from control_plane.model.domain import Consumer
from domains import DOMAINS, EVENT_TYPES
from local_cloud import generated
from local_cloud.errors import AcpError, UsageError
from scaffold import sample, template
from scaffold.migration import NAME

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from control_plane.model.domain import Domain

_TEMPLATE: Final = Path("template.yaml")
_OPERATIONS: Final = Path("docs/operations.md")
_DOMAINS: Final = Path("layers/core/domains")
_LONGEST: Final = 40
"""The longest name: a queue's name has at most 80 characters, including the stack's name and a suffix of 13."""


def new_consumer(checkout: Path, name: str, topic: str, domain: str | None = None) -> Mapping[Path, str]:
    """Returns new files, and changed ones as a whole: text by path in the checkout.

    Raises UsageError for a bad name, a name that is taken, and a topic or a domain that does not exist.
    """
    names = template.Names(name)
    _check_name(checkout, names)
    payloads = [payload for payload in EVENT_TYPES if payload.topic == topic]
    if not payloads:
        known = sorted({payload.topic for payload in EVENT_TYPES})
        msg = f"There is no topic {topic!r}."
        raise UsageError(msg, remedy=f"Topics are: {', '.join(known)}.")
    owner = _domain(domain, topic)
    package = _DOMAINS / owner.name / name
    files = {
        package / "__init__.py": _EFFECT.format(title=name.replace("_", " ").capitalize(), topic=topic, name=name),
        Path(f"functions/{name}/app.py"): _function(checkout, names, owner.name, topic),
        Path(f"events/{name}.json"): _json_text(sample.batch(payloads, f"{names.pascal}Queue")),
        Path(f"tests/integration/test_{name}.py"): _TEST.format(name=name, domain=owner.name),
    }
    there = [str(path) for path in files if (checkout / path).exists()]
    if there:
        raise _taken(name, there[0])
    changed = {
        _TEMPLATE: template.with_consumer(_read(checkout, _TEMPLATE), names, topic),
        _DOMAINS / owner.name / "__init__.py": _entry(checkout, owner.name, name, topic),
        _OPERATIONS: _documented(_read(checkout, _OPERATIONS), names),
        generated.ASYNCAPI: _json_text(generated.asyncapi(_with_consumer(owner, name, topic))),
    }
    return {**{path: _formatted(path, text) for path, text in files.items()}, **changed}


def _check_name(checkout: Path, names: template.Names) -> None:
    name = names.name
    if NAME.fullmatch(name) is None or keyword.iskeyword(name) or len(name) > _LONGEST:
        msg = f"A consumer cannot be called {name!r}."
        raise UsageError(
            msg,
            remedy="Use lower-case words with underscores between them, such as source_watch;"
            f" at most {_LONGEST} characters, and no word of Python's own.",
        )
    taken = template.logical_ids(_read(checkout, _TEMPLATE))
    for suffix in ("Function", "Queue", "DeadLetterQueue", "FunctionRole", "LogGroup", "DeadLettersAlarm"):
        if f"{names.pascal}{suffix}" in taken:
            raise _taken(name, f"{names.pascal}{suffix} in template.yaml")
    for one in DOMAINS:
        for path in (_DOMAINS / one.name / name, _DOMAINS / one.name / f"{name}.py"):
            if (checkout / path).exists():
                raise _taken(name, str(path))


def _domain(asked: str | None, topic: str) -> Domain:
    """Returns the domain that was asked for; or else the topic's; or else the only one."""
    found = [
        domain
        for domain in DOMAINS
        if (domain.name == asked if asked else topic in {payload.topic for payload in domain.payloads})
    ]
    if not found and not asked and len(DOMAINS) == 1:
        found = list(DOMAINS)
    if len(found) == 1:
        return found[0]
    known = ", ".join(domain.name for domain in DOMAINS)
    if asked:
        msg = f"There is no domain {asked!r}."
        raise UsageError(msg, remedy=f"Domains are: {known}.")
    msg = f"The topic {topic} belongs to no domain, so it is open which one the consumer is for."
    raise UsageError(msg, remedy=f"Name one with --domain: {known}.")


def _with_consumer(owner: Domain, name: str, topic: str) -> list[Domain]:
    consumer = Consumer(name, topic, lambda _connection, _event: False)
    return [
        replace(domain, consumers=(*domain.consumers, consumer)) if domain is owner else domain for domain in DOMAINS
    ]


def _function(checkout: Path, names: template.Names, domain: str, topic: str) -> str:
    text = _read(checkout, Path("functions/signal_lab/app.py"))
    text = text.replace("from domains.finance import", f"from domains.{domain} import")
    text = text.replace("consume_replayable", "consume_messages")  # A new consumer takes no replay.
    _, _, rest = text.partition("\n")
    return f'"""{names.pascal}Function: consumes the events of {topic}, from its queue."""\n{names.renamed(rest)}'


def _entry(checkout: Path, domain: str, name: str, topic: str) -> str:
    """Returns the domain's ``__init__.py`` with this consumer added."""
    path = _DOMAINS / domain / "__init__.py"
    text = _read(checkout, path)
    module = ast.parse(text)
    calls = [node for node in ast.walk(module) if isinstance(node, ast.Call)]
    found = [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "Domain"]
    if len(found) != 1:
        msg = f"{path} does not make one Domain(…), to which the consumer could be added."
        raise AcpError(msg, remedy="Add it by hand: docs/writing_a_consumer.md")
    consumer = f'Consumer({name}.CONSUMER, "{topic}", {name}.consume)'
    lists = [keyword.value for keyword in found[0].keywords if keyword.arg == "consumers"]
    if lists and isinstance(lists[0], ast.Tuple) and lists[0].elts:
        last, addition = lists[0].elts[-1], f", {consumer}"
    else:
        last, addition = found[0].keywords[-1].value, f", consumers=({consumer},)"
    place = _offset(text, last.end_lineno or 0, last.end_col_offset or 0)
    text = text[:place] + addition + text[place:]
    imports = f"from domains.{domain} import {name}\nfrom control_plane.model.domain import Consumer\n"
    first = next(node for node in module.body if isinstance(node, ast.Import | ast.ImportFrom))
    place = _offset(text, first.lineno, 0)
    return _formatted(path, text[:place] + imports + text[place:])


def _offset(text: str, line: int, column: int) -> int:
    lines = text.splitlines(keepends=True)
    return sum(len(one) for one in lines[: line - 1]) + len(lines[line - 1].encode()[:column].decode())


def _documented(text: str, names: template.Names) -> str:
    """Returns docs/operations.md with the consumer's metrics and alarms."""
    changes = (
        (r"^(\| (?:EventsConsumed|DuplicateDeliveries|ConsumeFailures) \| count \| [^|]*?) \|", rf"\1, {names.name} |"),
        (r"^(\| [^|]*\bSignalLab(Errors|Throttles)\b)", rf"\1, {names.pascal}\2"),
        (
            r"^(\| SystemEventsDeadLetters \|.*\n)",
            rf"\1| {names.pascal}DeadLetters | the same, for what {names.pascal} gave up on | likewise |" + "\n",
        ),
        (
            # The alert of Prometheus that has the same name is of every subscription.
            r"^(\| ConsumerBehind \| a message has waited .*\n)",
            rf"\1| {names.pascal}Behind | a message has waited in {names.pascal}'s queue for 15 minutes | likewise,"
            rf" with {names.pascal}Errors |" + "\n",
        ),
    )
    for pattern, replacement in changes:
        text, found = re.subn(pattern, replacement, text, flags=re.MULTILINE)
        if not found:
            msg = f"{_OPERATIONS} has no row like {pattern}"
            raise AcpError(msg, remedy="Mend its tables of metrics and alarms first.")
    return text


def _formatted(path: Path, text: str) -> str:
    if path.suffix != ".py":
        return text
    commands: Sequence[Sequence[str]] = (("check", "--select", "I", "--fix", "--quiet"), ("format", "--quiet"))
    for command in commands:
        ruff = [sys.executable, "-m", "ruff", *command, "--stdin-filename", str(path), "-"]
        done = subprocess.run(ruff, input=text, capture_output=True, text=True, check=False)
        if done.returncode:
            msg = f"ruff refused the text of {path}."
            raise AcpError(msg, details=done.stderr)
        text = done.stdout
    return text


def _taken(name: str, by: str) -> UsageError:
    return UsageError(f"The name {name} is taken: there is {by} already.", remedy="Choose another one.")


def _read(checkout: Path, path: Path) -> str:
    return (checkout / path).read_text(encoding="utf-8")


def _json_text(document: object) -> str:
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


_EFFECT: Final = '''\
"""{title}: say here what it does with the events of {topic}."""

from typing import Any, Final

from psycopg import Connection

from control_plane.consumers.once import once
from control_plane.model.contract import Event

CONSUMER: Final = "{name}"


def consume(connection: Connection[Any], event: Event) -> bool:
    """Acts on an event once; returns whether the event was new. Raises psycopg.Error where the database fails."""
    with once(connection, consumer=CONSUMER, event_id=event.event_id) as is_first:
        # The effect goes here, only where is_first is true, and through this connection: it commits with once()'s row.
        return is_first
'''

_TEST: Final = """\
import json
from pathlib import Path
from typing import Any

from psycopg import Connection

from domains import EVENT_TYPES
from domains.{domain} import {name}

SAMPLE = Path(__file__).parents[2] / "events" / "{name}.json"


def test_a_message_is_consumed_once_however_often_it_is_delivered(app: Connection[Any]) -> None:
    for record in json.loads(SAMPLE.read_text(encoding="utf-8"))["Records"]:
        event = EVENT_TYPES.parse_event(record["body"])
        assert [{name}.consume(app, event) for _ in range(2)] == [True, False]
"""
