"""The routes that change something: those of CommandApiFunction, whose role of the database is acp_command."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from http import HTTPStatus

from control_plane.api import access_commands, dead_letters, deciding_commands, flow_commands, operation_commands
from control_plane.api.changes import Changes
from control_plane.api.http import Response
from control_plane.api.reads import NOBODY
from control_plane.api.routes import Call, Example, Route, Strict
from control_plane.api.scopes import Scope
from control_plane.operations.kind import Kind
from control_plane.platform.database import Database

type Invoke = Callable[[], None]


def command_routes(
    database: Callable[[], Database], runs: Mapping[str, Invoke], kinds: Callable[[], Sequence[Kind]]
) -> Sequence[Route]:
    """Returns the routes. ``runs`` starts ``ingestion``, ``relay`` and ``operations``, each asynchronously."""
    changes = Changes(database)
    operations = operation_commands.Operations(changes, kinds, wake=partial(_start, runs, "operations"))

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
            lambda changes, call: flow_commands.run(changes, call, partial(_start, runs, name), function),
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
        change(
            "POST",
            "/dead-letters/discard",
            Scope.OPERATE,
            dead_letters.discard_dead_letters,
            "Lets dead letters go that nobody needs any more.",
            body=dead_letters.Discard,
            example=Example(body={"ids": [7], "reason": "its event was a test"}, status=HTTPStatus.CONFLICT),
        ),
        *_operation_routes(operations),
        start("ingestion", "IngestionFunction"),
        start("relay", "RelayFunction"),
    ]


def _start(runs: Mapping[str, Invoke], name: str) -> None:
    runs[name]()


def _operation_routes(operations: operation_commands.Operations) -> Sequence[Route]:
    accepted, missing = HTTPStatus.ACCEPTED, HTTPStatus.NOT_FOUND
    one = {"operation_id": NOBODY}
    because = {"reason": "the consumer is mended"}

    def command(
        what: str, answer: Callable[[Call], Response], summary: str, body: type[Strict], **more: object
    ) -> Route:
        return Route(
            "PUT" if what == "rate" else "POST",
            f"/operations/{{operation_id}}/{what}",
            Scope.OPERATE,
            answer,
            summary,
            body=body,
            status=accepted if what == "start" else HTTPStatus.OK,
            examples=(Example(one, body={**because, **more}, status=missing),),
        )

    return [
        Route(
            "POST",
            "/operations",
            Scope.OPERATE,
            operations.plan,
            "Asks for the plan of an operation; nothing is done until it is started.",
            body=operation_commands.WantedOperation,
            status=accepted,
            examples=(
                Example(body={"kind": "redrive", "filter": {"subscription": "signal_lab"}, **because}, status=accepted),
            ),
        ),
        command(
            "start",
            operations.start,
            "Starts what was planned, by its plan's hash.",
            operation_commands.Start,
            plan_hash="0" * 64,
        ),
        command("pause", operations.pause, "Pauses an operation after the step under way.", flow_commands.Because),
        command("resume", operations.resume, "Lets a paused or failed operation go on.", flow_commands.Because),
        command(
            "rate",
            operations.set_rate,
            "Changes how many items a second are done.",
            operation_commands.NewRate,
            rate=50,
        ),
        command("accept", operations.accept, "Accepts that rebuilt tables differ.", flow_commands.Because),
        command("cancel", operations.cancel, "Ends an operation; what is done stays done.", flow_commands.Because),
        Route(
            "PUT",
            "/backfill-files/{file}/{number}",
            Scope.OPERATE,
            operations.keep_piece,
            "Keeps a piece of a file for a backfill.",
            body=operation_commands.Piece,
            examples=(
                Example(
                    {"file": "0" * 64, "number": "1"},
                    body={"observations": [{"entity_id": "AAPL"}], "reason": "history of 2012"},
                ),
            ),
        ),
    ]
