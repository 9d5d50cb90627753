"""Renders an event's timeline as a tree."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from rich.tree import Tree

from local_cloud.visible import shown

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from control_plane.ops.timeline import EventTimeline
    from control_plane.platform.breakers import Breaker

_STATE_STYLES = {
    "delivered": "green",
    "dead_lettered": "red",
    "redriven": "yellow",
    "retrying": "yellow",
    "in_flight": "cyan",
    "pending": "blue",
}


def render_timeline(timeline: EventTimeline, breakers: Mapping[str, Breaker] | None = None) -> Tree:
    """Returns the tree: raw payload → event → each delivery with its attempts → each consumer, with UTC instants.

    `breakers` by subscription explain why a message waits. A message that was redriven has two deliveries: the one that
    was given up on, and the one that replaced it.
    """
    event = timeline.event
    tree = Tree(f"[bold]{shown(event['event_type'])}[/] {shown(event['entity_id'] or '')}  [dim]{event['event_id']}[/]")
    tree.add(f"trace [cyan]{event['trace_id']}[/]")
    if (raw := timeline.raw_payload) is not None:
        branch = tree.add(f"{instant(raw['fetched_at'])}  fetched from {shown(raw['source'])}")
        branch.add(f"[dim]raw payload {raw['id']}[/]")
    revision = f", revision {event['revision']}" if event["revision"] else ""
    stored = tree.add(f"{instant(event['ingested_at'])}  stored with its messages, in one transaction{revision}")
    stored.add(f"occurred at {instant(event['occurred_at'], with_date=True)}")
    stored.add(shown(_compact(event["payload"])))
    redrives = {
        (letter["subscription"], letter["redriven_by"]): letter["resolved_at"]
        for letter in (*timeline.deliveries, *timeline.consumer_dead_letters)
        if letter["redriven_by"] is not None
    }
    for delivery in timeline.deliveries:
        breaker = (breakers or {}).get(delivery["subscription"])
        _add_delivery(
            tree, delivery, breaker, redriven_at=redrives.get((delivery["subscription"], delivery["operation_id"]))
        )
    if not timeline.deliveries:
        tree.add("[yellow]promised to nobody: its topic had no subscription, or a backfill did not publish it[/]")
    for letter in timeline.consumer_dead_letters:
        _add_consumers_letter(tree, letter, timeline.consume_failures)
    for failure in timeline.consume_failures:
        if failure["message_id"] not in {letter["message_id"] for letter in timeline.consumer_dead_letters}:
            tree.add(_failed(failure))
    for processing in timeline.processing:
        tree.add(f"{instant(processing['processed_at'])}  processed by [green]{shown(processing['consumer'])}[/]")
    if not timeline.processing:
        tree.add("[dim]no consumer has processed it[/]")
    return tree


def instant(value: str | datetime, *, with_date: bool = False) -> str:
    """Returns an instant in UTC, such as 14:32:05.123Z."""
    moment = (datetime.fromisoformat(value) if isinstance(value, str) else value).astimezone(UTC)
    text = moment.isoformat(sep=" ", timespec="milliseconds").removesuffix("+00:00") + "Z"
    return text if with_date else text[11:]


def styled_state(state: str) -> str:
    """A delivery's state, with its colour."""
    return f"[{_STATE_STYLES.get(state, 'white')}]{state_text(state)}[/]"


def state_text(state: str) -> str:
    """A delivery's state in words: dead-lettered, in flight."""
    return state.replace("_", "-" if state == "dead_lettered" else " ")


