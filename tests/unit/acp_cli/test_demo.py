from __future__ import annotations

import pytest

from acp_cli.demo_command import Flow

COMPLETE = {"symbols": 3, "deliveries": 4, "delivered": 4, "dead_lettered": 0, "ticks": 3, "consumed": 3}


def test_the_flow_is_complete_once_everything_ingested_has_arrived() -> None:
    assert Flow(**COMPLETE).complete


@pytest.mark.parametrize("short", [{"symbols": 2}, {"delivered": 3}, {"consumed": 2}])
def test_the_flow_is_incomplete_while_anything_is_under_way(short: dict[str, int]) -> None:
    assert not Flow(**(COMPLETE | short)).complete
