"""What finance plugs into the decision engine: its playbook, its agents and its gate."""

from typing import Final

from control_plane.model.deciding import Deciding
from domains.finance.deciding.agents import AGENTS, STAND_INS
from domains.finance.deciding.model_agents import MODEL_AGENTS
from domains.finance.deciding.playbook import UnusualBar
from domains.finance.gate import GATE

DECIDING: Final = Deciding(playbooks=(UnusualBar(),), agents=(*AGENTS, *STAND_INS, *MODEL_AGENTS), gate=GATE)
