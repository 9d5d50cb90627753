"""Asking RetrialFunction: a decision decided again, and policies tried on what was recorded. Nothing is changed."""

from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Annotated, Any, ClassVar, Final

from pydantic import AfterValidator, Field

from control_plane.api.http import Refused, Response
from control_plane.api.routes import Call, Strict
from control_plane.api.rows import parse_id

type Ask = Callable[[Mapping[str, Any]], Mapping[str, Any]]
"""Invokes RetrialFunction with an event, and returns its answer. It raises InvocationFailed."""

ANSWER_SECONDS: Final = 25.0
"""How long an answer is waited for: API Gateway waits 29 s for ours."""
MOST_POLICY_BYTES: Final = 65_536
MOST_REQUESTS: Final = 500
"""How many recorded requests may be tried at once. Their module has the same number; it would load Cedar here."""

_STATUSES: Final = {
    "no_decision": HTTPStatus.NOT_FOUND,
    "no_domain": HTTPStatus.UNPROCESSABLE_ENTITY,
    "policy_unusable": HTTPStatus.UNPROCESSABLE_ENTITY,
}


def _bounded(text: str) -> str:
    if (size := len(text.encode(errors="surrogatepass"))) > MOST_POLICY_BYTES:
        raise ValueError(f"it has {size} bytes: {MOST_POLICY_BYTES} is the most")
    return text


_Cedar = Annotated[str, Field(min_length=1, max_length=MOST_POLICY_BYTES), AfterValidator(_bounded)]


class PolicyTrial(Strict):
    """Policies that are to be tried on recorded requests."""

    has_lines: ClassVar[bool] = True

    policies: _Cedar = Field(description="Cedar policies, each with an @id.")
    domain: str | None = Field(
        None,
        pattern=r"^[a-z][a-z0-9_]{0,62}$",
        description="Whose requests they are tried on; where one domain alone decides, it may be left out.",
    )
    policy_schema: _Cedar | None = Field(
        None, alias="schema", description="Their Cedar schema; without it, the domain's own."
    )
    limit: int = Field(MOST_REQUESTS, ge=1, le=MOST_REQUESTS, description="How many of the newest requests are tried.")


def replay_decision(ask: Ask, call: Call) -> Response:
    """Decides a decision again from its record, and compares. Raises Refused."""
    decision_id = parse_id(call.parameters["decision_id"], "decision_id")
    return _answered(ask({"kind": "decision", "decision_id": str(decision_id)}))


def try_policies(ask: Ask, call: Call) -> Response:
    """Says what policies would have decided on the newest recorded requests. Raises Refused."""
    wanted: PolicyTrial = call.body
    return _answered(ask({"kind": "policies", **wanted.model_dump()}))


def _answered(said: Mapping[str, Any]) -> Response:
    if (why := said.get("refused")) is not None:
        raise Refused(_STATUSES[why], str(said["detail"]))
    return Response(HTTPStatus.OK, said["result"])
