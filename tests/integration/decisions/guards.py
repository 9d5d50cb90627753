"""Rows of the tables of deciding that make sense, and for each CHECK of them one that does not."""

import hashlib
from datetime import UTC, datetime
from typing import Final

ID: Final = "00000000-0000-4000-8000-000000000001"
NOW: Final = datetime(2026, 1, 5, tzinfo=UTC)
HASH: Final = hashlib.sha256(b"x").digest()

SOUND: Final[dict[str, dict[str, object]]] = {
    "artifacts": {"sha256": HASH, "kind": "answer", "bytes": b"x"},
    "decisions": {
        "decision_id": ID, "domain": "d", "playbook": "p", "playbook_version": "1", "pins_sha256": HASH,
        "anomaly_kind": "k", "source": "s", "entity_id": "e", "occurred_at": NOW, "trigger_event_id": ID,
        "trace_id": ID, "deadline": NOW,
    },
    "decision_steps": {
        "decision_id": ID, "seq": 1, "parent": 0, "kind": "note", "author": "engine", "at": NOW, "body": b"{}",
        "prev_hash": b"", "hash": b"h",
    },
    "agent_calls": {
        "call_id": ID, "decision_id": ID, "step_seq": 1, "agent": "a", "agent_version": "1", "attempt": 1,
        "request_sha256": HASH, "deadline": NOW,
    },
    "rebuildable": {"table_name": "a_table", "consumer": "c"},
    "decision_tombstones": {"decision_id": ID, "head_seq": 1, "head_hash": b"", "cause": "retention"},
    "erasures": {
        "operation_id": ID, "about": "entity", "key_sha256": HASH, "is_refused": True, "requested_by": "kim",
    },
    "budgets": {"scope": "all", "day": NOW, "limit_micros": 10},
    "budget_reservations": {"call_id": ID, "scope": "all", "day": NOW, "micros": 1},
    "verdicts": {
        "verdict_id": ID, "decision_id": ID, "proposal_seq": 1, "verdict": "refused", "is_shadow": False,
        "reasons": "[]",
        "errors": "[]",
    },
    "approval_requests": {
        "approval_id": ID, "decision_id": ID, "action_sha256": HASH, "expires_at": NOW, "proposed_by": "x",
        "shown": "x",
    },
    "approvals": {
        "approval_id": ID, "decision_id": ID, "action_sha256": HASH, "is_given": True, "decided_by": "kim",
        "expires_at": NOW,
    },
    "switch_lock": {"only_one": True},
    "switches": {"scope": "all", "is_off": True, "set_by": "kim"},
    "actions": {
        "action_id": ID, "decision_id": ID, "idempotency_key": "k", "domain": "d", "action_type": "t", "account": "a",
        "action_sha256": HASH, "verdict_id": ID, "event_id": ID, "expires_at": NOW,
    },
    "executions": {"action_id": ID, "outcome": "executed"},
    "outcomes": {"decision_id": ID, "state": "observed", "observed": "{}"},
    "agent_scores": {
        "decision_id": ID, "agent": "a", "agent_version": "1", "forecast": "f", "probability": 0.5, "happened": True,
        "brier": 0.25,
    },
    "timers": {"decision_id": ID, "kind": "retry", "due_at": NOW},
    "paper_accounts": {"account": "x", "currency": "USD", "opening_cash_micros": 0, "cash_micros": 0},
    "paper_orders": {
        "action_id": ID, "account": "x", "source": "s", "entity_id": "e", "series": "1m", "side": "buy",
        "quantity_micros": 1, "fill_after": NOW,
    },
    "detector_corporate_actions": {
        "source": "s", "entity_id": "e", "kind": "split", "occurred_at": NOW, "amount": 2.0, "revision": 0,
        "event_id": ID,
    },
    "detector_findings": {
        "source": "s", "entity_id": "e", "series": "1m", "occurred_at": NOW, "kind": "return", "state": "detected",
        "score": 5.0, "threshold": 4.0, "event_id": ID, "revision": 0, "details": "{}",
    },
    "detector_told": {
        "source": "s", "entity_id": "e", "series": "1m", "occurred_at": NOW, "kind": "return", "threshold": 4.0,
        "bar_event_id": ID, "bar_revision": 0, "told": 1, "told_event_id": ID,
    },
    "signal_lab_corporate_actions": {
        "source": "s", "entity_id": "e", "kind": "split", "occurred_at": NOW, "amount": 2.0, "revision": 0,
        "event_id": ID,
    },
    "episodes": {
        "source": "s", "entity_id": "e", "series": "1m", "occurred_at": NOW, "event_id": ID, "return_milli": 1,
        "prior_milli": 1, "range_milli": 1, "followed_ppm": 1, "followed_milli": 1,
        "ended_at": datetime(2026, 1, 6, tzinfo=UTC),
    },
}  # fmt: skip

