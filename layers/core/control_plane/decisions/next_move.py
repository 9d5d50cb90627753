"""What a decision does next: a pure function of its record, its playbook, and of the few circumstances it depends on.

The engine carries a move out; a replay makes the same moves from the stored record and compares.
"""

from collections.abc import Mapping
from datetime import timedelta
from typing import Final

from control_plane.decisions.moves import (
    BEFORE_RELEASE,
    CLOSED,
    GIVEN_UP,
    SWITCHED_OFF,
    Append,
    Circumstances,
    Collect,
    Model,
    Move,
    Observe,
    Wait,
    closed,
    is_superseded,
    moved,
    trunk,
)
from control_plane.decisions.rounds import PricedAgent, begin_round, children, next_of_round
from control_plane.model.deciding import (
    AwaitApproval,
    CallAgents,
    Close,
    Command,
    Deciding,
    Gather,
    JsonObject,
    ObserveAt,
    Playbook,
    Propose,
    Record,
    Simulate,
    Step,
)
from control_plane.model.errors import PlaybookFault
from control_plane.model.ids import canonical_json

MOST_STEPS: Final = 500


def find_version(plug_ins: Deciding, record: Record) -> Playbook:
    """Returns the playbook that a decision is pinned to. Raises PlaybookFault where it is gone."""
    decision = record.decision
    for playbook in plug_ins.versions:
        if (playbook.name, playbook.version) == (decision.playbook, decision.playbook_version):
            return playbook
    raise PlaybookFault(
        f"decision {decision.decision_id} is decided by {decision.playbook} {decision.playbook_version}, which is "
        "gone: it needs a release that has it"
    )


def next_move(record: Record, playbook: Playbook, agents: Mapping[str, PricedAgent], given: Circumstances) -> Move:
    """Returns what is to be done now. Raises PlaybookFault."""
    record = record.without_shadow()
    state = record.decision.state
    if state in CLOSED:
        return Wait()
    if state == "opened" and record.decision.opened_at - record.decision.occurred_at > playbook.limits.oldest:
        return closed(record, "recorded", "too old to act on")
    if (
        state in BEFORE_RELEASE
        and (ended := _settled(record) or _unanswered(record, given) or _abandoned(record, given)) is not None
    ):
        return ended
    if (calls := record.last("calls")) is not None and not children(record, calls, "answers"):
        return next_of_round(record, calls, playbook, agents, given)
    if (waiting := _waiting(record)) is not None:
        return waiting
    if len(record.steps) >= MOST_STEPS:
        raise PlaybookFault(
            f"decision {record.decision.decision_id} has {MOST_STEPS} steps: its playbook goes in circles"
        )
    return _commanded(record, playbook.next(record), playbook, agents)


def move_without_playbook(record: Record, given: Circumstances) -> Append | Wait | None:
    """Returns what can be done although the playbook fails or is gone; None: nothing until the decision's time is over.

    What others settled is followed. Beyond its time the decision is closed, with the fault as its reason.
    """
    state = record.decision.state
    if state in CLOSED:
        return Wait()
    if state in BEFORE_RELEASE and (settled := _settled(record) or _unanswered(record, given)) is not None:
        return settled
    if state == "released":
        return _of_released(record)
    end = "abandoned" if state in BEFORE_RELEASE else "scored"
    return closed(record, end, GIVEN_UP + given.fault) if given.is_overdue else None


def awaited_verdict(record: Record) -> int | None:
    """Returns which verdict a decision waits for, 0 for its proposal's and 1 for an approved one's; None: for none."""
    waits = {"proposed": 0, "approved": 1}.get(record.decision.state)
    return waits if waits is not None and _verdict(record) is None else None


def _settled(record: Record) -> Append | None:
    """What the gatekeeper or a person has settled already."""
    if (released := record.last("released")) is not None:
        return moved(record, "released", released)
    verdict, approval = _verdict(record), record.last("approval")
    if verdict is not None and verdict.body["verdict"] == "refused" and record.decision.state != "awaiting_approval":
        return moved(record, "refused", verdict)
    if record.decision.state == "awaiting_approval" and approval is not None and not approval.body["is_given"]:
        return moved(record, "denied", approval)
    return None


