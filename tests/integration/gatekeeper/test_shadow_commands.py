"""acp policy shadow and acp decision on a real Postgres: what policies in shadow would have decided is seen."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.conftest import TestDatabase
from tests.integration.api_server import ApiServer, lead_to, no_deployment, serving
from tests.integration.gatekeeper.test_shadow import STRICTER, in_shadow
from tests.integration.gatekeeper.world import GATE, World
from tests.integration.running_cloud import RunningCloud, run

from control_plane.decisions import shadow


@pytest.fixture
def api(database: TestDatabase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ApiServer]:
    no_deployment(tmp_path, monkeypatch)
    monkeypatch.setattr(shadow, "MOST_SECONDS", 60.0)
    with serving(database) as served:
        yield served


@pytest.fixture
def cloud(cloud: RunningCloud, api: ApiServer, monkeypatch: pytest.MonkeyPatch) -> RunningCloud:
    lead_to(api, cloud, monkeypatch)
    return cloud


def test_differences_are_counted_by_pair(cloud: RunningCloud, world: World) -> None:
    assert "0 of 0 verdicts would differ" in run(cloud, "policy", "shadow").stderr
    judged = [world.propose(), world.propose(entity="MSFT"), world.propose(entity="IBM")]
    for proposed in judged:
        proposed.judge()
    in_shadow(world, judged[0])
    in_shadow(world, judged[1], "permit (")
    shown = run(cloud, "policy", "shadow")
    assert shown.exit_code == 0, shown.output
    assert "2 of 3 verdicts would differ; 1 were judged without a shadow." in shown.stderr.replace("\n", " ")
    assert all(len(line) <= 80 for line in shown.output.splitlines())
    told = json.loads(run(cloud, "policy", "shadow", "--domain", "finance", "--json").stdout)
    assert (told["judged"], told["without_shadow"]) == (3, 1)
    pairs = {(one["enforced"], one["shadow"], one["count"], one["newest_decision_id"]) for one in told["pairs"]}
    assert pairs == {
        ("permitted", "refused", 1, str(judged[0].decision_id)),
        ("permitted", "error", 1, str(judged[1].decision_id)),
    }
    later = json.loads(run(cloud, "policy", "shadow", "--since", "2100-01-01T00:00Z", "--json").stdout)
    assert later == {"judged": 0, "without_shadow": 0, "pairs": []}
    assert run(cloud, "policy", "shadow", "--domain", "other").exit_code == 0


@pytest.mark.parametrize(
    ("text", "line", "why"),
    [
        (STRICTER, "would have said: refused", "reasons: nothing_now"),
        (GATE.policies, "would have said the same: permitted", "reasons: small_hedge_of_one_name"),
        ("permit (", "could not be asked", "errors: "),
    ],
)
def test_a_decision_tells_what_another_policy_would_have_said(
    cloud: RunningCloud, world: World, text: str, line: str, why: str
) -> None:
    proposed = world.propose()
    proposed.judge()
    in_shadow(world, proposed, text)
    shown = run(cloud, "decision", str(proposed.decision_id)[:8])
    assert shown.exit_code == 0, shown.output
    assert all(len(one) <= 80 for one in shown.output.splitlines())
    assert line in shown.stdout
    assert why in shown.stdout
    tree = json.loads(run(cloud, "decision", str(proposed.decision_id)[:8], "--json").stdout)
    [body] = [step["body"] for step in tree["steps"] if step["kind"] == "shadow_verdict"]
    assert body["enforced"] == "permitted"
