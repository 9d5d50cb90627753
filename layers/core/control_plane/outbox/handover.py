"""Handover between lingering relays: when a new one takes over, the one before it ends within a second."""

from typing import Any
from uuid import UUID

from psycopg import Connection

from control_plane.outbox.claims import QUERIES

CHECK_SECONDS = 1.0
"""How often a lingering relay checks whether another has taken over."""


def take_over(connection: Connection[Any], *, token: UUID, name: str) -> None:
    """Makes this the one relay that lingers; the one before it notices at its next check."""
    connection.execute(QUERIES["take_over"].sql, {"token": token, "name": name})


def is_current(connection: Connection[Any], *, token: UUID) -> bool:
    """Whether no other relay has taken over since."""
    return connection.execute(QUERIES["is_current"].sql, {"token": token}).fetchone() is not None


def leave(connection: Connection[Any], *, token: UUID) -> None:
    """Ends this relay's lingering in the database, unless another relay has taken over."""
    connection.execute(QUERIES["leave"].sql, {"token": token})