def _add_delivery(tree: Tree, delivery: Mapping[str, Any], breaker: Breaker | None, *, redriven_at: str | None) -> None:
    attempts = delivery["delivery_attempts"]
    begun_at = redriven_at or delivery["promised_at"] or delivery["created_at"]
    again = "again " if delivery["operation_id"] else ""
    branch = tree.add(
        f"{instant(begun_at)}  {again}for [bold]{shown(delivery['subscription'])}[/] ({shown(delivery['topic'])}): "
        f"{styled_state(delivery['state'])} after {attempts} {'attempt' if attempts == 1 else 'attempts'}"
    )
    if breaker is not None and not breaker.is_closed and delivery["state"] in {"pending", "retrying"}:
        branch.add(f"[yellow]{_waits_for(breaker)}[/]")
    if delivery["operation_id"]:
        branch.add(f"[dim]operation {delivery['operation_id']}[/]")
    for failure in delivery["failures"]:
        branch.add(
            f"{instant(failure['failed_at'])}  attempt {failure['attempt']} failed: {shown(failure['error'])} "
            f"[dim]({shown(failure['claimed_by'])})[/]"
        )
    if delivery["delivered_at"]:
        branch.add(f"{instant(delivery['delivered_at'])}  delivered as message {shown(delivery['message_id'])}")
    elif delivery["dead_lettered_at"]:
        _add_dead_letter(branch, delivery)
    elif delivery["state"] == "in_flight":
        branch.add(f"claimed by {shown(delivery['claimed_by'])} until {instant(delivery['next_attempt_at'])}")
    elif delivery["last_error"]:
        due = instant(delivery["next_attempt_at"])
        branch.add(f"{due}  next attempt; last error: {shown(delivery['last_error'])}")


def _waits_for(breaker: Breaker) -> str:
    """Returns why nothing is sent to a subscription, and who or what will change that."""
    since = instant(breaker.opened_at, with_date=True) if breaker.opened_at else "some time"
    reason = f"; last error: {breaker.last_error}" if breaker.last_error else ""
    if breaker.held_by is not None:
        why = f", because: {breaker.held_reason}" if breaker.held_reason else ""
        return shown(
            f"held by {breaker.held_by} since {since}{why}{reason}; scripts/acp resume {breaker.name} lets it go"
        )
    state = breaker.state.replace("_", "-")
    return shown(f"waits: the breaker of {breaker.name} has been {state} since {since}{reason}")


def _add_dead_letter(branch: Tree, delivery: Mapping[str, Any]) -> None:
    branch.add(f"{instant(delivery['dead_lettered_at'])}  dead-lettered: {shown(delivery['last_error'])}")
    if delivery["resolution"] is None:
        branch.add(f"send it again: scripts/acp redrive {delivery['dead_letter_id']}")
    else:
        branch.add(
            f"{instant(delivery['resolved_at'])}  {shown(delivery['resolution'])} by {shown(delivery['resolved_by'])}"
        )


def _add_consumers_letter(tree: Tree, letter: Mapping[str, Any], failures: Sequence[Mapping[str, Any]]) -> None:
    branch = tree.add(
        f"{instant(letter['dead_lettered_at'])}  [red]given up on[/] by [bold]{shown(letter['subscription'])}[/]: "
        f"{shown(letter['reason'])}"
    )
    for failure in failures:
        if (failure["subscription"], failure["message_id"]) == (letter["subscription"], letter["message_id"]):
            branch.add(_failed(failure))
    if letter["resolution"] is not None:
        branch.add(f"{instant(letter['resolved_at'])}  {shown(letter['resolution'])} by {shown(letter['resolved_by'])}")
    elif letter["is_redrivable"]:
        branch.add(f"send it again: scripts/acp redrive {letter['id']}")
    else:
        branch.add(f"its body is not this event's: scripts/acp dead-letters --id {letter['id']} --body")


def _failed(failure: Mapping[str, Any]) -> str:
    return (
        f"{instant(failure['failed_at'])}  {shown(failure['subscription'])} failed, receive {failure['attempt']}: "
        f"{shown(failure['error'])}"
    )


def _compact(payload: Mapping[str, Any]) -> str:
    return "  ".join(
        f"{key}={json.dumps(value) if not isinstance(value, str) else value}" for key, value in payload.items()
    )
