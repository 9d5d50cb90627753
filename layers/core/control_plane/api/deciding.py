"""Decisions, what people are asked to approve, and switches, as they are read."""

from datetime import datetime
from http import HTTPStatus
from typing import Any

from pydantic import Field

from control_plane.api.http import Refused, Response
from control_plane.api.pages import Page, check_window, page, position
from control_plane.api.routes import Call, QueryId, QueryInstant, Strict
from control_plane.api.rows import ID_PREFIX, by_prefix, parse_id, read_one, read_rows
from control_plane.decisions.reading import DecisionTree, read_tree
from control_plane.decisions.switches import list_switches
from control_plane.platform.database import Database
from control_plane.tracing.decisions import decision_spans
from control_plane.tracing.record import read_decisions
from control_plane.tracing.spans import as_otlp_json


class DecisionsQuery(Page):
    """Which decisions; a filter that is left out fits all."""

    state: str | None = Field(None, max_length=50, description="Such as awaiting_approval.")
    entity_id: str | None = Field(None, max_length=200, description="Such as AAPL.")
    playbook: str | None = Field(None, max_length=200, description="Such as unusual_bar.")
    since: QueryInstant | None = Field(None, description="Opened at this instant or later.")
    until: QueryInstant | None = Field(None, description="Opened before this instant.")
    event_id: QueryId | None = Field(None, description="About what this event tells of, or told of by it.")
    id_prefix: str | None = Field(None, pattern=ID_PREFIX, description="Its id begins so; beside no other filter.")


def list_decisions(database: Database, call: Call) -> Response:
    """Returns a page of decisions, newest first, or by id for a prefix. Raises Refused for filters that do not fit."""
    query: DecisionsQuery = call.query
    wanted = query.model_dump(exclude={"limit", "after", "id_prefix", "event_id"})
    if query.id_prefix is not None:
        if query.event_id is not None or any(value is not None for value in wanted.values()):
            raise Refused(HTTPStatus.BAD_REQUEST, "id_prefix stands beside no other filter: leave one of them out.")
        [after] = position(query, str)
        same = by_prefix(database, "decisions_by_prefix", query.id_prefix, after=after, limit=query.limit + 1)
        return page(same, lambda one: [one["decision_id"]], query=query)
    check_window(query.since, query.until)
    opened_at, decision_id = position(query, datetime, str)
    among = None
    if query.event_id is not None:
        among = [row["decision_id"] for row in read_rows(database, "decisions_of_event", event_id=query.event_id)]
    found = read_rows(
        database,
        "decisions",
        **wanted,
        among=among,
        opened_at=opened_at,
        decision_id=None if decision_id is None else parse_id(decision_id, "after"),
        limit=query.limit + 1,
    )
    return page(found, lambda one: [one["opened_at"], one["decision_id"]], query=query)


def show_decision(database: Database, call: Call) -> Response:
    """Returns a decision with all its steps, or its spans; a step's parent says where it hangs. Raises Refused."""
    decision_id = parse_id(call.parameters["decision_id"], "decision_id")
    with database.bounded() as connection:
        if call.query.format == "otlp":
            spans = [span for one in read_decisions(connection, [decision_id]) for span in decision_spans(one)]
            shown = as_otlp_json(spans) if spans else None
        else:
            tree = read_tree(connection, decision_id)
            shown = None if tree is None else _tree(tree)
    if shown is None:
        raise Refused(HTTPStatus.NOT_FOUND, f"There is no decision {decision_id}.")
    return Response(HTTPStatus.OK, shown)


def _tree(tree: DecisionTree) -> dict[str, Any]:
    steps = [
        {
            "seq": step.seq,
            "parent": step.parent,
            "kind": step.kind,
            "author": step.author,
            "at": step.at,
            "cost_micros": step.cost_micros,
            "body": step.body,
            "output_sha256": step.output_sha256,
            "output": step.output,
        }
        for step in tree.steps
    ]
    return {"decision": tree.facts, "steps": steps}


class ShadowQuery(Strict):
    """Which verdicts of policies in shadow."""

    domain: str | None = Field(None, pattern=r"^[a-z][a-z0-9_]{0,62}$", description="Such as finance.")
    since: QueryInstant | None = Field(None, description="Given at this instant or later; otherwise the last 7 days.")
    until: QueryInstant | None = Field(None, description="Given before this instant.")


def show_shadow(database: Database, call: Call) -> Response:
    """Returns how often policies in shadow said what, beside what the enforced ones said. Raises Refused."""
    query: ShadowQuery = call.query
    check_window(query.since, query.until)
    window = query.model_dump()
    [counts] = read_rows(database, "shadow_counts", **window)
    return Response(HTTPStatus.OK, {**counts, "pairs": read_rows(database, "shadow_pairs", **window)})


def list_approvals(database: Database, call: Call) -> Response:
    """Returns a page of what people are asked now, the most urgent first."""
    query: Page = call.query
    expires_at, approval_id = position(query, datetime, str)
    found = read_rows(
        database,
        "open_approvals",
        expires_at=expires_at,
        approval_id=None if approval_id is None else parse_id(approval_id, "after"),
        limit=query.limit + 1,
    )
    return page(found, lambda one: [one["expires_at"], one["approval_id"]], query=query)


def show_approval(database: Database, call: Call) -> Response:
    """Returns one request for an approval, with its answer where it has one. Raises Refused."""
    approval_id = parse_id(call.parameters["approval_id"], "approval_id")
    missing = f"There is no request {approval_id}."
    return Response(HTTPStatus.OK, read_one(database, "approval", missing, approval_id=approval_id))


def show_switches(database: Database, call: Call) -> Response:
    """Returns a page of what was ever switched, what is off first."""
    query: Page = call.query
    after_on, after_scope = position(query, int, str)
    with database.bounded() as connection:
        stored = list_switches(connection)
    found = [
        {"scope": one.scope, "is_off": one.is_off, "set_by": one.set_by, "set_at": one.set_at, "reason": one.reason}
        for one in stored
        if after_on is None or (not one.is_off, one.scope) > (bool(after_on), after_scope)
    ]
    found.sort(key=lambda one: (not one["is_off"], str(one["scope"])))
    return page(found[: query.limit + 1], lambda one: [int(not one["is_off"]), one["scope"]], query=query)
