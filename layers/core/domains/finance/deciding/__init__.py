"""How finance decides: its playbook and its agents. ``plug_ins`` has what the decision engine is given.

Nothing is imported here: finance's gate uses a part of this package, and ``plug_ins`` imports the gate.
"""
