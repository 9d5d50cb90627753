"""Which dead letters are meant: the options that say so, and how the API is asked for them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from itertools import batched
from typing import TYPE_CHECKING, Annotated, Any, Final
from uuid import UUID

import typer

from acp_cli.asking import EVERY
from local_cloud.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from acp_client.client import Client

_AGE: Final = re.compile(r"([0-9]{1,6})(s|min|h|d)")
_UNITS: Final = {"s": "seconds", "min": "minutes", "h": "hours", "d": "days"}
_GREATEST_ID: Final = 10**18 - 1
_IDS_AT_A_TIME: Final = 100


class LetterKind(StrEnum):
    """Who gave up."""

    RELAY = "relay"
    CONSUMER = "consumer"
    INVOCATION = "invocation"


SubscriptionOption = Annotated[
    str | None, typer.Option("--subscription", "-s", help="Of this subscription alone.", show_default=False)
]
ReasonOption = Annotated[
    str | None, typer.Option("--reason", help="Whose reason holds this text, in any case.", show_default=False)
]
KindOption = Annotated[LetterKind | None, typer.Option("--kind", help="Given up on by whom.", show_default=False)]
OlderOption = Annotated[
    str | None, typer.Option("--older-than", metavar="AGE", help="Such as 30min, 2h, 5d.", show_default=False)
]
NewerOption = Annotated[
    str | None, typer.Option("--newer-than", metavar="AGE", help="Such as 30min, 2h, 5d.", show_default=False)
]
EventOption = Annotated[str | None, typer.Option("--event", metavar="ID", help="Of this event.", show_default=False)]
TraceOption = Annotated[str | None, typer.Option("--trace", metavar="ID", help="Of this trace.", show_default=False)]
IdsArgument = Annotated[
    list[str] | None, typer.Argument(metavar="ID", help="As `acp dead-letters` lists them.", show_default=False)
]
EverythingOption = Annotated[bool, typer.Option("--all", help="All dead letters there are.")]


@dataclass(frozen=True, slots=True)
class Letters:
    """The open dead letters that meet every condition; without conditions, all of them."""

    ids: Sequence[int] | None
    """Without doubles, as they were given."""
    conditions: dict[str, Any]
    """As both the list's query and a redrive's filter spell them."""

    @property
    def is_empty(self) -> bool:
        """Whether there is no condition."""
        return self.ids is None and not self.conditions

    def read(self, client: Client, *, most: int = EVERY, below: int | None = None) -> Iterator[dict[str, Any]]:
        """Yields them, newest first, as the API lists them."""
        if self.ids is None:
            yield from client.pages("/dead-letters", most=most, below=below, **self.conditions)
            return
        for some in batched(sorted(self.ids, reverse=True), _IDS_AT_A_TIME, strict=False):
            for letter in client.pages(
                "/dead-letters", most=most, below=below, ids=",".join(map(str, some)), **self.conditions
            ):
                yield letter
                most -= 1

    def wanted(self) -> dict[str, Any]:
        """Returns the filter of a redrive."""
        if self.is_empty:
            return {"everything": True}
        return self.conditions | ({} if self.ids is None else {"ids": list(self.ids)})


def chosen_letters(  # noqa: PLR0917 - in the order of the options
    ids: Sequence[str] | None,
    subscription: str | None,
    reason: str | None,
    kind: LetterKind | None,
    older_than: str | None,
    newer_than: str | None,
    event: str | None,
    trace: str | None,
) -> Letters:
    """Returns the letters that the options mean. Raises UsageError."""
    numbers = letter_ids(ids)
    conditions = {
        "subscription": subscription,
        "reason": reason,
        "kind": None if kind is None else kind.value,
        "since": _ago(newer_than, "--newer-than"),
        "until": _ago(older_than, "--older-than"),
        "event_id": _id(event, "--event"),
        "trace_id": _id(trace, "--trace"),
    }
    return Letters(
        None if numbers is None else list(dict.fromkeys(numbers)),
        {name: value for name, value in conditions.items() if value is not None},
    )


def check_asked(chosen: Letters, verb: str, *, everything: bool) -> None:
    """Raises UsageError where nothing says which letters are meant, or --all and less is asked for."""
    if chosen.is_empty == everything:
        return
    msg = (
        f"It is not said which dead letters to {verb}."
        if chosen.is_empty
        else "--all is for all of them: leave it out, or leave out the ids, --subscription, --reason and the like."
    )
    raise UsageError(msg, remedy=f"scripts/acp {verb} ID…, --subscription NAME, --reason TEXT, or --all")


def letter_ids(ids: Sequence[str] | None) -> list[int] | None:
    """Returns the ids as numbers, or None if none is given. Raises UsageError that names the first bad one."""
    for text in ids or ():
        if not text.isascii() or not text.isdecimal() or int(text) > _GREATEST_ID:
            msg = f"{text!r} is no dead letter's id."
            raise UsageError(msg, remedy="scripts/acp dead-letters lists them.")
    return [int(text) for text in ids] if ids else None


def _ago(age: str | None, option: str) -> str | None:
    """Returns the instant that long ago, as text. Raises UsageError for what is no age."""
    if age is None:
        return None
    found = _AGE.fullmatch(age.strip())
    if found is None:
        msg = f"{option} is {age!r}, which is no age."
        raise UsageError(msg, remedy="Give a number and s, min, h or d: 30min, 2h, 5d.")
    try:
        instant = datetime.now(UTC) - timedelta(**{_UNITS[found[2]]: int(found[1])})
    except OverflowError:
        instant = datetime.min.replace(tzinfo=UTC)
    return instant.isoformat().replace("+00:00", "Z")


def _id(text: str | None, option: str) -> str | None:
    try:
        return None if text is None else str(UUID(text))
    except ValueError:
        msg = f"{option} is {text!r}, which is no id."
        raise UsageError(msg, remedy="scripts/acp dead-letters --json shows the ids of events and traces.") from None
