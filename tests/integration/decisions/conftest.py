"""A world around the engine, per test."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from psycopg import Connection
from tests.conftest import TestDatabase
from tests.integration.decisions import toy
from tests.integration.decisions.finance import LAST, STOCKS, closes, hold, past, wobble
from tests.integration.decisions.world import World

from control_plane.decisions.record import load
from control_plane.decisions.replay import replay


@pytest.fixture
def worlds() -> Iterator[list[World]]:
    """The worlds that the test makes; they are closed after it."""
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


@pytest.fixture
def replays_are_identical(worlds: list[World], make_world: Callable[..., World]) -> Iterator[None]:
    """Whatever a test leads to, each of its decisions is decided the same way from its record."""
    yield
    for world in worlds:
        for record in world.records():
            loaded = load(world.decide, record.decision.decision_id)
            assert loaded is not None
            if record.decision.playbook_version in {one.version for one in world.deciding["toy"].versions}:
                assert replay(loaded, world.deciding["toy"]).difference is None


@pytest.fixture
def market(app: Connection[Any], owner: Connection[Any]) -> Connection[Any]:
    """Three stocks, of each of which the account holds about ten thousand dollars."""
    for entity in STOCKS:
        values = wobble(LAST, entity=entity)
        past(owner, entity, values[:-1])
        closes(app, entity, values[-1:], first=LAST - 1)
    hold(owner, AAPL=100, IBM=100, MSFT=100)
    return app
