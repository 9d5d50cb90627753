"""Holds everything that deciding has stored against the hash chains, and the chains against the anchors.

What is edited, deleted, added or swapped afterwards is found, whoever did it, if it is older than the newest anchor. A
chain that is rewritten whole agrees with itself: the anchors give it away, and the lines of the log those who rewrite
the anchors too.
"""

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from psycopg import Connection, IsolationLevel
from psycopg.pq import TransactionStatus

from control_plane.decisions.chain import Anchor, StoredStep, anchored_heads, check_anchors, check_chain
from control_plane.decisions.moves import CLOSED, state_after
from control_plane.model.deciding import SHADOW_VERDICT
from control_plane.platform.queries import load_queries

QUERIES: Final = load_queries(__package__)
BATCH: Final = 200
"""Decisions that are read at a time."""

type Row = Mapping[str, Any]

_STEP_OF_TABLE: Final = {
    "verdicts": "verdict",
    "approval_requests": "approval_asked",
    "approvals": "approval",
    "actions": "released",
    "executions": "execution",
}
"""Tables whose rows are the bodies of their steps, one for one."""
_INSTANT: Final = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)\.(\d{1,6})(\+00:00)")
_INTENDED: Final = (
    "call_id", "step_seq", "agent", "agent_version", "attempt", "request_sha256", "reserved_micros", "intended_at",
    "deadline",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is not as it was recorded."""

    where: str
    """The table."""
    what: str
    decision_id: UUID | None = None


@dataclass(frozen=True, slots=True)
class Audit:
    """What an audit found, and how much of the record no anchor covers yet."""

    decisions: int
    steps: int
    findings: Sequence[Finding]
    unanchored_steps: int
    """Newer than the last anchor of their decision: one who may write everything could have rewritten these unseen."""
    erased: int = 0
    """Decisions that an erasure removed; each left the head that was anchored."""
    expired: int = 0
    """Decisions that retention removed in the same way."""


def audit(connection: Connection[Any], anchor_lines: Iterable[Mapping[str, Any]] = ()) -> Audit:
    """Audits the whole record as of one moment. ``anchor_lines`` are the log lines ``anchored``. Raises psycopg.Error.

    Needs what acp_reader may read.
    """
    if connection.info.transaction_status is not TransactionStatus.IDLE:
        return _Auditor(connection, anchor_lines).run()
    before = connection.isolation_level
    connection.isolation_level = IsolationLevel.REPEATABLE_READ
    try:
        with connection.transaction():
            return _Auditor(connection, anchor_lines).run()
    finally:
        connection.isolation_level = before


class _Auditor:
    def __init__(self, connection: Connection[Any], anchor_lines: Iterable[Mapping[str, Any]]) -> None:
        self._connection = connection
        self._findings: list[Finding] = []
        self._logged = self._read_lines(anchor_lines)
        self._known_artifacts: set[bytes] = set()
        self._unanchored = 0

    def run(self) -> Audit:
        anchors = [Anchor(row[0], bytes(row[2]), row[3], bytes(row[4])) for row in self._select("audited_anchors")]
        self._findings += [Finding("anchors", what) for what in check_anchors(anchors, self._logged)]
        # The log's heads count too: it alone knows of a decision whose anchors are gone as well.
        heads: dict[UUID, dict[int, bytes]] = defaultdict(dict)
        for (decision_id, seq), digest in (anchored_heads(anchors) | anchored_heads(self._logged)).items():
            heads[decision_id][seq] = digest
        decisions = steps = 0
        for batch in self._batches():
            decisions += len(batch)
            steps += self._audit_batch(batch, heads)
        causes = self._audit_tombstones(heads)
        self._findings += [Finding("decisions", "it was anchored, and is missing", gone) for gone in heads]
        self._findings += [
            Finding(table, f"a row belongs to {stray}, which there is not")
            for table, stray in self._select("audited_strays")
        ]
        self._findings += self._audit_budgets()
        return Audit(decisions, steps, self._findings, self._unanchored, causes["erasure"], causes["retention"])

    def _select(self, name: str, **given: Any) -> list[Any]:
        return self._connection.execute(QUERIES[name].sql, given).fetchall()

    def _read_lines(self, lines: Iterable[Mapping[str, Any]]) -> list[Anchor]:
        read: list[Anchor] = []
        for line in lines:
            try:
                read.append(Anchor.from_log(line))
            except (KeyError, TypeError, ValueError):
                self._findings.append(Finding("log", f"a line that is no anchor: {str(line)[:100]}"))
        return read

    def _batches(self) -> Iterator[Mapping[UUID, Row]]:
        after: UUID | None = None
        while rows := self._select("audited_decisions", after=after, most=BATCH):
            yield dict(rows)
            after = rows[-1][0]

    def _audit_batch(self, batch: Mapping[UUID, Row], heads: dict[UUID, dict[int, bytes]]) -> int:
        ids = list(batch)
        steps: dict[UUID, list[StoredStep]] = defaultdict(list)
        for row in self._select("audited_steps", ids=ids):
            values: list[Any] = [bytes(value) if isinstance(value, memoryview) else value for value in row]
            stored = StoredStep(*values)
            steps[stored.decision_id].append(stored)
        rows: dict[UUID, dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
        for table, decision_id, row in self._select("audited_rows", ids=ids):
            rows[decision_id][table].append(row)
        for decision_id, decision in batch.items():
            of_decision = _OfDecision(decision, steps[decision_id], rows[decision_id], heads.pop(decision_id, {}))
            self._findings += [Finding(table, what, decision_id) for table, what in of_decision.findings()]
            self._unanchored += max(0, len(steps[decision_id]) - 1 - of_decision.anchored_seq)
        found = [step for of_one in steps.values() for step in of_one]
        self._audit_artifacts(found)
        return len(found)

    def _audit_artifacts(self, steps: Sequence[StoredStep]) -> None:
        """Each artifact that a step names, or that a list of pins names, is there, and is what its name says."""
        named: dict[bytes, UUID] = {}
        for step in steps:
            for name in _named_by(step):
                named.setdefault(name, step.decision_id)
        pins = {step.output_sha256 for step in steps if step.kind == "opened"}
        while missing := {name: of for name, of in named.items() if name not in self._known_artifacts}:
            named = {}
            found = {bytes(name): bytes(content) for name, content in self._select("artifacts", hashes=sorted(missing))}
            for name, decision_id in missing.items():
                self._known_artifacts.add(name)
                if name not in found:
                    self._findings.append(Finding("artifacts", f"{name.hex()} is gone", decision_id))
                elif hashlib.sha256(found[name]).digest() != name:
                    self._findings.append(Finding("artifacts", f"{name.hex()} has other bytes", decision_id))
                elif name in pins:
                    named |= dict.fromkeys(_pinned(found[name]), decision_id)

    def _audit_tombstones(self, heads: dict[UUID, dict[int, bytes]]) -> Mapping[str, int]:
        """Takes the decisions that were removed out of ``heads``, where the anchors bear their tombstones out.

        Returns how many there are of each cause. ``heads`` holds the anchored heads of decisions that are not there.
        """
        causes = {"erasure": 0, "retention": 0}
        for decision_id, head_seq, head_hash, cause, is_recorded in self._select("audited_tombstones"):
            anchored = heads.pop(decision_id, None)
            if anchored is None:
                what = "it has a tombstone, and was never anchored or is there"
            elif (max(anchored), anchored[max(anchored)]) != (head_seq, bytes(head_hash)):
                what = "its tombstone has another head than was anchored"
            elif not is_recorded:
                what = f"its tombstone names no {cause} that is on record"
            else:
                causes[cause] += 1
                continue
            self._findings.append(Finding("decision_tombstones", what, decision_id))
        return causes

    def _audit_budgets(self) -> Iterator[Finding]:
        for scope, day, *sums in self._select("audited_budgets"):
            stated, counted = sums[:3], [None if value is None else int(value) for value in sums[3:]]
            if stated != counted and not (counted == [None] * 3 and stated == [0, 0, 0]):
                yield Finding("budgets", f"{scope} of {day} is {stated}, and its reservations are {counted}")


class _OfDecision:
    """One decision's rows and steps."""

    def __init__(
        self, decision: Row, steps: Sequence[StoredStep], rows: Mapping[str, Sequence[Row]], heads: Mapping[int, bytes]
    ) -> None:
        self._decision = decision
        self._steps = steps
        self._bodies = [_parse(step.body) for step in steps]
        self._rows = rows
        self._heads = heads
        self.anchored_seq = max(heads, default=-1)

    def findings(self) -> Iterator[tuple[str, str]]:
        """Yields the table and what is wrong."""
        head = bytes.fromhex(self._decision["head_hash"][2:])
        for what in check_chain(self._steps, self._decision["head_seq"], head):
            yield "decision_steps", what
        hashes = {step.seq: step.hash for step in self._steps}
        for seq, digest in self._heads.items():
            if hashes.get(seq) != digest:
                yield "decision_steps", f"step {seq} is not the one that was anchored"
        try:
            yield from self._of_rows()
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            yield "decision_steps", f"its steps cannot be read: {type(error).__name__}: {error}"

    def _of_rows(self) -> Iterator[tuple[str, str]]:
        yield from self._of_decisions()
        for table, kind in _STEP_OF_TABLE.items():
            yield from _one_for_one(table, self._rows[table], self._numbered(kind))
        yield from self._of_calls()
        yield from self._of_outcomes()

    def _numbered(self, kind: str) -> list[tuple[int, Row]]:
        return [(step.seq, body) for step, body in zip(self._steps, self._bodies, strict=True) if step.kind == kind]

    def _of_kind(self, kind: str) -> list[Row]:
        return [body for _, body in self._numbered(kind)]

    def _of_decisions(self) -> Iterator[tuple[str, str]]:
        if not self._steps or self._steps[0].kind != "opened":
            yield "decision_steps", "it has no first step"
            return
        states = [
            state
            for step, body in zip(self._steps, self._bodies, strict=True)
            if (state := state_after(step.kind, body))
        ]
        joined = [body for body in self._of_kind("joined") if body["supersedes"]]
        closing = [step for step, body in zip(self._steps, self._bodies, strict=True) if step.kind == "closed"]
        stated = {name: value for name, value in self._bodies[0].items() if name != "opened_by"}
        stated |= {
            "pins_sha256": _text(self._steps[0].output_sha256),
            "state": states[-1],
            "superseded_by": joined[0]["event_id"] if joined else None,
            "closed_at": closing[0].at.isoformat() if closing else None,
            "anchored_seq": self.anchored_seq,
        }
        for name, value in stated.items():
            if not _is_same(self._decision[name], value):
                yield "decisions", f"{name} is {self._decision[name]!r}, and its steps say {value!r}"
        if (self._decision["state"] in CLOSED) != bool(closing):
            yield "decisions", "it is closed, or is not, against its steps"

    def _of_calls(self) -> Iterator[tuple[str, str]]:
        intended = {body["call_id"]: body for body in self._of_kind("call_intended")}
        ended = {body["call_id"]: body for body in self._of_kind("call_answered")}
        calls = {row["call_id"]: row for row in self._rows["agent_calls"]}
        reserved = {row["call_id"]: row for row in self._rows["budget_reservations"]}
        if calls.keys() != intended.keys():
            yield "agent_calls", f"its steps intend {len(intended)} calls, and there are {len(calls)} or others"
        wanted = {call_id for call_id, body in intended.items() if "budget" in body}
        if reserved.keys() != wanted:
            yield (
                "budget_reservations",
                f"its steps reserve for {len(wanted)} calls, and there are {len(reserved)} or others",
            )
        for call_id in calls.keys() & intended.keys():
            call, body, end = calls[call_id], intended[call_id], ended.get(call_id)
            if any(call[name] != body[name] for name in _INTENDED) or (end is None) != (call["outcome"] is None):
                yield "agent_calls", f"{call_id} is not what was intended, or ended against its steps"
            if end is not None and call != end:
                yield "agent_calls", f"{call_id} did not end as its step says"
            if call_id in reserved and call_id in wanted and not _is_settled(reserved[call_id], body, end):
                yield "budget_reservations", f"that of {call_id} is not as its steps say"

    def _of_outcomes(self) -> Iterator[tuple[str, str]]:
        steps = [(step, body) for step, body in zip(self._steps, self._bodies, strict=True) if step.kind == "outcome"]
        stated = [
            (
                step.seq,
                {
                    "decision_id": str(step.decision_id),
                    "state": body["state"],
                    "observed": body,
                    "observed_at": step.at.isoformat(),
                },
            )
            for step, body in steps
        ]
        scores = [
            (step.seq, {**score, "decision_id": str(step.decision_id), "scored_at": step.at.isoformat()})
            for step, body in steps
            for score in body["scores"]
        ]
        yield from _one_for_one("outcomes", self._rows["outcomes"], stated)
        yield from _one_for_one("agent_scores", self._rows["agent_scores"], scores)


def _one_for_one(table: str, rows: Sequence[Row], stated: Sequence[tuple[int, Row]]) -> Iterator[tuple[str, str]]:
    """Every row is the content of a step, and the other way round; ``stated`` has each step's number and content."""
    left = list(stated)
    for row in rows:
        same = next((one for one in left if _is_same(row, one[1])), None)
        if same is None:
            yield table, "a row is not what any step says"
        else:
            left.remove(same)
    for seq, _ in left:
        yield table, f"the row that step {seq} tells of is gone or changed"


def _is_settled(reservation: Row, intended: Row, end: Row | None) -> bool:
    return _is_same(
        reservation,
        {
            "call_id": intended["call_id"],
            "scope": intended["budget"],
            "day": intended["day"],
            "micros": intended["reserved_micros"],
            "spent_micros": None if end is None else end["cost_micros"],
            "settled_at": None if end is None else end["ended_at"],
        },
    )


def _is_same(row: Any, body: Any) -> bool:
    """Whether two JSON values are the same: Postgres writes an instant without the zeros at the end of its fraction."""
    if isinstance(row, dict) and isinstance(body, dict):
        return row.keys() == body.keys() and all(_is_same(row[name], body[name]) for name in row)
    if isinstance(row, str) and isinstance(body, str) and row != body:
        return _instant(row) == _instant(body)
    return bool(row == body)


def _instant(text: str) -> str:
    """An instant as isoformat writes it, with six decimals or none; other text as it is."""
    found = _INSTANT.fullmatch(text)
    return text if found is None else f"{found[1]}.{found[2]:0<6}{found[3]}"


def _named_by(step: StoredStep) -> list[bytes]:
    """The artifacts that a step names."""
    body = _parse(step.body)
    named = [name for name in (step.input_sha256, step.output_sha256) if name is not None]
    try:
        if step.kind == "calls":
            named += [bytes.fromhex(call["request_sha256"]) for call in body["calls"]]
        if step.kind in ("verdict", SHADOW_VERDICT):
            names = ("action_sha256", "policy_sha256", "schema_sha256", "request_sha256")
            texts = [body.get(name) for name in names]
            named += [bytes.fromhex(text[2:]) for text in texts if text is not None]
    except (KeyError, TypeError, ValueError):  # its hash gives it away
        return named
    return named


def _pinned(content: bytes) -> list[bytes]:
    """The artifacts that a list of pins names; none for one that is no such list, which its hash gives away."""
    try:
        pins = json.loads(content)
        return [bytes.fromhex(name) for kind in ("sources", "policy") for name in pins[kind].values()]
    except (AttributeError, KeyError, TypeError, ValueError):
        return []


def _parse(content: bytes) -> Any:
    """A JSON value; an empty object for what is none, which its hash gives away."""
    try:
        return json.loads(content)
    except ValueError:
        return {}


def _text(name: bytes | None) -> str | None:
    return None if name is None else f"\\x{name.hex()}"
