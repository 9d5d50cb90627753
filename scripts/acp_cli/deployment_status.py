"""The status of a deployment, as its API tells it: whether it works, and what is open at each stage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from rich.console import Group
from rich.table import Table

from acp_cli.deciders import instant_of
from acp_cli.status import duration
from local_cloud.visible import shown

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import RenderableType

    from acp_client.client import Client

_MARKS: Final = {"ok": "green", "degraded": "yellow", "failing": "red"}


@dataclass(frozen=True, slots=True)
class DeploymentReport:
    """What /health and /flow say at one moment. ``flow`` is None where /health has said that nothing can be read."""

    url: str
    health: Mapping[str, Any]
    flow: Mapping[str, Any] | None

    @property
    def problems(self) -> list[str]:
        """Returns what a person should look at; empty if all is well."""
        flow = self.flow or {"subscriptions": [], "consumers": []}
        problems = [
            f"{name} is {check['status']}: {_details(check)}".removesuffix(": ")
            for name, check in self.health["checks"].items()
            if check["status"] != "ok"
        ]
        problems += [
            f"{one['dead_letters']} dead letters of {one['subscription']}: acp dead-letters"
            for one in flow["subscriptions"]
            if one["dead_letters"]
        ]
        problems += [
            f"{one['subscription']} is held by {one['held_by']}: acp resume {one['subscription']}"
            for one in flow["subscriptions"]
            if one["held_by"]
        ]
        problems += [
            f"{one['count']} delivered to {one['subscription']} and not processed, the oldest "
            f"{duration(one['oldest_age_seconds'])} ago: acp trace {one['oldest_event_id']}"
            for one in flow["consumers"]
            if one["subscription"] in self.health["checks"].get("consumers", {}).get("late", [])
        ]
        return problems

    def to_dict(self) -> dict[str, Any]:
        """Returns the report as JSON values."""
        return {
            "status": self.health["status"],
            "problems": self.problems,
            "url": self.url,
            "checks": self.health["checks"],
            "flow": self.flow,
        }

    def render(self) -> RenderableType:
        """Returns the report for people."""
        status = self.health["status"]
        parts: list[RenderableType] = [f"[{_MARKS.get(status, 'red')}]{shown(status)}[/]  {shown(self.url)}"]
        parts += [f"[yellow]•[/] {shown(problem)}" for problem in self.problems]
        if self.flow is None:
            return Group(*parts)
        newest = self.flow["events"]["newest_ingested_at"]
        at = "no event yet" if newest is None else f"the newest event at {instant_of(newest):%Y-%m-%d %H:%M:%S}Z"
        parts.append(f"{self.flow['events']['ingested_last_minute']} events in the last minute, {at}")
        table = Table(box=None, pad_edge=False, header_style="bold")
        for column in ("Subscription", "pending", "oldest", "dead", "breaker"):
            table.add_column(column, justify="right" if column in {"pending", "oldest", "dead"} else "left")
        for one in self.flow["subscriptions"]:
            age = one["oldest_pending_age_seconds"]
            table.add_row(
                shown(one["subscription"]) + ("" if one["is_active"] else " (removed)"),
                str(one["pending"]),
                "–" if age is None else duration(max(age, 0)),
                str(one["dead_letters"]),
                shown(one["breaker"].replace("_", "-")),
            )
        return Group(*parts, table)


def read_deployment(client: Client) -> DeploymentReport:
    """Reads a deployment's status. Raises ApiError, ApiUnreachable."""
    health = client.health()
    can_be_read = all(health["checks"].get(name, {}).get("status") == "ok" for name in ("database", "schema"))
    return DeploymentReport(client.profile.url, health, client.get("/flow") if can_be_read else None)


def _details(check: Mapping[str, Any]) -> str:
    found = {name: value for name, value in check.items() if name != "status"}
    return ", ".join(f"{name.replace('_', ' ')} {_text(value)}" for name, value in found.items())


def _text(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
