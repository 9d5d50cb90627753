"""What was counted, as tests compare it."""

from collections import Counter
from typing import Any

from psycopg import Connection

from control_plane.flow.counts import read_counts

type Kind = tuple[str, str, str]
"""A stage, a name and an outcome."""


def counted(connection: Connection[Any]) -> Counter[Kind]:
    """Returns how often each thing has ever happened."""
    found: Counter[Kind] = Counter()
    for one in read_counts(connection):
        found[one.stage, one.name, one.outcome] += one.n
    return found


def age(owner: Connection[Any], minutes: int = 2) -> None:
    """Makes everything that is not folded older, as if so many minutes had passed."""
    with owner.transaction():
        owner.execute("ALTER TABLE flow_deltas DISABLE TRIGGER flow_deltas_are_immutable")
        owner.execute("UPDATE flow_deltas SET at = at - make_interval(mins => %s)", [minutes])
        owner.execute("ALTER TABLE flow_deltas ENABLE TRIGGER flow_deltas_are_immutable")


def fold_now(owner: Connection[Any], most: int = 100_000) -> int:
    """Folds once; returns how many rows were folded."""
    row = owner.execute("SELECT fold_flow(%s)", [most]).fetchone()
    assert row is not None
    folded: int = row[0]
    return folded