def _unanswered(record: Record, given: Circumstances) -> Append | None:
    """Silence is a no, as is a denial, even where nobody looks before the deadline: it is observed and scored."""
    asked, approval = record.last("approval_asked"), record.last("approval")
    if asked is None or is_superseded(record):
        return None
    is_denied = approval is not None and not approval.body["is_given"]
    if not is_denied and (approval is not None or not given.is_expired):
        return None
    if record.decision.state == "proposed":
        return moved(record, "awaiting_approval", asked)
    return moved(record, "expired", asked) if record.decision.state == "awaiting_approval" else None


def _abandoned(record: Record, given: Circumstances) -> Append | None:
    decision = record.decision
    if is_superseded(record):
        return closed(record, "abandoned", "superseded")
    if given.is_overdue and not (decision.is_shadow and _verdict(record) is not None):
        return closed(record, "abandoned", "deadline")
    off = given.switched_off & {"all", f"domain:{decision.domain}", f"playbook:{decision.playbook}"}
    return closed(record, "abandoned", SWITCHED_OFF + ", ".join(sorted(off))) if off else None


def _verdict(record: Record) -> Step | None:
    """The verdict that counts now: of the proposal, or, once a person has approved it, the one after that."""
    proposal, approval = record.last("proposal"), record.last("approval")
    after = approval.seq if approval is not None else -1
    return next(
        (
            step
            for step in reversed(record.steps)
            if step.kind == "verdict" and proposal is not None and step.parent == proposal.seq and step.seq > after
        ),
        None,
    )


def _waiting(record: Record) -> Move | None:
    """What follows from what others added; None where it is the playbook's turn."""
    match record.decision.state:
        case "proposed":
            return _of_proposed(record)
        case "awaiting_approval":
            return _of_awaiting_approval(record)
        case "approved":
            return Wait()
        case "released":
            return _of_released(record)
        case "observing" if record.last("outcome") is None:
            return _of_observing(record)
    return None


def _of_proposed(record: Record) -> Move | None:
    verdict, asked = _verdict(record), record.last("approval_asked")
    if verdict is None:
        return Wait()
    if record.decision.is_shadow:
        return None  # it is judged, and that is all
    if verdict.body["verdict"] == "needs_approval" and asked is not None:
        return moved(record, "awaiting_approval", asked)
    return Wait()


def _of_awaiting_approval(record: Record) -> Move:
    approval = record.last("approval")
    return Wait() if approval is None else moved(record, "approved", approval)


def _of_released(record: Record) -> Append | Wait:
    execution = record.last("execution")
    return Wait() if execution is None else moved(record, execution.body["outcome"], execution)


def _of_observing(record: Record) -> Move:
    begun = record.last("observing")
    assert begun is not None
    return Observe(
        bars=begun.body["bars"], ends_at=begun.at + timedelta(seconds=begun.body["ceiling_seconds"]), since=begun.at
    )


def _commanded(record: Record, command: Command, playbook: Playbook, agents: Mapping[str, PricedAgent]) -> Move:
    move: Move
    match command:
        case Gather(wait_until):
            move = Collect(wait_until)
        case CallAgents(state, requests):
            move = begin_round(record, state, requests, playbook, agents)
        case Simulate(spec):
            move = Model(spec)
        case Propose(proposal):
            move = _proposal(record, proposal)
        case AwaitApproval():
            move = Wait()
        case ObserveAt(bars, ceiling):
            body = {"bars": bars, "ceiling_seconds": int(ceiling.total_seconds())}
            move = Append("observing", trunk(record), body, "observing")
        case Close(state, reason):
            move = closed(record, state, reason)
    return move


def _proposal(record: Record, proposal: JsonObject) -> Append:
    stated = {name: value for name, value in proposal.items() if name != "action"}
    action = canonical_json(proposal["action"], field="action")
    return Append("proposal", trunk(record), stated, "proposed", action, "action")
