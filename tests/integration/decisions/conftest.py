"""A world around the engine, per test."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tests.conftest import TestDatabase
from tests.integration.decisions import toy
from tests.integration.decisions.world import World


@pytest.fixture
def make_world(database: TestDatabase) -> Iterator[Callable[..., World]]:
    made: list[World] = []

    def make(**options: Any) -> World:
        options.setdefault("deciding", toy.deciding())
        made.append(World(database, **options))
        return made[-1]

    yield make
    for world in made:
        world.close()


@pytest.fixture
def world(make_world: Callable[..., World]) -> World:
    return make_world()
