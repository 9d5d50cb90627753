"""Decides again from the stored record alone, and compares what it decides with what was recorded, byte by byte.

Read from the record: what was gathered and observed, what agents, the gatekeeper, people and clients said, and agents'
versions and reservations. Decided again: every command of the playbook, every simulation, and each step that the engine
wrote because of them.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from control_plane.decisions import moves
from control_plane.decisions.moves import Append, Circumstances, Collect, Intend, IntendedCall, Model, Observe
from control_plane.decisions.next_move import find_version, move_without_playbook, next_move
from control_plane.decisions.record import Loaded, sha256
from control_plane.decisions.rounds import pinned_agents
from control_plane.model.deciding import Deciding, Record, Step
from control_plane.model.ids import canonical_json

READ: Final = frozenset({
    "opened", "anomaly", "joined", "call_answered", "verdict", "shadow_verdict", "approval_asked", "approval",
    "released", "execution",
})  # fmt: skip
"""Kinds of steps that others write, or that say what others said."""

_MISSING: Final = object()


@dataclass(frozen=True, slots=True)
class Difference:
    """The first step that is decided differently."""

    seq: int
    kind: str
    """The recorded step's kind."""
    what: str
    """kind, parent, body, output, time or fault."""
    recorded: str
    decided: str

    def field(self) -> tuple[str, str, str]:
        """Returns the first field that differs, as a path, and its value on either side; no path for a whole text."""
        try:
            return _first_field("", json.loads(self.recorded), json.loads(self.decided))
        except ValueError:
            return "", self.recorded, self.decided


@dataclass(frozen=True, slots=True)
class Replayed:
    """What a replay compared, and the first difference that it found."""

    steps: int
    compared_bytes: int
    difference: Difference | None
    recorded_sha256: bytes
    """Over all that was compared, up to the first difference and with it, as it was recorded."""
    decided_sha256: bytes
    """Over the same, as it was decided again."""

    @property
    def is_identical(self) -> bool:
        """Whether the same would be decided again, to the byte."""
        return self.difference is None


class _Differs(Exception):
    def __init__(self, what: str, recorded: object, decided: object) -> None:
        self.what, self.recorded, self.decided = what, str(recorded), str(decided)
        super().__init__(what)


def replay(stored: Loaded, plug_ins: Deciding) -> Replayed:
    """Decides a stored decision again, without a connection. Its playbook's version must be among the plug-ins."""
    record, compared, steps = stored.record, 0, 0
    alike = hashlib.sha256()
    state = "opened"

    def differs(step: Step, what: str, recorded: str, decided: str) -> Replayed:
        sides = [alike.copy(), alike.copy()]
        for side, text in zip(sides, (recorded, decided), strict=True):
            side.update(text.encode(errors="surrogatepass"))
        found = Difference(step.seq, step.kind, what, recorded, decided)
        return Replayed(steps, compared, found, sides[0].digest(), sides[1].digest())

    for place, step in enumerate(record.steps):
        before = Record(replace(record.decision, state=state), record.steps[:place], record.artifacts).without_shadow()
        state = moves.state_after(step.kind, step.body) or state
        if step.kind in READ:
            continue
        try:
            same = _compare(before, step, stored.bodies[place], plug_ins)
        except _Differs as found:
            return differs(step, found.what, found.recorded, found.decided)
        except Exception as error:  # noqa: BLE001 - code that cannot decide this record any more is a difference too
            return differs(step, "fault", step.kind, f"{type(error).__name__}: {error}")
        for part in same:
            compared += len(part)
            alike.update(part)
        steps += 1
    return Replayed(steps, compared, None, alike.digest(), alike.digest())


def _compare(before: Record, step: Step, body: bytes, plug_ins: Deciding) -> Sequence[bytes]:
    """Compares one step with what is decided before it; returns the bytes that were the same. Raises _Differs."""
    playbook = find_version(plug_ins, before)
    agents = _recorded_agents(before, step)
    given = _circumstances(before, step)
    move = move_without_playbook(before, given) if given.fault else next_move(before, playbook, agents, given)
    match move:
        case Intend(calls_seq, calls):
            return _compare_call(before, step, body, calls_seq, calls)
        case Collect():
            decided = moves.evidence(before, step.body)
        case Model(spec):
            decided = moves.simulation(before, playbook.simulate(before, spec))
        case Observe():
            observed = {name: value for name, value in step.body.items() if name != "scores"}
            decided = moves.outcome(before, observed)
        case Append():
            decided = move
        case _:
            raise _Differs("kind", step.kind, "wait")
    return _same(step, body, decided)


