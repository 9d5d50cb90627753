"""One invocation of the relay: its deciding thread chooses what to claim, to send and to settle next."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from functools import partial
from typing import Any, Final

from control_plane.model.lifecycle import Accepted, Disposition, NotSent, NoVerdict, Settlement, settle
from control_plane.outbox.claims import ClaimedDelivery, LaneLimits
from control_plane.outbox.handover import CHECK_SECONDS
from control_plane.outbox.lanes import Lane
from control_plane.outbox.ledger import Ledger, Look, RelayPolicy, Survey
from control_plane.outbox.publisher import Message, Publisher
from control_plane.outbox.sending import Sent, send
from control_plane.outbox.settlements import Measured, Report, SettledRow
from control_plane.outbox.workers import Results
from control_plane.platform.breakers import Breaker
from control_plane.platform.telemetry import Telemetry

SETTLE_ROWS: Final = 500
"""Settle once this many outcomes are known, without waiting for the rest of the claim."""
SETTLE_DELAY_SECONDS: Final = 0.02
"""How long a known outcome waits at most, so that others are settled in the same statement."""
SURVEY_SECONDS: Final = 5.0
"""How often every lane claims from the beginning again, to find deliveries that came back or were committed late."""
QUEUE_FAULT_DELAY: Final = timedelta(seconds=2)
"""How long a message waits after its queue failed, while the queue's breaker is still closed."""
POLL_SECONDS: Final = (0.005, 0.1)
"""The shortest and the longest pause of a lingering relay that finds nothing; the pause doubles after each empty
look."""

type HandOut = Callable[[Callable[[], Any], Callable[[Any], None]], None]
"""Gives a job to another thread; the deciding thread then calls the second function with the job's result."""


@dataclass(slots=True)
class RelayResult:
    """The result of an invocation, in deliveries: claimed = published + failed + dead_lettered + released."""

    claimed: int = 0
    published: int = 0
    failed: int = 0
    dead_lettered: int = 0
    released: int = 0
    breakers: dict[str, str] = field(default_factory=dict)
    """Each subscription's breaker state."""

    def to_dict(self) -> dict[str, Any]:
        """Returns the result as RelayFunction returns it."""
        return asdict(self)


