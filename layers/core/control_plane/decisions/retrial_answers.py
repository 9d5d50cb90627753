"""What RetrialFunction answers: a decision decided again from its record, and policies tried on recorded requests.

Both only read. The function has a role of the database that can do no more, and none of its own on AWS: policies that
somebody sends are parsed by native code, which must not happen where actions are released.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Final, Literal
from uuid import UUID

from psycopg import Connection
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from control_plane.decisions import policy as policies
from control_plane.decisions.offline import network_off
from control_plane.decisions.policy import PolicyUnusable
from control_plane.decisions.record import Loaded, load
from control_plane.decisions.replay import Difference, replay
from control_plane.decisions.retrial import MOST_REQUESTS, Retried, retry
from control_plane.model.deciding import Deciding, playbook_versions
from control_plane.model.errors import MalformedInvocation
from control_plane.model.ids import canonical_instant

MOST_CHARACTERS: Final = 2_000
"""The longest text of a difference that is answered whole."""


class _Wanted(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DecisionWanted(_Wanted):
    """Asks for a decision to be decided again."""

    kind: Literal["decision"]
    decision_id: UUID


class PoliciesWanted(_Wanted):
    """Asks what policies would have decided on the newest recorded requests."""

    kind: Literal["policies"]
    domain: str | None
    """Whose requests; None for the only domain that decides."""
    policies: str
    policy_schema: str | None = None
    """Their Cedar schema; None for the domain's own."""
    limit: int = Field(MOST_REQUESTS, ge=1, le=MOST_REQUESTS)


_WANTED: Final[TypeAdapter[DecisionWanted | PoliciesWanted]] = TypeAdapter(
    Annotated[DecisionWanted | PoliciesWanted, Field(discriminator="kind")]
)


def answer(
    connection: Connection[Any],
    event: Mapping[str, Any],
    deciding: Mapping[str, Deciding],
    *,
    is_over: Callable[[], bool],
) -> Mapping[str, Any]:
    """Returns ``{"result": {…}}``, or ``{"refused": …, "detail": …}`` where what was asked about is not there.

    Raises MalformedInvocation and psycopg.Error.
    """
    try:
        wanted = _WANTED.validate_python(event)
    except ValidationError as error:
        told = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(map(str, told["loc"])) or "it"
        raise MalformedInvocation(
            f"the event asks for no retrial, as events/retrial.json does: {where}: {told['msg']}"
        ) from None
    if isinstance(wanted, PoliciesWanted):
        return _try_policies(connection, wanted, deciding, is_over)
    loaded = load(connection, wanted.decision_id)
    if loaded is None:
        return _refused("no_decision", f"There is no decision {wanted.decision_id}.")
    return {"result": _replayed(loaded, deciding)}


def _replayed(loaded: Loaded, deciding: Mapping[str, Deciding]) -> Mapping[str, Any]:
    facts = loaded.record.decision
    versions = playbook_versions(deciding)
    if (facts.domain, facts.playbook, facts.playbook_version) not in versions:
        here = sorted(version for domain, name, version in versions if (domain, name) == (facts.domain, facts.playbook))
        return _comparison(facts.decision_id, same=None) | {
            "needs": {
                "playbook": facts.playbook,
                "version": facts.playbook_version,
                "here": here,
                "detail": f"It was decided by {facts.playbook} {facts.playbook_version}, which this release does not "
                "have: replay it with a release that has it.",
            }
        }
    with network_off() as refused:
        found = replay(loaded, deciding[facts.domain])
    return _comparison(facts.decision_id, same=found.is_identical and not refused) | {
        "steps": found.steps,
        "compared_bytes": found.compared_bytes,
        "recorded_sha256": found.recorded_sha256.hex(),
        "decided_sha256": found.decided_sha256.hex(),
        "difference": None if found.difference is None else _difference(found.difference),
        "network": sorted(set(refused)),
    }


def _comparison(decision_id: UUID, *, same: bool | None) -> dict[str, Any]:
    return {
        "decision_id": str(decision_id),
        "same": same,
        "steps": 0,
        "compared_bytes": 0,
        "recorded_sha256": None,
        "decided_sha256": None,
        "difference": None,
        "network": [],
        "needs": None,
    }


def _difference(found: Difference) -> Mapping[str, Any]:
    path, recorded, decided = found.field()
    return {
        "seq": found.seq,
        "kind": found.kind,
        "what": found.what,
        "field": path,
        "recorded": _shortened(recorded),
        "decided": _shortened(decided),
    }


def _shortened(text: str) -> str:
    return text if len(text) <= MOST_CHARACTERS else f"{text[: MOST_CHARACTERS - 1]}…"


def _try_policies(
    connection: Connection[Any],
    wanted: PoliciesWanted,
    deciding: Mapping[str, Deciding],
    is_over: Callable[[], bool],
) -> Mapping[str, Any]:
    domain = next(iter(deciding), None) if wanted.domain is None and len(deciding) == 1 else wanted.domain
    there = ", ".join(sorted(deciding)) or "none"
    if domain is None:
        return _refused("no_domain", f"Name the domain whose requests these policies are tried on. There are: {there}.")
    if (plug_ins := deciding.get(domain)) is None:
        return _refused("no_domain", f"No domain {domain[:100]!r} decides anything here. There are: {there}.")
    schema = plug_ins.gate.schema if wanted.policy_schema is None else wanted.policy_schema
    try:
        policy = policies.load(wanted.policies, schema)
    except PolicyUnusable as error:
        return _refused("policy_unusable", f"These policies cannot be used: {str(error)[:MOST_CHARACTERS]}.")
    found = retry(connection, domain, policy, limit=wanted.limit, is_over=is_over)
    different = found.differences
    moves = Counter((one.before.verdict, one.after.verdict) for one in different)
    tried = len(found.retried)
    stopped_by = "time" if found.is_out_of_time else "limit" if tried < found.recorded else None
    return {
        "result": {
            "domain": domain,
            "policy_sha256": policy.sha256.hex(),
            "schema_sha256": policy.schema_sha256.hex(),
            "policies": sorted(policy.names.values()),
            "recorded": found.recorded,
            "tried": tried,
            "stopped_by": stopped_by,
            "unasked": found.unasked,
            "counts": {
                "same": tried - len(different),
                "different": len(different),
                "moves": [
                    {"was": was, "would_be": would_be, "count": count}
                    for (was, would_be), count in sorted(moves.items())
                ],
            },
            "rows": [_row(one) for one in different],
        }
    }


def _row(one: Retried) -> Mapping[str, Any]:
    return {
        "verdict_id": str(one.verdict_id),
        "decision_id": str(one.decision_id),
        "entity_id": one.entity_id,
        "occurred_at": canonical_instant(one.occurred_at),
        "judged_at": canonical_instant(one.judged_at),
        "is_shadow": one.is_shadow,
        "recorded": one.recorded,
        "was": one.before.verdict,
        "would_be": one.after.verdict,
        "reasons": list(one.after.reasons),
        "errors": list(one.after.errors),
    }


def _refused(why: str, detail: str) -> Mapping[str, Any]:
    return {"refused": why, "detail": detail}
