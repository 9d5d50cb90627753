"""One attempt of an agent's call: taken once, run within its lease, its answer checked and put on record.

Nothing here believes an agent. It gets the request's bytes and a time; what it gives back counts as an answer only if
it is strict JSON of its type, and what it may have cost without saying so counts as spent in full.
"""

import hashlib
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from threading import Thread
from typing import Any, Final
from uuid import UUID

from psycopg import Connection
from psycopg.rows import class_row

from control_plane.decisions.emit import QUERIES, message
from control_plane.decisions.models.conversation import MOST_ANSWER_BYTES, MOST_TOKENS
from control_plane.decisions.models.model_agent import (
    MOST_REQUEST_BYTES,
    MOST_REQUEST_DEPTH,
    check_answer,
)
from control_plane.decisions.strict_json import parse
from control_plane.model.deciding import Agent, AgentResult, Deciding
from control_plane.model.decision_events import AgentAnswered, AgentFailed, SwitchSet
from control_plane.model.errors import ContractViolation, ControlPlaneError, DatabaseUnavailable
from control_plane.model.text import LONGEST, visible
from control_plane.platform.conflicts import retry_conflicts
from control_plane.platform.messages import one_as_json
from control_plane.platform.session import SESSION_LOST

RECORDING_SECONDS: Final = 2.0
"""Of a lease, what is kept to put the answer on record; a fifth of a lease that is shorter than ten seconds."""
RETRY_SECONDS: Final = 0.2
_OUTCOMES: Final = frozenset({"answered", "invalid", "failed", "unknown"})
_MOST_MICROS: Final = 10**15

type Connect = Callable[[], Connection[Any]]


def agents_by_name(deciding: Iterable[Deciding]) -> Mapping[str, Agent]:
    """Returns all domains' agents. Raises ValueError where two have one name: a call names its agent alone."""
    found: dict[str, Agent] = {}
    for agent in (agent for domain in deciding for agent in domain.agents):
        if found.setdefault(agent.name, agent) is not agent:
            raise ValueError(f"two agents are called {agent.name}")
    return found


@dataclass(frozen=True, slots=True)
class ClaimedCall:
    """An attempt that this process holds."""

    fence: int
    decision_id: UUID
    agent: str
    agent_version: str
    attempt: int
    request: bytes
    reserved_micros: int
    seconds_left: float
    trace_id: UUID
    entity_id: str
    occurred_at: datetime


@dataclass(frozen=True, slots=True)
class CallReport:
    """What became of an attempt."""

    call: ClaimedCall
    result: AgentResult
    model: str | None
    was_in_time: bool
    """False where somebody ended the attempt before: its answer changed nothing."""


def run_call(
    connect: Connect,
    agents: Mapping[str, Agent],
    call_id: UUID,
    *,
    claimant: str,
    lease_seconds: float,
    request_sha256: str | None = None,
    call_seconds: float = float("inf"),
    most_seconds: float = float("inf"),
    monotonic: Callable[[], float] = time.monotonic,
) -> CallReport | None:
    """Runs an attempt that nobody has taken, and puts its end on record; None where there is nothing to do.

    ``connect`` returns a connection of role acp_agent that just answered, in autocommit mode: it is asked again after
    the agent, for a connection may be lost while a model is thinking. ``request_sha256`` is what the message said;
    ``call_seconds`` is how long the agent itself may take, ``most_seconds`` how long this process will last. Raises
    psycopg.Error and DatabaseUnavailable: the attempt is then unknown once its lease runs out.
    """
    if most_seconds <= 0:
        raise ControlPlaneError("no time is left to call an agent: the message comes again")
    began, connection = monotonic(), connect()
    lease_seconds = min(lease_seconds, most_seconds, call_seconds + RECORDING_SECONDS)
    call = _claim(connection, call_id, claimant=claimant, lease_seconds=lease_seconds)
    if call is None:
        return None
    ends = began + call.seconds_left
    agent = agents.get(call.agent)
    result = _refusal(connection, call, agent, request_sha256)
    if result is None:
        assert agent is not None
        remaining = ends - monotonic() - _time_to_record(call)
        result = _checked(agent, _run(agent, call, min(remaining, call_seconds)))
    model = None if agent is None else agent.model
    was_in_time = _record(connect, call_id, call, result, model, ends=ends, monotonic=monotonic)
    return CallReport(call, result, model, was_in_time)


def _claim(connection: Connection[Any], call_id: UUID, *, claimant: str, lease_seconds: float) -> ClaimedCall | None:
    with connection.cursor(row_factory=class_row(ClaimedCall)) as cursor:
        parameters = {"call_id": call_id, "claimant": claimant, "lease_seconds": lease_seconds}
        return cursor.execute(QUERIES["claim_call"].sql, parameters).fetchone()


def _time_to_record(call: ClaimedCall) -> float:
    return min(RECORDING_SECONDS, call.seconds_left / 5)


class _RefusedError(Exception):
    """Raised where an attempt is not made at all, which costs nothing."""


def _refusal(
    connection: Connection[Any], call: ClaimedCall, agent: Agent | None, request_sha256: str | None
) -> AgentResult | None:
    """Returns why an attempt is not made; None where it is made."""
    try:
        _check_request(call, request_sha256)
        _check_agent(connection, call, agent)
    except _RefusedError as error:
        return AgentResult("failed", error=str(error))
    return None


def _check_request(call: ClaimedCall, request_sha256: str | None) -> None:
    if request_sha256 is not None and hashlib.sha256(call.request).hexdigest() != request_sha256:
        raise _RefusedError("the message asks for another request than the one on record")
    try:
        request = parse(call.request, most_bytes=MOST_REQUEST_BYTES, most_depth=MOST_REQUEST_DEPTH, check_texts=False)
    except ContractViolation as error:
        raise _RefusedError(f"its request {error.reason}") from error
    if not isinstance(request, dict):
        raise _RefusedError("its request is no JSON object")


