"""acp decision on a real Postgres; only the cloud around it is a stand-in."""

import hashlib
import json
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
from tests.conftest import TestDatabase
from tests.integration.api_server import ApiServer, lead_to, no_deployment, serving
from tests.integration.decisions import toy
from tests.integration.decisions.world import World, anomaly
from tests.integration.running_cloud import RunningCloud, run

from control_plane.decisions.offline import NetworkRefused, network_off
from control_plane.model.deciding import AgentResult
from control_plane.model.text import has_invisible
from local_cloud.cloud import Cloud
from local_cloud.workspace import CHECKOUT, Workspace


@pytest.fixture
def api(database: TestDatabase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ApiServer]:
    no_deployment(tmp_path, monkeypatch)
    with serving(database) as served:
        yield served


@pytest.fixture
def cloud(cloud: RunningCloud, api: ApiServer, monkeypatch: pytest.MonkeyPatch) -> RunningCloud:
    lead_to(api, cloud, monkeypatch)
    return cloud


@pytest.fixture
def decided(world: World, api: ApiServer, monkeypatch: pytest.MonkeyPatch) -> str:
    """The beginning of the id of a decision that has come to its end."""
    monkeypatch.setattr(api.retrial.module, "deciding", lambda: world.deciding)
    world.detect(anomaly())
    world.run()
    assert world.record().decision.state == "scored"
    return str(world.record().decision.decision_id)[:8]


def test_a_decision_is_replayed_to_the_byte(cloud: RunningCloud, decided: str) -> None:
    result = run(cloud, "decision", decided, "--replay")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("replayed byte-identical, ")
    assert " bytes, network off\n  SHA-256 of both: " in result.stdout
    told = json.loads(run(cloud, "decision", decided, "--replay", "--json").stdout)
    assert (told["same"], told["difference"], told["network"], told["needs"]) == (True, None, [], None)
    assert told["recorded_sha256"] == told["decided_sha256"]


def test_a_decision_is_shown_as_the_spans_of_its_trace(cloud: RunningCloud, decided: str) -> None:
    shown = json.loads(run(cloud, "decision", decided, "--otlp").stdout)
    names = [span["name"] for one in shown["resourceSpans"] for span in one["scopeSpans"][0]["spans"]]
    assert {name.split()[0] for name in names} == {"invoke_workflow", "invoke_agent", "execute_tool"}


def test_the_first_difference_is_shown(cloud: RunningCloud, database: TestDatabase, decided: str) -> None:
    with psycopg.connect(database.admin_url, autocommit=True) as superuser:
        superuser.execute("SET session_replication_role = replica")
        row = superuser.execute(
            "UPDATE decision_steps SET body = convert_to(jsonb_set(convert_from(body, 'UTF8')::jsonb,"
            " '{bars}', '99')::text, 'UTF8') WHERE kind = 'observing' RETURNING seq"
        ).fetchone()
    assert row is not None
    result = run(cloud, "decision", decided, "--replay")
    assert result.exit_code == 1
    assert f"Step {row[0]} would be decided differently (body, bars)" in result.stdout
    assert "\n  recorded: 99\n  decided:  " in result.stdout
    told = json.loads(run(cloud, "decision", decided, "--replay", "--json").stdout)
    assert (told["difference"]["seq"], told["difference"]["kind"]) == (row[0], "observing")
    assert (told["difference"]["field"], told["difference"]["recorded"], told["same"]) == ("bars", "99", False)
    assert told["recorded_sha256"] != told["decided_sha256"]


