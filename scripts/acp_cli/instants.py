"""Instants as people type them, and as the API takes them."""

from __future__ import annotations

from datetime import UTC, datetime

from local_cloud.errors import UsageError


def instant_text(text: str | None, option: str) -> str | None:
    """Returns an instant as the API takes it; one without a time zone is UTC. Raises UsageError."""
    if text is None:
        return None
    try:
        instant = datetime.fromisoformat(text.strip())
    except ValueError:
        msg = f"{option} is {text!r}, which is no instant."
        raise UsageError(msg, remedy="Give a day or an instant, in UTC without a zone: 2026-01-05T14:30") from None
    zoned = instant.replace(tzinfo=UTC) if instant.tzinfo is None else instant.astimezone(UTC)
    return zoned.isoformat().replace("+00:00", "Z")
