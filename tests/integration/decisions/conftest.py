"""A world around the engine, per test."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tests.conftest import TestDatabase
from tests.integration.decisions import toy
from tests.integration.decisions.world import World


@pytest.fixture
def worlds() -> Iterator[list[World]]:
    """Those that the test makes; closed after it."""
    made: list[World] = []
    yield made
    for world in made:
        world.close()


@pytest.fixture
def make_world(database: TestDatabase, worlds: list[World]) -> Callable[..., World]:
    def make(**options: Any) -> World:
        options.setdefault("deciding", toy.deciding())
        worlds.append(World(database, **options))
        return worlds[-1]

    return make


@pytest.fixture
def world(make_world: Callable[..., World]) -> World:
    return make_world()