def _check_agent(connection: Connection[Any], call: ClaimedCall, agent: Agent | None) -> None:
    if agent is None:
        raise _RefusedError(f"there is no agent {call.agent} in this deployment")
    if agent.version != call.agent_version:
        raise _RefusedError(f"this deployment has version {agent.version}, not {call.agent_version}")
    try:
        most_micros = agent.most_micros(call.request)
    except ControlPlaneError as error:
        raise _RefusedError(f"what it costs is not known: {error}") from error
    except Exception as error:
        raise _RefusedError(f"what it costs is not known: {type(error).__name__}") from error
    if most_micros > call.reserved_micros:
        raise _RefusedError(f"it may cost {most_micros} micros, and {call.reserved_micros} are reserved for it")
    if agent.model is not None:
        row = connection.execute(QUERIES["model_is_off"].sql, {"model": agent.model}).fetchone()
        if row is None or row[0]:
            raise _RefusedError(f"the model {agent.model} is switched off")


def _run(agent: Agent, call: ClaimedCall, seconds_left: float) -> AgentResult:
    """Runs the agent and returns within the given time, whatever it does."""
    if seconds_left <= 0:
        return AgentResult("failed", error="its lease left it no time")
    results: list[AgentResult] = []

    def work() -> None:
        try:
            results.append(agent.call(call.request, attempt=call.attempt, seconds_left=seconds_left))
        except Exception as error:  # noqa: BLE001 - a plug-in may raise anything, and may have been charged before
            results.append(AgentResult("unknown", error=f"it raised {type(error).__name__}"))

    # A thread that does not return is left behind: nothing can end it but its process.
    worker = Thread(target=work, name=f"agent {call.agent}", daemon=True)
    worker.start()
    worker.join(seconds_left)
    if worker.is_alive() or not results:
        return AgentResult("unknown", error=f"it did not return within {seconds_left:.1f} s")
    return results[0]


def _checked(agent: Agent, result: AgentResult) -> AgentResult:
    """Returns what an agent gave back as it may be recorded."""
    if result.outcome not in _OUTCOMES or not _is_amount(result.cost_micros, _MOST_MICROS):
        return AgentResult("unknown", error="it returned a result of no known outcome or cost")
    result = replace(
        result,
        input_tokens=_count(result.input_tokens),
        output_tokens=_count(result.output_tokens),
        retry_after_seconds=_count(result.retry_after_seconds),
    )
    answer = result.answer
    if answer is not None and (not isinstance(answer, bytes) or len(answer) > MOST_ANSWER_BYTES):
        size = len(answer) if isinstance(answer, bytes) else "no"
        wrong: str | None = f"has {size} bytes, where {MOST_ANSWER_BYTES} are the most"
        answer = None
    else:
        wrong = None if result.outcome != "answered" else check_answer(answer or b"", agent.answer_type)
    if result.outcome == "answered" and wrong is not None:
        return replace(result, outcome="invalid", answer=answer or None, error=wrong)
    return replace(result, answer=answer)


def _count(said: object) -> int | None:
    return said if isinstance(said, int) and _is_amount(said, MOST_TOKENS) else None


def _is_amount(value: object, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most


def _switch_event(call: ClaimedCall, result: AgentResult, model: str | None) -> str | None:
    """Returns the event of the switch by which a model that charged too much is off; None where it did not."""
    if model is None or result.outcome == "unknown" or result.cost_micros <= call.reserved_micros:
        return None
    scope = f"model:{model}"
    switched = SwitchSet(scope=scope, is_off=True, set_by="control plane", reason="it charged more than was reserved")
    return one_as_json(message(switched, entity_id=None, series=scope, at=datetime.now(UTC), trace_id=call.trace_id))


def _record(
    connect: Connect,
    call_id: UUID,
    call: ClaimedCall,
    result: AgentResult,
    model: str | None,
    *,
    ends: float,
    monotonic: Callable[[], float],
) -> bool:
    """Ends the attempt; returns whether it was still this process's to end."""
    reason = visible((result.error or "it gave no reason")[:LONGEST])[:LONGEST]
    about = {"decision_id": str(call.decision_id), "call_id": str(call_id), "agent": call.agent}
    payload = (
        AgentAnswered(**about)
        if result.outcome == "answered"
        else AgentFailed.model_validate({**about, "outcome": result.outcome, "reason": reason})
    )
    wake = message(
        payload,
        entity_id=call.entity_id,
        series=f"{call.decision_id}:{call_id}",
        at=call.occurred_at,
        trace_id=call.trace_id,
    )
    parameters = {
        "call_id": call_id,
        "fence": call.fence,
        "outcome": result.outcome,
        "answer": result.answer,
        "error": None if result.outcome == "answered" else reason,
        "cost_micros": result.cost_micros,
        "input_tokens": result.input_tokens,
        "output_tokens": result.output_tokens,
        "model": model,
        "event": one_as_json(wake),
        "switch_event": _switch_event(call, result, model),
        "retry_after_seconds": result.retry_after_seconds,
    }

    def record() -> bool:
        row = connect().execute(QUERIES["answer_call"].sql, parameters).fetchone()
        return row is not None and bool(row[0])

    while True:
        try:
            return retry_conflicts(record)
        except (DatabaseUnavailable, *SESSION_LOST):
            # It may have committed, and then the next try finds the attempt ended. An answer that is not recorded is
            # spent in full, so the whole lease is used for it.
            if monotonic() >= ends:
                raise
            time.sleep(RETRY_SECONDS)
