"""The routes that change something: those of CommandApiFunction, whose role of the database is acp_command."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from http import HTTPStatus

from control_plane.api import access_commands, deciding_commands, flow_commands
from control_plane.api.changes import Changes
from control_plane.api.http import Response
from control_plane.api.reads import NOBODY
from control_plane.api.routes import Call, Example, Route, Strict
from control_plane.api.scopes import Scope
from control_plane.platform.database import Database

type Invoke = Callable[[], None]


def command_routes(database: Callable[[], Database], runs: Mapping[str, Invoke]) -> Sequence[Route]:
    """Returns the routes. ``runs`` starts ``ingestion`` and ``relay``, each asynchronously."""
    changes = Changes(database)

    def change(
        method: str,
        path: str,
        scope: Scope,
        answer: Callable[[Changes, Call], Response],
        summary: str,
        *,
        body: type[Strict] | None = None,
        query: type[Strict] | None = None,
        status: HTTPStatus = HTTPStatus.OK,
        example: Example,
    ) -> Route:
        return Route(
            method,
            path,
            scope,
            partial(answer, changes),
            summary,
            query=query,
            body=body,
            status=status,
            examples=(example,),
        )

    def start(name: str, function: str) -> Route:
        return change(
            "POST",
            f"/{name}/run",
            Scope.OPERATE,
            lambda changes, call: flow_commands.run(changes, call, runs[name], function),
            f"Starts {function}, and does not wait for it.",
            body=flow_commands.Because,
            status=HTTPStatus.ACCEPTED,
            example=Example(body={"reason": "the feed is back"}, status=HTTPStatus.ACCEPTED),
        )

    def breaker(kind: str) -> Sequence[Route]:
        # A subscription's breaker bears its name; a source's is reached by /breakers alone.
        name = {"name": "signal_lab" if kind == "subscriptions" else "nothing"}
        missing = HTTPStatus.NOT_FOUND
        return [
            change(
                "POST",
                f"/{kind}/{{name}}/hold",
                Scope.OPERATE,
                flow_commands.hold,
                "Holds it open until it is resumed: nothing passes.",
                body=flow_commands.Hold,
                example=Example(
                    name,
                    body={"reason": "its consumer is being mended"},
                    status=HTTPStatus.OK if kind == "subscriptions" else missing,
                ),
            ),
            change(
                "POST",
                f"/{kind}/{{name}}/resume",
                Scope.OPERATE,
                flow_commands.resume,
                "Ends a hold or a cool-down: the next run probes.",
                body=flow_commands.Because,
                example=Example(
                    name,
                    body={"reason": "it is mended"},
                    status=HTTPStatus.OK if kind == "subscriptions" else missing,
                ),
            ),
        ]

    return [
        change(
            "POST",
            "/tokens",
            Scope.ADMIN,
            access_commands.make_token,
            "Makes a token, and shows it this once.",
            body=access_commands.NewToken,
            status=HTTPStatus.CREATED,
            example=Example(
                body={"name": "kim", "scopes": ["read", "operate"], "reason": "kim joins"}, status=HTTPStatus.CREATED
            ),
        ),
        change(
            "DELETE",
            "/tokens/{name}",
            Scope.ADMIN,
            access_commands.revoke_token,
            "Revokes a token for good, at once.",
            query=access_commands.RevokedToken,
            example=Example({"name": "kim"}, query={"reason": "kim left"}),
        ),
        change(
            "POST",
            "/approvals/{approval_id}",
            Scope.APPROVE,
            deciding_commands.answer_approval,
            "Approves or denies exactly the action that was shown.",
            body=deciding_commands.Answer,
            example=Example(
                {"approval_id": NOBODY},
                body={"gives": False, "action_sha256": "0" * 64, "reason": "too much of one stock"},
                status=HTTPStatus.NOT_FOUND,
            ),
        ),
        change(
            "PUT",
            "/switches/{scope}",
            Scope.OPERATE,
            deciding_commands.put_switch,
            "Switches a scope off, or on again.",
            body=deciding_commands.SwitchState,
            example=Example({"scope": "domain:finance"}, body={"is_off": True, "reason": "the feed lies"}),
        ),
        *breaker("subscriptions"),
        *breaker("breakers"),
        change(
            "DELETE",
            "/breakers/{name}",
            Scope.OPERATE,
            flow_commands.forget,
            "Forgets a breaker that nobody guards with any more.",
            query=flow_commands.Because,
            example=Example({"name": "nothing"}, query={"reason": "it is gone"}, status=HTTPStatus.NOT_FOUND),
        ),
        start("ingestion", "IngestionFunction"),
        start("relay", "RelayFunction"),
    ]
