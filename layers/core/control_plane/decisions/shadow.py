"""Asks policies in shadow what they would have said to what was judged. It only puts that on record.

The enforced verdict is committed before anything of this begins, so that nothing here can change it. The policies are
asked in a child process, because they may be anything: such as take too long, or end the process.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from psycopg import Connection
from psycopg.rows import class_row

from control_plane.decisions import policy as policies
from control_plane.decisions.gatekeeper import LOCK_TIMEOUT, QUERIES, keep_artifact
from control_plane.decisions.policy import PolicyUnusable, Ruling
from control_plane.model.deciding import Gate, ReadPolicies
from control_plane.model.text import visible
from control_plane.platform.child import ChildFailed, run_in_child

MOST_SECONDS: Final = 2.0
"""How long policies in shadow may take to answer."""
MOST_CHARACTERS: Final = 65_536
"""The longest text of policies in shadow: it is put on record whole."""
MOST_REASONS: Final = 20


@dataclass(frozen=True, slots=True)
class ShadowVerdict:
    """What policies in shadow say, and what the enforced ones say to the same request."""

    enforced: str
    """By the enforced policies alone: a switch may have refused what they did not."""
    verdict: str
    reasons: tuple[str, ...]
    errors: tuple[str, ...]

    @property
    def differs(self) -> bool:
        """Whether the shadow would have decided otherwise, or could not."""
        return bool(self.errors) or self.enforced != self.verdict


@dataclass(frozen=True, slots=True)
class _Judged:
    """A verdict on record, with what its policies were asked."""

    is_approved: bool
    """Whether a person had approved the action when it was judged."""
    policies: bytes
    schema: bytes
    request: bytes


def judge_in_shadow(
    connection: Connection[Any], gate: Gate, read: ReadPolicies, verdict_id: UUID
) -> ShadowVerdict | None:
    """Puts on record what policies in shadow say to the request of a verdict; None where that is on record already.

    None, too, where there is no such verdict, or no policy was asked for it. ``read`` returns the policies; whatever is
    wrong with them is an error of the shadow verdict. Raises psycopg.Error: nothing is recorded then.
    """
    with connection.cursor(row_factory=class_row(_Judged)) as cursor:
        judged = cursor.execute(QUERIES["judged_without_shadow"].sql, {"verdict_id": verdict_id}).fetchone()
    if judged is None:
        return None
    request = policies.from_record(judged.request)
    enforced = policies.rule_again(judged.policies, judged.schema, request, is_approved=judged.is_approved)
    text, schema, ruling = _ask(gate, read, request, is_approved=judged.is_approved)
    said = ShadowVerdict(enforced.verdict, ruling.verdict, _shortened(ruling.reasons), _shortened(ruling.errors))
    with connection.transaction():
        connection.execute(QUERIES["limit_lock_waits"].sql, {"lock_timeout": LOCK_TIMEOUT})
        row = connection.execute(
            QUERIES["record_shadow_verdict"].sql,
            {
                "verdict_id": verdict_id,
                "policy_sha256": keep_artifact(connection, "policy", text),
                "schema_sha256": keep_artifact(connection, "policy_schema", schema),
                "enforced": said.enforced,
                "verdict": said.verdict,
                "reasons": json.dumps(said.reasons),
                "errors": json.dumps(said.errors),
            },
        ).fetchone()
    return said if row is not None and row[0] else None


def _ask(
    gate: Gate, read: ReadPolicies, request: dict[str, Any], *, is_approved: bool
) -> tuple[bytes | None, bytes | None, Ruling]:
    """Returns the policies, their schema, and what they say. Raises nothing: a shadow that fails says so."""
    text = schema = None
    try:
        text, schema = _encoded(read()), _encoded(gate.schema)
        asked = (text, schema, request)
        answer = json.loads(run_in_child(lambda: _answer(*asked, is_approved=is_approved), MOST_SECONDS))
        return text, schema, Ruling(answer["verdict"], tuple(answer["reasons"]), tuple(answer["errors"]))
    except Exception as error:  # noqa: BLE001 - whatever is wrong with policies in shadow, the verdict stands
        what = str(error) if isinstance(error, PolicyUnusable | ChildFailed) else f"{type(error).__name__}: {error}"
        return text, schema, Ruling("refused", (), (what,))


def _encoded(text: str) -> bytes:
    if len(text) > MOST_CHARACTERS:
        raise PolicyUnusable(f"the policies have {len(text)} characters: {MOST_CHARACTERS} is the most")
    return text.encode()


def _answer(text: bytes, schema: bytes, request: dict[str, Any], *, is_approved: bool) -> bytes:
    """What the child process answers."""
    ruling = policies.rule_again(text, schema, request, is_approved=is_approved)
    return json.dumps({"verdict": ruling.verdict, "reasons": ruling.reasons, "errors": ruling.errors}).encode()


def _shortened(texts: Sequence[str]) -> tuple[str, ...]:
    """Texts as the record has them: a step has room for so many."""
    return tuple(visible(text)[:1000] for text in texts[:MOST_REASONS])