def _same(step: Step, body: bytes, decided: Append) -> Sequence[bytes]:
    if step.kind != decided.kind:
        raise _Differs("kind", step.kind, decided.kind)
    if step.parent != decided.parent:
        raise _Differs("parent", step.parent, decided.parent)
    if body != (again := decided.body_bytes()):
        raise _Differs("body", body.decode(errors="replace"), again.decode())
    output = None if decided.output is None else sha256(decided.output)
    if step.output_sha256 != output:
        raise _Differs("output", _hex(step.output_sha256), _hex(output))
    return [body] if decided.output is None else [body, decided.output]


def _compare_call(
    before: Record, step: Step, body: bytes, calls_seq: int, calls: Sequence[IntendedCall]
) -> Sequence[bytes]:
    """A call that was intended, or that no budget had room for, is one of those that were due."""
    due = {(call.agent, call.attempt): call for call in calls}
    call = due.get((step.body.get("agent", ""), step.body.get("attempt", 0)))
    if call is None or step.kind not in ("call_intended", "budget_exhausted"):
        raise _Differs("kind", f"{step.kind} {dict(step.body)}", f"call_intended {sorted(due)}")
    if step.kind == "budget_exhausted":
        return _same(step, body, moves.budget_exhausted(calls_seq, call))
    decided = {
        "call_id": str(moves.call_id(before, calls_seq, call)),
        "agent_version": call.agent_version,
        "request_sha256": f"\\x{call.request_sha256.hex()}",
        "reserved_micros": call.micros,
        "step_seq": calls_seq,
    }
    recorded = {name: step.body.get(name) for name in decided}
    if recorded != decided or step.input_sha256 != call.request_sha256 or step.parent != calls_seq:
        raise _Differs("body", canonical_json(recorded).decode(), canonical_json(decided).decode())
    return [canonical_json(decided)]


@dataclass(slots=True)
class _RecordedAgent:
    """An agent as the record has it: it may have another version or price today, or be gone."""

    name: str
    version: str
    micros: int

    def most_micros(self, request: bytes) -> int:  # noqa: ARG002
        return self.micros


def _recorded_agents(before: Record, step: Step) -> Mapping[str, _RecordedAgent]:
    """The agents in their pinned versions, at the price that a step reserved, without one that it says is gone."""
    micros = step.body.get("reserved_micros", step.body.get("most_micros", 0))
    gone = step.body["agent"] if step.kind == "agent_failed" and step.body["outcome"] == "gone" else None
    pinned = pinned_agents(before)
    return {name: _RecordedAgent(name, version, micros) for name, version in pinned.items() if name != gone}


def _circumstances(before: Record, step: Step) -> Circumstances:
    """What the engine must have found for this step, held against the step's own time where that tells."""
    state, reason = step.body.get("state"), step.body.get("reason", "")
    is_given_up = step.kind == "closed" and reason.startswith(moves.GIVEN_UP)
    is_overdue = is_given_up or (step.kind == "closed" and reason == "deadline")
    is_expired = step.kind == "state" and state == "expired"
    if is_overdue and step.at < moves.ends_at(before):
        raise _Differs("time", step.at, f"not before {moves.ends_at(before)}")
    expiry = moves.approval_expiry(before)
    if is_expired and (expiry is None or step.at < expiry):
        raise _Differs("time", step.at, f"not before {expiry}")
    return Circumstances(
        is_overdue=is_overdue,
        is_expired=is_expired,
        switched_off=_switched_off(step.kind, step.body),
        fault=reason.removeprefix(moves.GIVEN_UP) if is_given_up else "",
        now=step.at,
    )


def _switched_off(kind: str, body: Mapping[str, Any]) -> frozenset[str]:
    if kind == "closed" and body["reason"].startswith(moves.SWITCHED_OFF):
        return frozenset(body["reason"].removeprefix(moves.SWITCHED_OFF).split(", "))
    if kind == "agent_failed" and body["outcome"] == "switched_off":
        return frozenset({f"agent:{body['agent']}"})
    return frozenset()


def _hex(name: bytes | None) -> str:
    return "none" if name is None else name.hex()


def _first_field(path: str, recorded: Any, decided: Any) -> tuple[str, str, str]:
    """Goes down to the first value that differs: by an object's sorted names, or a list's places."""
    if isinstance(recorded, dict) and isinstance(decided, dict):
        for name in sorted(recorded.keys() | decided.keys()):
            if name not in recorded or name not in decided or recorded[name] != decided[name]:
                below = f"{path}.{name}" if path else name
                return _first_field(below, recorded.get(name, _MISSING), decided.get(name, _MISSING))
    if isinstance(recorded, list) and isinstance(decided, list) and len(recorded) == len(decided):
        for place, (one, other) in enumerate(zip(recorded, decided, strict=True)):
            if one != other:
                return _first_field(f"{path}[{place}]", one, other)
    return path, _as_text(recorded), _as_text(decided)


def _as_text(value: Any) -> str:
    return "nothing" if value is _MISSING else json.dumps(value, ensure_ascii=False)