@dataclass(slots=True, kw_only=True)
class Invocation:
    """The state of one invocation; only the deciding thread uses it."""

    ledger: Ledger
    on_ledger: HandOut
    lanes: Mapping[str, Lane]
    publisher: Publisher
    results: Results
    policy: RelayPolicy
    telemetry: Telemetry
    deadline: float
    linger_until: float
    lingers: bool
    monotonic: Callable[[], float]
    sleep: Callable[[float], None]
    result: RelayResult = field(default_factory=RelayResult)

    is_looking: bool = False
    """Whether a survey or a look for work is under way."""
    is_settling: bool = False
    unsettled: list[Report] = field(default_factory=list)
    next_look_at: float = 0
    pause: float = POLL_SECONDS[0]
    next_survey_at: float = 0
    next_handover_check_at: float = 0
    surveyed_idle: bool = False
    """Whether the latest survey began with nothing in flight or unsettled, and no claim was made since."""
    is_drained: bool = False
    """Whether the look right after such a survey found nothing: no work is left."""
    handed_over: bool = False
    """Whether another lingering relay has taken over. This one then settles what is in flight, and claims nothing
    more."""

    def run(self) -> None:
        """Hands out all jobs that can start now and deals with their results, until there is neither job nor result."""
        self.next_look_at = self.monotonic()
        self.next_handover_check_at = self.next_look_at + CHECK_SECONDS
        while True:
            now = self.monotonic()
            if self._is_worth_settling(now):
                self._settle()
            may_claim = not self.handed_over and now + self.publisher.send_timeout_seconds < self.deadline
            if may_claim and not self.is_looking:
                self._look_for_work(now)
            if self.results:
                # Waiting for one lane's results must not delay the next look for the other lanes' work.
                pause = self.next_look_at - now if not self.is_looking and self.next_look_at > now else math.inf
                self.results.take(min(pause, SETTLE_DELAY_SECONDS))
            elif not may_claim or (self.next_look_at >= self.linger_until and self.is_drained):
                return
            elif self.next_look_at >= self.linger_until:
                # Before the relay ends, it claims once more from the beginning: deliveries may have come back.
                self.next_survey_at = self.next_look_at = now
            else:
                self.telemetry.flush_at_times()
                self.sleep(max(self.next_look_at - now, 0))

    # --- claiming -----------------------------------------------------------------------------------------------------

    def _look_for_work(self, now: float) -> None:
        if now < self.next_look_at:
            return
        if self.lingers and now >= self.next_handover_check_at:
            self.next_handover_check_at = now + CHECK_SECONDS
            self._hand_to_ledger(self.ledger.was_taken_over, self._checked_handover)
        elif now >= self.next_survey_at:
            self.next_survey_at = now + SURVEY_SECONDS
            is_idle = not self.results and not self.unsettled
            self._hand_to_ledger(self.ledger.survey, partial(self._surveyed, is_idle))
        elif lanes := [lane for lane in self.lanes.values() if lane.has_room(now)]:
            limits = {lane.subscription: lane.limits() for lane in lanes}
            probes = [lane.subscription for lane in lanes if lane.probes]
            lease_ends = now + self.policy.lease_seconds
            start_before = min(lease_ends, self.deadline) - self.publisher.send_timeout_seconds
            self._hand_to_ledger(
                partial(self.ledger.look, limits, probes), partial(self._looked, limits, probes, start_before)
            )
        elif not self.results:
            self._found_nothing(now)

    def _hand_to_ledger(self, job: Callable[[], Any], then: Callable[[Any], None]) -> None:
        self.is_looking = True

        def deal(result: Any) -> None:
            self.is_looking = False
            then(result)

        self.on_ledger(job, deal)

    def _checked_handover(self, was_taken_over: bool) -> None:
        if was_taken_over:
            self.telemetry.logger.info("handed_over")
            self.handed_over = True

    def _surveyed(self, was_idle: bool, survey: Survey) -> None:
        now = self.monotonic()
        self.surveyed_idle = was_idle
        for name, lane in self.lanes.items():
            lane.surveyed(survey.database_now, has_pending=name in survey.open_subscriptions)
            lane.health.refresh(survey.breakers[name], now)
        unknown = sorted(set(survey.open_subscriptions) - self.lanes.keys())
        if unknown:
            self.telemetry.count("UnknownSubscriptions", len(unknown))
            self.telemetry.logger.warning(
                "unknown_subscriptions",
                error=f"deliveries wait for {', '.join(unknown)}, for which this relay has no queue. Add them to "
                "SUBSCRIPTION_QUEUE_URLS, or deploy the newer template again",
            )

    def _looked(self, limits: Mapping[str, LaneLimits], probes: Sequence[str], start_before: float, look: Look) -> None:
        now = self.monotonic()
        rows: dict[str, list[Any]] = {name: [] for name in limits}
        for row in look.claim.rows:
            rows[row.subscription].append(row)
        claimed: dict[str, list[ClaimedDelivery]] = {name: [] for name in limits}
        for delivery in look.claim.deliveries:
            claimed[delivery.message.subscription].append(delivery)
        for name, lane_limits in limits.items():
            lane = self.lanes[name]
            if name in probes:
                lane.probes = False
                self._probe(lane, claimed[name], start_before, was_won=name in look.probes_won)
            else:
                lane.claimed(rows[name], lane_limits)
                self._start(lane, claimed[name], start_before)
        if look.claim.rows:
            self.surveyed_idle = self.is_drained = False
            self.next_look_at, self.pause = now, POLL_SECONDS[0]
        else:
            self._found_nothing(now)

    def _found_nothing(self, now: float) -> None:
        self.is_drained, self.surveyed_idle = self.surveyed_idle, False
        self.next_look_at, self.pause = now + self.pause, min(2 * self.pause, POLL_SECONDS[1])

    def _probe(self, lane: Lane, deliveries: Sequence[ClaimedDelivery], start_before: float, *, was_won: bool) -> None:
        """Sends one message of a lane whose breaker is not closed; what else was claimed with it is given back."""
        if not was_won:
            lane.health.probe_lost()
            return
        lane.health.probe_won()
        # Suspects come last here, too. Otherwise a suspect that never gets a verdict would be chosen for every probe.
        sendable = sorted(
            (delivery for delivery in deliveries if delivery.verdict is None), key=lambda one: one.message.is_suspect
        )
        self._start(lane, [one for one in deliveries if one not in sendable[1:]], start_before)
        for delivery in sendable[1:]:
            self._take_in(lane, [delivery])
            self.unsettled.append(Report(delivery.message, NotSent(), self.monotonic()))
        if not sendable:
            # A message that is dead-lettered without being sent says nothing about the queue.
            self._return_probe(lane)

    def _return_probe(self, lane: Lane) -> None:
        self.on_ledger(
            partial(self.ledger.return_probe, lane.subscription),
            lambda _: lane.health.probe_returned(self.monotonic()),
        )

    def _start(self, lane: Lane, deliveries: Sequence[ClaimedDelivery], start_before: float) -> None:
        """Hands the batches to the lane's publishing threads; messages that cannot be sent are reported at once."""
        for batch in self._take_in(lane, deliveries):
            lane.hand_out(
                partial(
                    send,
                    self.publisher,
                    lane.queue_url,
                    lane.health,
                    batch,
                    start_before,
                    telemetry=self.telemetry,
                    monotonic=self.monotonic,
                ),
                partial(self._landed, lane),
            )
            lane.in_flight += len(batch)

    def _take_in(self, lane: Lane, deliveries: Sequence[ClaimedDelivery]) -> list[Sequence[Message]]:
        self.result.claimed += len(deliveries)
        now = self.monotonic()
        self.unsettled += [
            Report(delivery.message, delivery.verdict, now) for delivery in deliveries if delivery.verdict is not None
        ]
        return lane.start(deliveries)

    # --- outcomes -----------------------------------------------------------------------------------------------------

    def _landed(self, lane: Lane, sent: Sent) -> None:
        """Deals with a batch's outcomes.

        The breaker is told first, because its state decides when a failed message is tried again.
        """
        lane.in_flight -= len(sent.messages)
        message, *others = sent.messages
        if sent.has_verdict:
            lane.health.heard_verdict()
        if not sent.was_sent:
            if isinstance(sent.outcomes[0], NotSent) and not lane.health.breaker.is_closed:
                self._return_probe(lane)
            self._report(sent)
        elif sent.fault is None:
            if self.ledger.is_sound(lane.subscription) or not sent.has_verdict:
                self._report(sent)
            else:
                began_seconds_ago = self.monotonic() - sent.began_at
                self._tell_breaker(
                    lane,
                    sent,
                    partial(self.ledger.report_success, lane.subscription, began_seconds_ago=began_seconds_ago),
                )
        elif message.is_suspect and not others and isinstance(sent.fault, NoVerdict):
            self.on_ledger(
                partial(self.ledger.others_were_delivered, message), partial(self._judged_silence, lane, sent)
            )
        else:
            self._tell_breaker(lane, sent, partial(self.ledger.report_failure, lane.subscription, sent.fault.reason))

    def _judged_silence(self, lane: Lane, sent: Sent, others_were_delivered: bool) -> None:
        """Decides who is charged for a send without a verdict: the suspect message or its queue.

        This runs in the deciding thread, after every earlier result has reached the breaker. So where several suspects
        got no verdict at the same time, the first is counted before the second is judged.
        """
        assert sent.fault is not None
        if others_were_delivered and lane.health.silence_may_be_its_own(sent.messages[0].outbox_id):
            lane.health.count_silence(sent.messages[0].outbox_id)
            self._report(sent, silence_is_its_own=True)
        else:
            self._tell_breaker(lane, sent, partial(self.ledger.report_failure, lane.subscription, sent.fault.reason))

    def _tell_breaker(self, lane: Lane, sent: Sent, tell: Callable[[], Breaker]) -> None:
        def told(breaker: Breaker) -> None:
            lane.health.replace(breaker, self.monotonic())
            self._report(sent)

        self.on_ledger(tell, told)

    def _report(self, sent: Sent, *, silence_is_its_own: bool = False) -> None:
        seconds = sent.ended_at - sent.began_at
        self.unsettled += [
            Report(
                message,
                outcome,
                sent.ended_at,
                seconds if sent.was_sent and not isinstance(outcome, NotSent) else None,
                silence_is_its_own,
            )
            for message, outcome in zip(sent.messages, sent.outcomes, strict=True)
        ]

    # --- settling -----------------------------------------------------------------------------------------------------

    def _is_worth_settling(self, now: float) -> bool:
        reports = self.unsettled
        return (
            bool(reports)
            and not self.is_settling
            and (
                len(reports) >= SETTLE_ROWS
                or not any(lane.in_flight for lane in self.lanes.values())
                or now - reports[0].known_at >= SETTLE_DELAY_SECONDS
            )
        )

    def _settle(self) -> None:
        self.is_settling = True
        reports, self.unsettled = self.unsettled, []
        outcomes = [(report.message, self._settlement(report)) for report in reports]
        began_at = self.monotonic()
        measured = [Measured(report.send_seconds, max(began_at - report.known_at, 0)) for report in reports]
        self.on_ledger(
            partial(self.ledger.settle, outcomes, measured), partial(self._settled, reports, outcomes, began_at)
        )

    def _settlement(self, report: Report) -> Settlement:
        # An open breaker keeps the message back without a delay of its own; the message is due once the breaker closes.
        is_kept_back = not self.lanes[report.message.subscription].health.breaker.is_closed
        return settle(
            report.outcome,
            attempt=report.message.attempt,
            max_attempts=self.policy.max_attempts,
            cool_down=timedelta() if is_kept_back else QUEUE_FAULT_DELAY,
            silence_is_its_own=report.silence_is_its_own,
        )

    def _settled(
        self,
        reports: Sequence[Report],
        outcomes: Sequence[tuple[Message, Settlement]],
        began_at: float,
        rows: Sequence[SettledRow],
    ) -> None:
        """Counts what the settlement committed; nothing is counted earlier."""
        self.is_settling = False
        settled = {(row.outbox_id, row.subscription, row.operation_id): row for row in rows}
        published = 0
        slowest_sends: dict[float, float] = {}
        for report, (message, settlement) in zip(reports, outcomes, strict=True):
            self.lanes[message.subscription].settled(message)
            row = settled.get((message.outbox_id, message.subscription, message.operation_id))
            if row is None:
                self.result.released += 1
                self.telemetry.count("LeaseLost", 1)
                self._log(message, "lease_lost", "another claim took this delivery over: the lease was too short")
                continue
            if row.disposition == Disposition.PUBLISHED:
                published += 1
                if isinstance(report.outcome, Accepted):
                    latency = max(row.age_seconds - (began_at - report.known_at), 0)
                    self.telemetry.count("CommitToPublishLatency", latency * 1000)
            else:
                self._count(settlement.disposition)
                is_dead = settlement.disposition in {Disposition.DEAD_LETTERED, Disposition.EXHAUSTED}
                self._log(message, "dead_lettered" if is_dead else row.disposition, settlement.error)
            if report.send_seconds is not None:
                slowest_sends[report.known_at] = report.send_seconds
        self.result.published += published
        self.telemetry.count("EventsPublished", published)
        for seconds in slowest_sends.values():
            self.telemetry.count("PublishLatency", seconds * 1000)
        self.telemetry.flush_at_times()

    def _count(self, disposition: Disposition) -> None:
        match disposition:
            case Disposition.FAILED:
                self.result.failed += 1
                self.telemetry.count("PublishFailures", 1)
                self.telemetry.count("DeliveryRetries", 1)
            case Disposition.DEAD_LETTERED:
                self.result.dead_lettered += 1
                self.telemetry.count("PublishFailures", 1)
                self.telemetry.count("EventsDeadLettered", 1)
            case Disposition.EXHAUSTED:
                self.result.dead_lettered += 1
                self.telemetry.count("EventsDeadLettered", 1)
            case Disposition.RELEASED:
                self.result.released += 1

    def _log(self, message: Message, state: str, error: str | None) -> None:
        log = self.telemetry.logger.info if error is None else self.telemetry.logger.warning
        log(
            state,
            state=state,
            event_id=message.event_id,
            trace_id=message.trace_id,
            decision_id=message.decision_id,
            topic=message.topic,
            subscription=message.subscription,
            attempt=message.attempt,
            error=error,
        )
