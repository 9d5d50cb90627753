"""Drills make faults on purpose in the running local cloud, to show that the guarantees hold, and undo them again.

A drill first records what it is going to change (`record`), then changes it (`stage`), and undoes it from that record
(`mending`). If the drill is killed, a later command undoes it.
"""
