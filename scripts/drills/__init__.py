"""Drills: faults made on purpose on the running local cloud, to see the guarantees hold, and put right again.

What a drill changes is written down first (`record`), then made (`stage`), and undone from that record (`mending`), if
need be by a later command.
"""
