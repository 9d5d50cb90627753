"""The spans of a decision, made of its record, by OpenTelemetry's conventions for generative AI."""

from tests.integration.decisions.world import World, anomaly

from control_plane.tracing.decisions import decision_spans, has_failed, is_settled
from control_plane.tracing.record import RecordedDecision, read_decisions
from control_plane.tracing.spans import Span


def decided(world: World) -> RecordedDecision:
    world.detect(anomaly())
    world.run()
    (decision,) = read_decisions(world.owner, [world.record().decision.decision_id])
    return decision


def by_operation(spans: list[Span]) -> dict[str, list[Span]]:
    found: dict[str, list[Span]] = {}
    for span in spans:
        found.setdefault(str(span.attributes["gen_ai.operation.name"]), []).append(span)
    return found


def test_a_decision_is_a_workflow_with_its_agents_and_tools(world: World) -> None:
    decision = decided(world)
    spans = list(decision_spans(decision))
    found = by_operation(spans)
    (workflow,) = found["invoke_workflow"]
    assert workflow.parent_id == decision.trigger_event_id.replace("-", "")[16:]
    assert workflow.trace_id == decision.trace_id.replace("-", "")
    assert (workflow.start, workflow.end) == (decision.opened_at, decision.closed_at)
    assert {span.parent_id for span in spans[1:]} == {workflow.span_id}
    assert {span.trace_id for span in spans} == {workflow.trace_id}
    assert len({span.span_id for span in spans}) == len(spans)
    assert {span.attributes["gen_ai.tool.name"] for span in found["execute_tool"]} >= {
        "gather_evidence",
        "judge_policy",
    }
    assert "acp.opened" in {event.name for event in workflow.events}
    assert all(span.start <= span.end for span in spans)
    assert is_settled(decision)


def test_each_attempt_at_an_agent_says_who_it_was_and_what_it_cost(world: World) -> None:
    decision = decided(world)
    agents = by_operation(list(decision_spans(decision)))["invoke_agent"]
    assert len(agents) == len(decision.calls) > 0
    for span, call in zip(agents, decision.calls, strict=True):
        assert span.name == f"invoke_agent {call['agent']}"
        assert span.attributes["gen_ai.agent.name"] == call["agent"]
        assert span.attributes["acp.cost_micros"] == call["cost_micros"]
        assert (span.error is None) == (call["outcome"] == "answered")
    assert not has_failed(decision)


def test_the_same_record_gives_the_same_ids(world: World) -> None:
    decision = decided(world)
    assert [span.span_id for span in decision_spans(decision)] == [span.span_id for span in decision_spans(decision)]
