"""An event's timeline as a tree."""

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


def render_timeline(timeline: EventLife) -> Tree:
    """Raw payload → event → delivery with its attempts → each consumer, with the instants (UTC)."""
    event = timeline.event
    tree = Tree(
        f"[bold]{escape(event['event_type'])}[/] {escape(event['entity_id'] or '')}  [dim]{event['event_id']}[/]"
    )
    tree.add(f"trace [cyan]{event['trace_id']}[/]")
    if (raw := timeline.raw_payload) is not None:
        branch = tree.add(f"{instant(raw['fetched_at'])}  fetched from {escape(raw['source'])}")
        branch.add(f"[dim]raw payload {raw['id']}[/]")
    stored = tree.add(f"{instant(event['ingested_at'])}  stored, with the promise to deliver it")
    stored.add(f"occurred at {instant(event['occurred_at'], with_date=True)}")
    stored.add(escape(_compact(event["payload"])))
    for delivery in timeline.promises:
        _add_delivery(tree, delivery)
    for processing in timeline.processing:
        tree.add(f"{instant(processing['processed_at'])}  processed by [green]{escape(processing['consumer'])}[/]")
    if not timeline.processing:
        tree.add("[dim]no consumer has processed it[/]")
    return tree


def instant(value: str | datetime, *, with_date: bool = False) -> str:
    """An instant in UTC: 14:32:05.123Z."""
    moment = (datetime.fromisoformat(value) if isinstance(value, str) else value).astimezone(UTC)
    text = moment.isoformat(sep=" ", timespec="milliseconds").removesuffix("+00:00") + "Z"
    return text if with_date else text[11:]


def styled_state(state: str) -> str:
    """A delivery's state, with its colour."""
    return f"[{_STATE_STYLES.get(state, 'white')}]{state.replace('_', '-' if state == 'dead_lettered' else ' ')}[/]"


def _add_delivery(tree: Tree, delivery: Mapping[str, Any]) -> None:
    attempts = delivery["delivery_attempts"]
    replay = f", replay {delivery['replay_id']}" if delivery["replay_id"] else ""
    branch = tree.add(
        f"{instant(delivery['created_at'])}  promised on [bold]{escape(delivery['topic'])}[/]{replay}: "
        f"{styled_state(delivery['state'])} after {attempts} {'attempt' if attempts == 1 else 'attempts'}"
    )
    for failure in delivery["failures"]:
        branch.add(
            f"{instant(failure['failed_at'])}  attempt {failure['attempt']} failed: {escape(failure['error'])} "
            f"[dim]({escape(failure['claimed_by'])})[/]"
        )
    if delivery["delivered_at"]:
        branch.add(f"{instant(delivery['delivered_at'])}  delivered as message {escape(delivery['message_id'])}")
    elif delivery["dead_lettered_at"]:
        branch.add(f"{instant(delivery['dead_lettered_at'])}  given up: {escape(delivery['last_error'])}")
    elif delivery["state"] == "in_flight":
        branch.add(f"claimed by {escape(delivery['claimed_by'])} until {instant(delivery['next_attempt_at'])}")
    elif delivery["last_error"]:
        due = instant(delivery["next_attempt_at"])
        branch.add(f"{due}  next attempt; last error: {escape(delivery['last_error'])}")


def _compact(payload: Mapping[str, Any]) -> str:
    return "  ".join(
        f"{key}={json.dumps(value) if not isinstance(value, str) else value}" for key, value in payload.items()
    )
