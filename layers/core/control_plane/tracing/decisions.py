"""The spans of one decision, by OpenTelemetry's conventions for generative AI: workflow, agents, tools.

The workflow's span lasts as long as the decision and hangs from the event that it was opened for. Each attempt at an
agent's call is an ``invoke_agent`` span; what our own code computes, judges or executes is an ``execute_tool`` span. Of
such a step only its end is recorded, so its span begins where the step before it ended. Every other step is an event of
the workflow's span.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, Final

from control_plane.tracing.events import create_span_id
from control_plane.tracing.record import RecordedDecision, Row
from control_plane.tracing.spans import Kind, Span, SpanEvent, Value, attributes, id_of, to_instant

DECISION_WAIT: Final = timedelta(days=7)
"""How long an export waits for a decision to close, outcome included."""

_TOOLS: Final = {
    "evidence": "gather_evidence",
    "simulation": "simulate_options",
    "verdict": "judge_policy",
    "execution": "execute_action",
    "outcome": "observe_outcome",
}
_BY_A_CALL: Final = frozenset({"call_intended", "call_answered"})
_FAILED: Final = frozenset({"failed", "abandoned"})


def has_failed(decision: RecordedDecision) -> bool:
    """Whether the decision failed, or an attempt at an agent's call did."""
    return decision.state in _FAILED or any(call["outcome"] not in {None, "answered"} for call in decision.calls)


def is_settled(decision: RecordedDecision) -> bool:
    """Whether the decision is closed, or has been waited for long enough."""
    return decision.closed_at is not None or decision.read_at - decision.opened_at > DECISION_WAIT


def decision_spans(decision: RecordedDecision) -> Sequence[Span]:
    """Returns the spans of a decision, the workflow's first."""
    trace_id, workflow_id = decision.trace_id.replace("-", ""), id_of("decision", decision.decision_id)
    models = _models(decision.pins)
    before = dict(zip((step["seq"] for step in decision.steps[1:]), decision.steps, strict=False))
    return [
        _workflow(decision, trace_id, workflow_id),
        *(
            _agent(decision, call, trace_id, workflow_id, models.get(call["agent"], {}))
            for call in decision.calls
            if call["ended_at"] is not None
        ),
        *(
            _tool(decision, step, before.get(step["seq"], step), trace_id, workflow_id)
            for step in decision.steps
            if step["kind"] in _TOOLS
        ),
    ]


def _workflow(decision: RecordedDecision, trace_id: str, span_id: str) -> Span:
    ends = [to_instant(step["at"]) for step in decision.steps]
    costs = [call["cost_micros"] or 0 for call in decision.calls]
    return Span(
        service="decisions",
        trace_id=trace_id,
        span_id=span_id,
        parent_id=create_span_id(decision.trigger_event_id),
        name=f"invoke_workflow {decision.playbook}",
        kind=Kind.INTERNAL,
        start=decision.opened_at,
        end=decision.closed_at or max([decision.opened_at, *ends]),
        attributes={
            **_about(decision),
            **attributes(
                gen_ai__operation__name="invoke_workflow",
                gen_ai__workflow__name=decision.playbook,
                acp__playbook_version=decision.playbook_version,
                acp__entity_id=decision.entity_id,
                acp__trigger_event_id=decision.trigger_event_id,
                acp__state=decision.state,
                acp__is_shadow=decision.is_shadow,
                acp__cost_micros=sum(costs),
                error__type=decision.state if decision.state in _FAILED else None,
            ),
        },
        events=[_step_event(step) for step in decision.steps if step["kind"] not in {*_TOOLS, *_BY_A_CALL}],
        error=_reason(decision) if decision.state in _FAILED else None,
    )


def _agent(decision: RecordedDecision, call: Row, trace_id: str, workflow_id: str, settings: Mapping[str, Any]) -> Span:
    outcome = call["outcome"]
    model, limit = settings.get("model"), settings.get("most_output_tokens")
    return Span(
        service="agents",
        trace_id=trace_id,
        span_id=id_of("call", call["call_id"]),
        parent_id=workflow_id,
        name=f"invoke_agent {call['agent']}",
        kind=Kind.INTERNAL,
        start=to_instant(call["intended_at"]),
        end=to_instant(call["ended_at"]),
        attributes={
            **_about(decision),
            **attributes(
                gen_ai__operation__name="invoke_agent",
                gen_ai__agent__name=call["agent"],
                gen_ai__agent__version=call["agent_version"],
                gen_ai__request__model=model if isinstance(model, str) else None,
                gen_ai__request__max_tokens=limit if isinstance(limit, int) else None,
                gen_ai__usage__input_tokens=call["input_tokens"],
                gen_ai__usage__output_tokens=call["output_tokens"],
                acp__call_id=call["call_id"],
                acp__attempt=call["attempt"],
                acp__outcome=outcome,
                acp__cost_micros=call["cost_micros"],
                error__type=None if outcome == "answered" else outcome,
            ),
        },
        error=None if outcome == "answered" else call["error"] or outcome,
    )


def _tool(decision: RecordedDecision, step: Row, before: Row, trace_id: str, workflow_id: str) -> Span:
    tool, body = _TOOLS[step["kind"]], _body(step)
    has_failed = step["kind"] == "execution" and body.get("outcome") == "failed"
    return Span(
        service={"gatekeeper": "gatekeeper", "client": "actions"}.get(step["author"], "decisions"),
        trace_id=trace_id,
        span_id=id_of("step", decision.decision_id, step["seq"]),
        parent_id=workflow_id,
        name=f"execute_tool {tool}",
        kind=Kind.INTERNAL,
        start=to_instant(before["at"]),
        end=to_instant(step["at"]),
        attributes={
            **_about(decision),
            **attributes(
                gen_ai__operation__name="execute_tool",
                gen_ai__tool__name=tool,
                gen_ai__tool__type="function",
                acp__step=step["seq"],
                error__type="failed" if has_failed else None,
            ),
            **_told(step),
        },
        error=str(body.get("reason") or "the action failed") if has_failed else None,
    )


def _step_event(step: Row) -> SpanEvent:
    return SpanEvent(
        f"acp.{step['kind']}",
        to_instant(step["at"]),
        {**attributes(acp__step=step["seq"], acp__author=step["author"]), **_told(step)},
    )


def _told(step: Row) -> dict[str, Value]:
    """Returns what a step says in a word, such as a verdict or a state."""
    body = _body(step)
    told = {
        name: body.get(name) for name in ("state", "verdict", "outcome", "action_type", "agent", "reason", "is_given")
    }
    return attributes(**{f"acp__{name}": value for name, value in told.items() if isinstance(value, str | bool | int)})


def _reason(decision: RecordedDecision) -> str:
    """Returns the reason that the newest step with one gives."""
    for step in reversed(decision.steps):
        reason = _body(step).get("reason")
        if isinstance(reason, str) and reason:
            return reason
    return decision.state


def _about(decision: RecordedDecision) -> dict[str, Value]:
    return attributes(acp__decision_id=decision.decision_id, acp__domain=decision.domain)


def _body(step: Row) -> Mapping[str, Any]:
    body = json.loads(step["body"])
    return body if isinstance(body, dict) else {}


def _models(pins: bytes | None) -> Mapping[str, Mapping[str, Any]]:
    """Returns the settings of each agent with a model behind it."""
    models = {} if pins is None else json.loads(bytes(pins)).get("models", {})
    return {agent: settings for agent, settings in models.items() if isinstance(settings, dict)}
