"""Finance's agents that may have a model behind them: those that explain and summarise, and compute nothing.

Where no model is set, the deterministic agents of the same names answer. Where the model gave no answer, the playbook
asks the deterministic twin, under a name of its own: the record says which of them spoke.
"""

from importlib import resources
from typing import Final

from control_plane.decisions.models.model_agent import ModelAgent
from domains.finance.deciding.answers import HypothesesAnswer, SummaryAnswer


def _prompt(name: str) -> str:
    return resources.files(__package__).joinpath("prompts", f"{name}.txt").read_text(encoding="utf-8")


MODEL_AGENTS: Final = (
    ModelAgent(
        "hypotheses",
        "1",
        HypothesesAnswer,
        _prompt("hypotheses"),
        fields=(
            *("entity_id", "kind", "return_ppm", "adjusted_return_ppm", "z_milli"),
            *("entities", "fell", "median_return_ppm", "is_market_wide", "problem"),
            *("corporate_actions.kind", "corporate_actions.occurred_at"),
            *("corporate_actions.ratio_ppm", "corporate_actions.amount_micros"),
        ),
    ),
    ModelAgent(
        "executive_summary",
        "1",
        SummaryAnswer,
        _prompt("executive_summary"),
        fields=(
            *("entity_id", "currency", "adjusted_return_ppm", "z_milli", "severity", "hypothesis"),
            *("expected_shortfall_micros", "option", "why"),
        ),
    ),
)
"""Each has the fields of its request that a model may see; a field that is added to a request is not sent by itself."""
