"""An event's life as a timeline tree."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.tree import Tree

if TYPE_CHECKING:
    from collections.abc import Mapping

    from control_plane.ops.life import EventLife

_STATE_STYLES = {
    "delivered": "green",
    "dead_lettered": "red",
    "retrying": "yellow",
    "in_flight": "cyan",
    "pending": "blue",
}


def render_life(life: EventLife) -> Tree:
    """Raw payload → event → promise with its attempts → each consumer, with the instants (UTC)."""
    event = life.event
    tree = Tree(
        f"[bold]{escape(event['event_type'])}[/] {escape(event['entity_id'] or '')}  [dim]{event['event_id']}[/]"
    )
    tree.add(f"trace [cyan]{event['trace_id']}[/]")
    if life.raw_payload is not None:
        raw = tree.add(f"{instant(life.raw_payload['fetched_at'])}  fetched from {escape(life.raw_payload['source'])}")
        raw.add(f"[dim]raw payload {life.raw_payload['id']}[/]")
    stored = tree.add(f"{instant(event['ingested_at'])}  stored, with the promise to deliver it")
    stored.add(f"occurred at {instant(event['occurred_at'], with_date=True)}")
    stored.add(escape(_compact(event["payload"])))
    for promise in life.promises:
        _add_promise(tree, promise)
    for processing in life.processing:
        tree.add(f"{instant(processing['processed_at'])}  processed by [green]{escape(processing['consumer'])}[/]")
    if not life.processing:
        tree.add("[dim]no consumer has processed it[/]")
    return tree


def instant(value: str | datetime, *, with_date: bool = False) -> str:
    """An instant in UTC: 14:32:05.123Z."""
    moment = (datetime.fromisoformat(value) if isinstance(value, str) else value).astimezone(UTC)
    text = moment.isoformat(sep=" ", timespec="milliseconds").removesuffix("+00:00") + "Z"
    return text if with_date else text[11:]


def styled_state(state: str) -> str:
    """A promise's state, with its colour."""
    return f"[{_STATE_STYLES.get(state, 'white')}]{state.replace('_', '-' if state == 'dead_lettered' else ' ')}[/]"


def _add_promise(tree: Tree, promise: Mapping[str, Any]) -> None:
    attempts = promise["delivery_attempts"]
    replay = f", replay {promise['replay_id']}" if promise["replay_id"] else ""
    branch = tree.add(
        f"{instant(promise['created_at'])}  promised on [bold]{escape(promise['topic'])}[/]{replay}: "
        f"{styled_state(promise['state'])} after {attempts} {'attempt' if attempts == 1 else 'attempts'}"
    )
    for failure in promise["failures"]:
        branch.add(
            f"{instant(failure['failed_at'])}  attempt {failure['attempt']} failed: {escape(failure['error'])} "
            f"[dim]({escape(failure['claimed_by'])})[/]"
        )
    if promise["delivered_at"]:
        branch.add(f"{instant(promise['delivered_at'])}  delivered as message {escape(promise['message_id'])}")
    elif promise["dead_lettered_at"]:
        branch.add(f"{instant(promise['dead_lettered_at'])}  given up: {escape(promise['last_error'])}")
    elif promise["state"] == "in_flight":
        branch.add(f"claimed by {escape(promise['claimed_by'])} until {instant(promise['next_attempt_at'])}")
    elif promise["last_error"]:
        branch.add(f"{instant(promise['next_attempt_at'])}  next attempt; last error: {escape(promise['last_error'])}")


def _compact(payload: Mapping[str, Any]) -> str:
    return "  ".join(
        f"{key}={json.dumps(value) if not isinstance(value, str) else value}" for key, value in payload.items()
    )
