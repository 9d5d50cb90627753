"""The routes that read: those of OpsApiFunction, whose role of the database can write nothing."""

from collections.abc import Callable, Sequence
from functools import partial
from http import HTTPStatus

from control_plane.api import access, artifacts, dead_letters, deciding, events, flow, operations, retrials
from control_plane.api.http import Response
from control_plane.api.page import Page as WebPage
from control_plane.api.page import page_routes
from control_plane.api.pages import Page
from control_plane.api.routes import JSON, Call, Example, Route, Strict
from control_plane.api.scopes import Scope
from control_plane.platform.database import Database

NOBODY = "00000000-0000-4000-8000-000000000000"
"""An id that nothing has, for examples."""


def read_routes(
    database: Callable[[], Database],
    health: Callable[[], Response],
    document: Callable[[], Response],
    web_page: Callable[[], WebPage],
    try_again: retrials.Ask,
) -> Sequence[Route]:
    """Returns the routes. ``health`` answers /health, ``document`` the OpenAPI document; ``try_again`` asks
    RetrialFunction.
    """

    def read(
        path: str,
        answer: Callable[[Database, Call], Response],
        summary: str,
        *,
        scope: Scope = Scope.READ,
        query: type[Strict] | None = None,
        examples: Sequence[Example] = (Example(),),
        content_types: Sequence[str] = (JSON,),
    ) -> Route:
        return Route(
            "GET",
            path,
            scope,
            lambda call: answer(database(), call),
            summary,
            query=query,
            examples=examples,
            content_types=content_types,
        )

    def missing(name: str) -> Sequence[Example]:
        return (Example(parameters={name: NOBODY}, status=HTTPStatus.NOT_FOUND),)

    return [
        Route("GET", "/health", Scope.PUBLIC, lambda _: health(), "Tells whether the control plane works."),
        Route("GET", "/openapi.json", Scope.PUBLIC, lambda _: document(), "Describes every route."),
        *page_routes(web_page),
        read("/whoami", access.show_whoami, "Says whose token this is, and what it may do."),
        read("/flow", flow.FlowPictures().show, "Shows each stage's rate, backlog, oldest age and failures."),
        read(
            "/metrics",
            flow.show_metrics,
            "Shows the metrics as Prometheus reads them.",
            scope=Scope.METRICS,
            content_types=("text/plain", "application/openmetrics-text"),
        ),
        read(
            "/events",
            events.list_events,
            "Lists events, newest stored first, each with where it stands with its subscriptions.",
            query=events.EventsQuery,
            examples=(Example(query={"event_type": "MARKET_TICK_INGESTED", "limit": 2}),),
        ),
        read(
            "/events/{event_id}",
            events.show_timeline,
            "Shows an event's timeline, or its spans.",
            query=events.ShownAs,
            examples=missing("event_id"),
        ),
        read("/anomalies", events.list_anomalies, "Lists what was found unusual.", query=events.AnomaliesQuery),
        read("/decisions", deciding.list_decisions, "Lists decisions.", query=deciding.DecisionsQuery),
        read(
            "/decisions/{decision_id}",
            deciding.show_decision,
            "Shows a decision with all its steps, or its spans.",
            query=events.ShownAs,
            examples=missing("decision_id"),
        ),
        Route(
            "POST",
            "/decisions/{decision_id}/replay",
            Scope.READ,
            partial(retrials.replay_decision, try_again),
            "Decides it again from its record, and compares the bytes.",
            examples=missing("decision_id"),
            only_reads=True,
        ),
        Route(
            "POST",
            "/policies/test",
            Scope.READ,
            partial(retrials.try_policies, try_again),
            "Tries policies on the newest recorded requests.",
            body=retrials.PolicyTrial,
            examples=(
                Example(
                    body={
                        "policies": '@id("nothing") forbid (principal, action, resource);',
                        "domain": "finance",
                        "limit": 100,
                    }
                ),
            ),
            only_reads=True,
        ),
        read(
            "/policies/shadow",
            deciding.show_shadow,
            "Counts what policies in shadow would have decided.",
            query=deciding.ShadowQuery,
            examples=(Example(query={"domain": "finance"}),),
        ),
        read(
            "/artifacts/{sha256}",
            artifacts.show_artifact,
            "Reads a range of what a decision used, in base64.",
            query=artifacts.ArtifactQuery,
            examples=(Example(parameters={"sha256": "0" * 64}, query={"length": 1000}, status=HTTPStatus.NOT_FOUND),),
        ),
        read("/approvals", deciding.list_approvals, "Lists what people are asked to approve.", query=Page),
        read(
            "/approvals/{approval_id}",
            deciding.show_approval,
            "Shows what a person is asked, and the answer.",
            examples=missing("approval_id"),
        ),
        read("/switches", deciding.show_switches, "Lists what was ever switched off.", query=Page),
        read("/subscriptions", flow.list_subscriptions, "Lists subscriptions.", query=Page),
        read("/breakers", flow.list_breakers, "Lists the breakers that ever failed or were held.", query=Page),
        read(
            "/dead-letters",
            dead_letters.list_dead_letters,
            "Lists messages that were given up on.",
            query=dead_letters.DeadLettersQuery,
            examples=(Example(query={"subscription": "signal_lab"}),),
        ),
        read(
            "/dead-letters/{letter_id}",
            dead_letters.show_dead_letter,
            "Shows a dead letter, what it held and each failure.",
            examples=(Example(parameters={"letter_id": "7"}, status=HTTPStatus.NOT_FOUND),),
        ),
        read("/operations", operations.list_operations, "Lists operations.", query=operations.OperationsQuery),
        read(
            "/operations/{operation_id}",
            operations.show_operation,
            "Shows an operation, its plan and its progress.",
            examples=missing("operation_id"),
        ),
        read("/tokens", access.list_tokens, "Lists tokens, never the token itself.", scope=Scope.ADMIN, query=Page),
        read(
            "/audit",
            access.list_audit,
            "Lists what was changed by the API.",
            scope=Scope.ADMIN,
            query=access.AuditQuery,
            examples=(Example(query={"token": "root", "limit": 10}),),
        ),
    ]
