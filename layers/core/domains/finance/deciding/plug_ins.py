"""What finance plugs into the decision engine: its playbook, its agents and its gate."""

from typing import Final

from control_plane.model.deciding import Deciding
from domains.finance.deciding.agents import AGENTS, STAND_INS
from domains.finance.deciding.model_agents import MODEL_AGENTS
from domains.finance.deciding.playbook import UnusualBar
from domains.finance.gate import GATE, policies_in_shadow

# Rules come last: by name, whoever binds no model (a backtest, a replay) gets them.
DECIDING: Final = Deciding(
    playbooks=(UnusualBar(),),
    agents=(*MODEL_AGENTS, *AGENTS, *STAND_INS),
    gate=GATE,
    shadow_policies=policies_in_shadow(),
)
