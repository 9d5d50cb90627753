"""What finance plugs into the decision engine: its playbook and agents; the gate is handed in."""

from control_plane.model.deciding import Deciding, Gate
from domains.finance.deciding.agents import AGENTS
from domains.finance.deciding.playbook import UnusualBar


def deciding(gate: Gate) -> Deciding:
    """Returns finance's plug-ins with this gate."""
    return Deciding(playbooks=(UnusualBar(),), agents=AGENTS, gate=gate)
