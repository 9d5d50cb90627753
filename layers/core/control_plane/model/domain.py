"""A domain as the control plane sees it: a plug-in that names its event types and their consumers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any
from uuid import UUID

from control_plane.model.backfill import FileShape, History
from control_plane.model.contract import Event, Payload

type Effect = Callable[[Any, Event], bool]
"""A consumer's function: given an autocommit psycopg connection and an event, it applies the event's effect once, in a
transaction of its own, and returns whether that changed anything."""

type ReplayableEffect = Callable[[Any, Event, UUID | None], bool]
"""The same of a consumer for which a replay is safe: it is also given the operation under which the event is delivered,
None for the live flow, and hands it on to ``once``."""


class OnReplay(StrEnum):
    """What it means for a consumer when a stored message is sent to it again."""

    SAFE = "safe"
    """Its effect runs again, once per replay: it writes the same rows, whatever their order, and nothing else."""
    SKIP = "skip"
    """It acts on what it has never processed, and takes everything else for a duplicate."""
    REFUSE = "refuse"
    """It takes no replay: its effects reach beyond its own tables, or cost something."""


type FoldEvents = Callable[[Any, Sequence[Event]], object]
"""Folds events into a consumer's tables, in the caller's transaction. Whatever their order, and however often each
comes, the rows are the same; nothing else changes. Its statements name no schema: a rebuild has them write to other
tables. What it returns is the consumer's own affair, and a rebuild leaves it alone."""


@dataclass(frozen=True, slots=True)
class Rebuild:
    """How a consumer's tables are made again from the events that it has processed."""

    tables: tuple[str, ...]
    """As the database's table ``rebuildable`` lists them."""
    event_types: tuple[str, ...]
    fold: FoldEvents
    events_per_second: int = 1_000
    """About how many it folds: for a plan's estimate, and for how many are folded before it is looked at the time."""


@dataclass(frozen=True, slots=True)
class Consumer:
    """One consumer of a domain; its subscription has the same name."""

    name: str
    """Lower case with underscores, such as ``signal_lab``; also its name in ``processed_events``."""
    topic: str
    consume: Effect
    on_replay: OnReplay = OnReplay.REFUSE
    rebuild: Rebuild | None = None
    """None where none of its tables is a fold of events."""


@dataclass(frozen=True, slots=True)
class Domain:
    """A plug-in: one package below ``domains``, one entry in ``domains.DOMAINS``."""

    name: str
    payloads: tuple[type[Payload], ...]
    """Its event types."""
    consumers: tuple[Consumer, ...] = ()
    histories: tuple[History, ...] = ()
    """Its sources that can be asked for the past."""
    files: tuple[FileShape, ...] = ()
    """The kinds of file that its observations are read from."""
    deciding: str | None = None
    """The module whose ``DECIDING`` is a control_plane.model.deciding.Deciding; its name alone, so that a function that
    decides nothing imports none of it."""
    reconciling: str | None = None
    """The module whose ``reconcile``, given a connection as acp_reader, returns an audit's findings on the accounts of
    the domain's client."""
    forgetting: str | None = None
    """The module whose ``forget``, given a connection as acp_maintain, an erasure's id and events' ids, removes the
    rows of the domain's consumers about what is erased, and returns how many."""