_FILLED: Final[dict[str, object]] = {
    "filled_at": NOW, "fill_price_micros": 1, "fill_event_id": ID, "fill_occurred_at": NOW.replace(day=6),
}  # fmt: skip


def _empty(table: str, *columns: str) -> list[tuple[str, str, dict[str, object]]]:
    return [(table, f"{table}_{column}_check", {column: ""}) for column in columns]


REFUSED: Final[list[tuple[str, str, dict[str, object]]]] = [
    ("artifacts", "artifacts_are_named_by_their_content", {"bytes": b"y"}),
    ("artifacts", "artifacts_kind_check", {"kind": "An answer"}),
    (
        "artifacts",
        "artifacts_bytes_check",
        {"bytes": b"x" * (4 * 1024 * 1024 + 1), "sha256": hashlib.sha256(b"x" * (4 * 1024 * 1024 + 1)).digest()},
    ),
    *_empty("decisions", "domain", "playbook", "playbook_version", "anomaly_kind", "source", "entity_id"),
    ("decisions", "decisions_state_check", {"state": "done"}),
    ("decisions", "decisions_budget_micros_check", {"budget_micros": -1}),
    ("decisions", "decisions_lease_is_whole", {"held_by": "x"}),
    ("decision_steps", "decision_steps_seq_check", {"seq": -1, "parent": None}),
    ("decision_steps", "decision_steps_check", {"parent": 1}),
    ("decision_steps", "decision_steps_kind_check", {"kind": "A kind"}),
    ("decision_steps", "decision_steps_author_check", {"author": ""}),
    ("decision_steps", "decision_steps_body_check", {"body": b"x" * 65537}),
    ("agent_calls", "agent_calls_agent_check", {"agent": ""}),
    ("agent_calls", "agent_calls_agent_version_check", {"agent_version": ""}),
    ("agent_calls", "agent_calls_attempt_check", {"attempt": 0}),
    ("agent_calls", "agent_calls_reserved_micros_check", {"reserved_micros": -1}),
    ("agent_calls", "agent_calls_cost_micros_check", {"cost_micros": -1}),
    ("agent_calls", "agent_calls_input_tokens_check", {"input_tokens": -1}),
    ("agent_calls", "agent_calls_output_tokens_check", {"output_tokens": -1}),
    ("agent_calls", "agent_calls_retry_after_seconds_check", {"retry_after_seconds": -1}),
    ("agent_calls", "agent_calls_outcome_check", {"outcome": "lost", "ended_at": NOW}),
    ("agent_calls", "agent_calls_end_is_whole", {"outcome": "failed"}),
    ("agent_calls", "agent_calls_answered", {"outcome": "answered", "ended_at": NOW}),
    ("budgets", "budgets_scope_check", {"scope": ""}),
    ("budgets", "budgets_limit_micros_check", {"limit_micros": -1, "overrun_micros": 1}),
    ("budgets", "budgets_reserved_micros_check", {"reserved_micros": -1}),
    ("budgets", "budgets_spent_micros_check", {"spent_micros": -1}),
    ("budgets", "budgets_overrun_micros_check", {"overrun_micros": -1}),
    ("budgets", "budgets_are_kept", {"reserved_micros": 6, "spent_micros": 5}),
    ("budget_reservations", "budget_reservations_micros_check", {"micros": -1}),
    ("budget_reservations", "budget_reservations_spent_micros_check", {"spent_micros": -1, "settled_at": NOW}),
    ("budget_reservations", "budget_reservations_end_is_whole", {"spent_micros": 1}),
    ("verdicts", "verdicts_verdict_check", {"verdict": "allowed", "action_sha256": HASH, "policy_sha256": HASH,
                                            "schema_sha256": HASH,
                                            "request_sha256": HASH}),
    ("verdicts", "verdicts_reasons_check", {"reasons": "{}"}),
    ("verdicts", "verdicts_errors_check", {"errors": "{}"}),
    ("verdicts", "verdicts_errors_refuse", {"verdict": "permitted", "errors": '["e"]', "action_sha256": HASH,
                                            "policy_sha256": HASH, "schema_sha256": HASH, "request_sha256": HASH}),
    ("verdicts", "verdicts_name_what_they_judge", {"verdict": "permitted"}),
    ("approval_requests", "approval_requests_proposed_by_check", {"proposed_by": ""}),
    ("approval_requests", "approval_requests_shown_check", {"shown": ""}),
    ("approvals", "approvals_decided_by_check", {"decided_by": ""}),
    ("switch_lock", "switch_lock_only_one_check", {"only_one": False}),
    ("switches", "switches_scope_check", {"scope": "everything"}),
    ("switches", "switches_set_by_check", {"set_by": ""}),
    *_empty("actions", "idempotency_key", "domain", "action_type", "account"),
    ("executions", "executions_outcome_check", {"outcome": "tried"}),
    ("executions", "executions_effect_check", {"effect": "[]"}),
    ("outcomes", "outcomes_state_check", {"state": "seen"}),
    ("outcomes", "outcomes_observed_check", {"observed": "[]"}),
    ("agent_scores", "agent_scores_probability_check", {"probability": 1.1}),
    ("agent_scores", "agent_scores_brier_check", {"brier": -0.1}),
    ("timers", "timers_kind_check", {"kind": "alarm"}),
    ("paper_accounts", "paper_accounts_account_check", {"account": ""}),
    ("paper_orders", "paper_orders_side_check", {"side": "keep"}),
    ("paper_orders", "paper_orders_quantity_micros_check", {"quantity_micros": 0}),
    ("paper_orders", "paper_orders_fill_is_whole", {"filled_at": NOW}),
    ("paper_orders", "paper_orders_fill_price_micros_check", _FILLED | {"fill_price_micros": 0}),
    ("paper_orders", "paper_orders_check", _FILLED | {"fill_occurred_at": NOW}),
    ("detector_corporate_actions", "detector_corporate_actions_kind_check", {"kind": "merger", "currency": None}),
    ("detector_corporate_actions", "detector_corporate_actions_amount_check", {"amount": 0}),
    ("detector_corporate_actions", "detector_corporate_actions_dividends_are_money", {"currency": "USD"}),
    ("detector_findings", "detector_findings_kind_check", {"kind": "mood"}),
    ("detector_findings", "detector_findings_state_check", {"state": "withdrawn"}),
    ("detector_findings", "detector_findings_details_check", {"details": "[]"}),
    ("detector_told", "detector_told_kind_check", {"kind": "mood"}),
    ("detector_told", "detector_told_told_check", {"told": 0}),
    ("signal_lab_corporate_actions", "signal_lab_corporate_actions_kind_check", {"kind": "merger"}),
    ("signal_lab_corporate_actions", "signal_lab_corporate_actions_amount_check", {"amount": 0}),
    ("rebuildable", "rebuildable_table_name_check", {"table_name": "x; DROP"}),
    ("decision_tombstones", "decision_tombstones_cause_check", {"cause": "neglect", "operation_id": ID}),
    ("decision_tombstones", "decision_tombstones_check", {"cause": "erasure"}),
    ("erasures", "erasures_about_check", {"about": "everything"}),
    ("erasures", "erasures_removed_check", {"removed": "[]"}),
    ("episodes", "episodes_check", {"ended_at": NOW}),
]  # fmt: skip
"""Table, constraint, what is wrong with the row."""
