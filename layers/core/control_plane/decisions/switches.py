"""Switches: what a person turns off, all of it or a domain, a playbook, an agent, a type of action, a model."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import uuid4

from psycopg import Connection
from psycopg.rows import class_row

from control_plane.decisions.emit import message
from control_plane.model.deciding import Deciding
from control_plane.model.decision_events import SwitchSet
from control_plane.platform.messages import one_as_json
from control_plane.platform.queries import load_queries

QUERIES: Final = load_queries(__package__)

SCOPE: Final = re.compile(r"all|(domain|playbook|agent|action|model):[A-Za-z0-9_.:/-]{1,122}")
"""all, domain:finance, playbook:unusual_bar, agent:hypotheses, action:HEDGE, model:NAME."""


@dataclass(frozen=True, slots=True)
class Switch:
    """A scope that was switched at some time."""

    scope: str
    is_off: bool
    set_by: str
    set_at: datetime
    reason: str


def is_scope(text: str) -> bool:
    """Whether a text names what can be switched off."""
    return SCOPE.fullmatch(text) is not None


def scopes_of(deciding: Mapping[str, Deciding]) -> Sequence[str]:
    """Returns every scope that the domains' plug-ins have; models are settings, and not among them."""
    found = ["all"]
    for domain, plug_ins in deciding.items():
        found.append(f"domain:{domain}")
        found += (f"playbook:{playbook.name}" for playbook in plug_ins.versions)
        found += (f"agent:{agent.name}" for agent in plug_ins.agents)
        found += (f"action:{action_type}" for action_type in plug_ins.gate.action_types)
    return list(dict.fromkeys(found))


def list_switches(connection: Connection[Any]) -> Sequence[Switch]:
    """Returns every switch that was ever set, those that are off first. Raises psycopg.Error."""
    with connection.cursor(row_factory=class_row(Switch)) as cursor:
        return cursor.execute(QUERIES["switches"].sql).fetchall()


def set_switch(
    connection: Connection[Any],
    scope: str,
    *,
    off: bool,
    reason: str = "",
    most_seconds: float = 30.0,
    token: str | None = None,
) -> str:
    """Switches a scope off or on, as a role of acp_command; returns who is on record for it.

    That is the session's login, or the token that is named by ``token``.

    Waits for releases and executions that are under way; once it returns, none that the scope covers is committed any
    more. Raises psycopg.errors.LockNotAvailable where they take longer than ``most_seconds``: nothing is switched then,
    and psycopg.Error.
    """
    with connection.transaction():
        connection.execute(QUERIES["limit_lock_waits"].sql, {"lock_timeout": f"{max(int(most_seconds * 1000), 1)}ms"})
        row = connection.execute(QUERIES["who_asks"].sql, {"token": token}).fetchone()
        assert row is not None
        who, now = row
        told = message(
            SwitchSet(scope=scope, is_off=off, set_by=who, reason=reason),
            entity_id=None,
            series=scope,
            at=now,
            trace_id=uuid4(),
        )
        connection.execute(
            QUERIES["set_switch"].sql,
            {"scope": scope, "off": off, "reason": reason, "event": one_as_json(told), "token": token},
        )
    return str(who)