def test_a_playbook_that_asks_for_the_network_is_told(
    cloud: RunningCloud, world: World, decided: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask(*_: Any) -> Any:
        socket.create_connection(("127.0.0.1", 9))

    playbook = world.deciding["toy"].playbooks[0]
    monkeypatch.setattr(type(playbook), "next", ask)
    result = run(cloud, "decision", decided, "--replay")
    assert result.exit_code == 1
    assert "It asked for the network, which was off: socket." in result.stdout


def test_a_version_that_is_gone_is_named(
    cloud: RunningCloud, api: ApiServer, world: World, decided: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    playbook = world.deciding["toy"].playbooks[0]
    newer = replace(world.deciding["toy"], playbooks=(toy.Nudging(version="99"),))
    monkeypatch.setattr(api.retrial.module, "deciding", lambda: {"toy": newer})
    result = run(cloud, "decision", decided, "--replay")
    assert result.exit_code == 1
    assert f"It was decided by {playbook.name} {playbook.version}, which this release does not have" in result.stdout
    told = json.loads(run(cloud, "decision", decided, "--replay", "--json").stdout)
    assert (told["same"], told["needs"]["here"]) == (None, ["99"])
    monkeypatch.setattr(api.retrial.module, "deciding", dict)
    assert "versions of nudging here: none" in run(cloud, "decision", decided, "--replay").stdout


def test_a_decision_that_is_not_there_is_no_secret(api: ApiServer, decided: str, tmp_path: Path) -> None:
    nowhere = Cloud(Workspace(CHECKOUT, tmp_path, tmp_path / "state"))
    missing = run(nowhere, *api.options, "decision", "00000000", "--replay")
    assert (missing.exit_code, "There is no decision 00000000" in missing.stderr) == (2, True)


def test_the_network_comes_back_after_a_replay() -> None:
    with socket.socket() as opened, network_off() as refused:
        opened.setblocking(False)
        with pytest.raises(NetworkRefused):
            socket.getaddrinfo("localhost", 80)
    assert refused == ["socket.getaddrinfo"]
    with socket.socket():
        pass


def test_the_tree_reads_within_eighty_columns(cloud: RunningCloud, decided: str) -> None:
    shown = run(cloud, "decision", decided).stdout
    assert all(len(line) <= 80 for line in shown.splitlines())
    asked, answered, verdict = (
        shown.index(text) for text in ("├ asked: namer, checker", "│ └ checker answered", "├ verdict: permitted")
    )
    assert asked < answered < verdict
    assert "sha256" not in shown
    assert "has not answered yet" not in shown
    assert shown.splitlines()[-1].strip()


def test_a_deployment_shows_its_decisions(world: World, api: ApiServer, decided: str, tmp_path: Path) -> None:
    nowhere = Cloud(Workspace(CHECKOUT, tmp_path, tmp_path / "state"))
    reader = ("--url", api.url, "--token", api.make_token("kim", "read"))
    [listed] = run(nowhere, *reader, "decisions", "--state", "scored").stdout.splitlines()
    assert listed.startswith(f"{decided}  ")
    assert run(nowhere, *reader, "decisions", "--state", "refused").stdout == ""
    [told] = json.loads(run(nowhere, *reader, "decisions", "--json").stdout)
    assert told["decision_id"].startswith(decided)
    shown = run(nowhere, *reader, "decision", decided)
    assert shown.stdout.splitlines()[0] == told["decision_id"]
    whole = json.loads(run(nowhere, *reader, "decision", told["decision_id"], "--json").stdout)
    assert len(whole["steps"]) == told["steps"]
    assert run(nowhere, *reader, "decision", "ffff").exit_code == 2
    replayed = run(nowhere, *reader, "decision", decided, "--replay")
    assert (replayed.exit_code, "replayed byte-identical" in replayed.stdout) == (0, True), replayed.output


def test_an_artifact_is_read_whole_and_checked(
    cloud: RunningCloud, world: World, api: ApiServer, decided: str, tmp_path: Path
) -> None:
    whole = json.loads(run(cloud, "decision", decided, "--json").stdout)
    step = next(step for step in whole["steps"] if step["output_sha256"] and step["output"])
    name = step["output_sha256"]
    file = tmp_path / "artifact"
    assert run(cloud, "artifact", name, "-o", str(file)).exit_code == 0
    assert file.read_text() == step["output"]
    assert run(cloud, "artifact", name).stdout == step["output"]
    missing = run(cloud, "artifact", "0" * 64)
    assert (missing.exit_code, "There is no artifact" in missing.stderr) == (1, True)
    assert run(cloud, "artifact", name[:-1]).exit_code == 2
    content = bytes(range(256)) * 4100
    large = hashlib.sha256(content).hexdigest()
    world.owner.execute(
        "INSERT INTO artifacts (sha256, kind, bytes) VALUES (sha256(%(bytes)s), 'evidence', %(bytes)s)",
        {"bytes": content},
    )
    assert run(cloud, "artifact", large, "-o", str(file)).exit_code == 0
    assert file.read_bytes() == content


HOSTILE = {
    "raw NUL": b'{"hypothesis": "\x00"}',
    "a lone surrogate": '{"hypothesis": "\ud800"}'.encode("utf-8", "surrogatepass"),
    "no UTF-8": b"\xff\xfe",
    "a control sequence": '{"hypothesis": "\u009b2J\u202e\x1b[31m"}'.encode(),
    "nested without end": b"[" * 60_000,
    "a number without end": b'{"chance_ppm": ' + b"9" * 60_000 + b"}",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_answer_is_shown_and_steers_nothing(
    make_world: Callable[..., World], cloud: RunningCloud, name: str
) -> None:
    refused = AgentResult("invalid", HOSTILE[name], "it is hostile")
    world = make_world(deciding=toy.deciding(namer={"gives": lambda attempt: refused if attempt == 1 else None}))
    world.detect(anomaly())
    world.run()
    decision_id = str(world.record().decision.decision_id)
    for arguments in ((), ("--json",)):
        result = run(cloud, "decision", decision_id, *arguments)
        assert result.exit_code == 0, result.output
        assert not has_invisible(result.stdout.replace("\n", ""))
        assert "it is hostile" in result.stdout
