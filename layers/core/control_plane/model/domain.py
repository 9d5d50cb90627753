"""A domain as the control plane sees it: a plug-in that names its event types and their consumers."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from control_plane.model.backfill import FileShape, History
from control_plane.model.contract import Event, Payload

type Effect = Callable[[Any, Event], bool]
"""A consumer's function: given an autocommit psycopg connection and an event, it applies the event's effect once, in a
transaction of its own, and returns whether that changed anything."""


@dataclass(frozen=True, slots=True)
class Consumer:
    """One consumer of a domain; its subscription has the same name."""

    name: str
    """Lower case with underscores, such as ``signal_lab``; also its name in ``processed_events``."""
    topic: str
    consume: Effect


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
