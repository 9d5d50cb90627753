"""Hostile and careless proposals in great number: the judge and an oracle that shares no code with it always agree.

ACP_ADVERSARIAL says how many cases there are; a million take about twenty minutes on two cores.
"""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from tests.adversary import GATES

from control_plane.decisions.policy import load_from

CASES = int(os.environ.get("ACP_ADVERSARIAL", "50000"))
ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def seen() -> dict[str, Any]:
    """What a run on every core has seen."""
    cores = os.cpu_count() or 1
    runs = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.adversary", str(-(-CASES // cores)), str(seed)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
        )
        for seed in range(1, cores + 1)
    ]
    outputs = [run.communicate()[0] for run in runs]
    assert [run.returncode for run in runs] == [0] * cores
    found = [json.loads(output) for output in outputs]
    merged: dict[str, Any] = {
        name: sum(each[name] for each in found) for name in found[0] if type(found[0][name]) is int
    }
    for name in ("verdicts", "reasons"):
        merged[name] = sum((Counter(each[name]) for each in found), Counter())
    merged["differences"] = [difference for each in found for difference in each["differences"]]
    return merged


@pytest.mark.timeout(3600)
def test_no_case_is_judged_otherwise_than_by_the_oracle(seen: dict[str, Any]) -> None:
    assert seen["differences"] == []
    assert seen["cases"] >= CASES


def test_nothing_invalid_is_released_and_nothing_valid_refused(seen: dict[str, Any]) -> None:
    assert (seen["invalid_released"], seen["valid_refused"]) == (0, 0)
    assert seen["verdicts"]["permitted"] + seen["verdicts"]["needs_approval"] >= CASES / 5, (
        "there were enough to refuse"
    )


def test_enough_of_the_proposals_are_in_their_schema(seen: dict[str, Any]) -> None:
    assert seen["in_schema"] >= 0.3 * seen["cases"]
    assert min(seen["verdicts"].values()) >= 0.05 * seen["cases"]


def test_every_policy_was_the_reason_for_a_verdict(seen: dict[str, Any]) -> None:
    assert {f"policy: {name}" for name in load_from(GATES["own"]).names.values()} <= set(seen["reasons"])
