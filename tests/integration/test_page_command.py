"""acp page: an address with a token that is no admin, ends by itself, and has nothing that its maker lacks."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from tests.integration.running_cloud import API_TOKEN, RunningCloud, run
from typer.testing import CliRunner, Result

from acp_cli.asking import asking_locally
from acp_cli.cli import app as acp
from acp_cli.page_command import page_address
from local_cloud.cloud import Cloud
from local_cloud.workspace import CHECKOUT, Workspace


def asked(tmp_path: Path, url: str, *arguments: str, token: str = API_TOKEN) -> Result:
    """Runs a command on a deployment, from a workspace without a local cloud."""
    nowhere = Cloud(Workspace(CHECKOUT, tmp_path / "elsewhere", tmp_path / "elsewhere" / "state"))
    result = CliRunner().invoke(acp, arguments, obj=nowhere, env={"ACP_URL": url, "ACP_TOKEN": token})
    assert result.exception is None or isinstance(result.exception, SystemExit), "a traceback"
    return result


def url_of(cloud: RunningCloud) -> str:
    return cloud.outputs(cloud.running())["ApiUrl"]


def made(result: Result) -> dict[str, Any]:
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def token_in(address: str) -> str:
    name, _, token = urlsplit(address).fragment.partition("=")
    assert name == "token"
    return token


def test_the_address_has_a_token_in_its_fragment_that_reads_operates_and_approves_for_twelve_hours(
    cloud: RunningCloud, tmp_path: Path
) -> None:
    address = run(cloud, "page", "--because", "a look")
    assert address.exit_code == 0, address.output
    [line] = address.stdout.splitlines()
    token = token_in(line)
    assert line == f"{url_of(cloud)}/ui#token={token}"
    assert "acp tokens revoke page-1" in address.stderr
    assert token not in address.stderr

    [listed] = json.loads(run(cloud, "tokens", "list", "--json").stdout)
    assert (listed["name"], sorted(listed["scopes"])) == ("page-1", ["approve", "operate", "read"])
    left = datetime.fromisoformat(listed["expires_at"]) - datetime.now(UTC)
    assert timedelta(hours=11, minutes=50) < left <= timedelta(hours=12)
    assert "a look" in run(cloud, "audit", "log").stdout
    assert asked(tmp_path, url_of(cloud), "events", token=token).exit_code == 0
    refused = asked(tmp_path, url_of(cloud), "tokens", "list", token=token)
    assert refused.exit_code == 1


def test_each_address_has_a_token_of_its_own(cloud: RunningCloud) -> None:
    addresses = [made(run(cloud, "page", "--json")) for _ in range(3)]
    assert [address["name"] for address in addresses] == ["page-1", "page-2", "page-3"]
    assert len({address["url"] for address in addresses}) == 3
    quiet = run(cloud, "page", "-q")
    assert (quiet.stderr, len(quiet.stdout.splitlines())) == ("", 1)


def test_a_name_that_somebody_else_takes_meanwhile_is_passed_over(
    cloud: RunningCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(run(cloud, "page", "--json"))
    # This list was read before page-1 was made.
    monkeypatch.setattr("acp_client.client.Client.pages", lambda *_, **__: iter(()))
    assert made(run(cloud, "page", "--json"))["name"] == "page-2"


def test_a_deployment_is_asked_by_url_and_token_and_the_scopes_and_end_are_cut_to_the_makers(
    cloud: RunningCloud, tmp_path: Path
) -> None:
    url = url_of(cloud)
    admin = json.loads(run(cloud, "tokens", "make", "ops", "--scope", "admin", "--json").stdout)["token"]
    address = made(asked(tmp_path, url, "page", "--json", token=admin))
    assert sorted(address["scopes"]) == ["operate", "read"], "admin does not imply approve"

    with asking_locally(cloud, cloud.running()) as client:
        ends = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
        short = client.send(
            "POST", "/tokens", {"name": "short", "scopes": ["admin"], "expires_at": ends, "reason": "a visitor"}
        )
    address = made(asked(tmp_path, url, "page", "--json", token=short["token"]))
    assert address["expires_at"] == short["expires_at"]


def test_a_token_that_is_no_admin_is_told_to_paste_itself(cloud: RunningCloud, tmp_path: Path) -> None:
    url = url_of(cloud)
    token = run(cloud, "tokens", "make", "kim", "--scope", "operate", "-q").stdout.strip()
    refused = asked(tmp_path, url, "page", token=token)
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert "The token kim is no admin" in refused.stderr
    assert f"Open {url}/ui and paste the token that you have." in refused.stderr


def test_the_demo_makes_its_address_with_the_local_clouds_own_token(cloud: RunningCloud) -> None:
    with asking_locally(cloud, cloud.running()) as client:
        address = page_address(client, "the demo")
    assert address.url.startswith(f"{url_of(cloud)}/ui#token=")
    assert address.told.startswith("Whoever has this address may approve, operate, read until 20")
