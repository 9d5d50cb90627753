"""Drills make something fail in the running local cloud, show that the guarantees hold, and undo their changes.

A drill first records what it is going to change (`record`), then changes it (`stage`), and undoes it from that record
(`mending`). If the drill is killed, a later command undoes the changes.
"""
