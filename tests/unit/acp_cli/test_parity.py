"""The API and acp are the same thing twice: every route has a command, and every command of the table exists."""

from typing import Any

import pytest
from typer.core import TyperGroup

from acp_cli.cli import COMMANDS, load
from acp_cli.parity import COMMAND_OF_ROUTE, WITHOUT_COMMAND
from control_plane.api.commands import command_routes
from control_plane.api.reads import read_routes

NEVER: Any = None
ROUTES = [route.name for route in (*read_routes(NEVER, NEVER, NEVER, NEVER, NEVER), *command_routes(NEVER, {}, NEVER))]


def test_every_route_has_a_command_or_a_reason() -> None:
    assert sorted([*COMMAND_OF_ROUTE, *WITHOUT_COMMAND]) == sorted(ROUTES)
    assert all(WITHOUT_COMMAND.values())


@pytest.mark.parametrize("spelled", sorted(set(COMMAND_OF_ROUTE.values())))
def test_every_command_of_a_route_exists(spelled: str) -> None:
    name, _, part = spelled.partition(" ")
    assert name in {name for entries in COMMANDS.values() for name in entries}
    command = load(name)
    if part:
        assert isinstance(command, TyperGroup)
        assert part in command.commands


@pytest.mark.parametrize("group", ["operations", "tokens", "breakers"])
def test_every_part_of_a_group_has_a_route(group: str) -> None:
    command = load(group)
    assert isinstance(command, TyperGroup)
    assert {f"{group} {part}" for part in command.commands} <= set(COMMAND_OF_ROUTE.values())
