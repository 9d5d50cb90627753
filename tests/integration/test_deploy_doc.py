"""Checks docs/deploy.md as far as possible without an account: its SQL, commands, links and sums."""

import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import botocore.session
import psycopg
import pytest
from botocore import xform_name
from psycopg.conninfo import conninfo_to_dict
from samcli.commands.build.command import cli as sam_build
from samcli.commands.delete.command import cli as sam_delete
from samcli.commands.deploy.command import cli as sam_deploy
from samcli.commands.list.stack_outputs.command import cli as sam_list_stack_outputs
from samcli.commands.logs.command import cli as sam_logs
from samcli.commands.remote.invoke.cli import cli as sam_remote_invoke
from samcli.yamlhelper import yaml_parse
from tests.conftest import ROLES

from control_plane.ops.migrations import migrate, read_migrations
from control_plane.platform.conninfo import database_url
from control_plane.platform.database import SCHEMA_VERSION, check_schema, connect
from control_plane.platform.settings import DatabaseSettings
from local_cloud.postgres import PostgresServer

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")
TEMPLATE: dict[str, Any] = yaml_parse((ROOT / "template.yaml").read_text(encoding="utf-8"))
SAM = {
    "build": sam_build,
    "deploy": sam_deploy,
    "delete": sam_delete,
    "list stack-outputs": sam_list_stack_outputs,
    "logs": sam_logs,
    "remote invoke": sam_remote_invoke,
}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def commands() -> Iterator[list[str]]:
    for block in blocks("sh"):
        for line in block.replace("\\\n", " ").splitlines():
            yield shlex.split(line)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    """A server with a master user like RDS's, who is no superuser."""
    with PostgresServer(tmp_path_factory.mktemp("master") / "data", password="super", fsync=False) as server:
        with psycopg.connect(server.url(), autocommit=True) as connection:
            connection.execute("CREATE ROLE master LOGIN CREATEDB CREATEROLE PASSWORD 'master'")
            connection.execute("GRANT pg_read_all_stats TO master WITH ADMIN OPTION")
        with psycopg.connect(server.url("master", "postgres", "master"), autocommit=True) as connection:
            block = blocks("sql")[0]
            for statement in re.sub("--.*", "", block).split(";"):
                if statement.strip():
                    connection.execute(statement.encode())
        yield server


def secrets() -> Iterator[str]:
    for words in commands():
        if words[:3] == ["aws", "secretsmanager", "create-secret"]:
            text = words[words.index("--secret-string") + 1]
            if "acp_" in text:
                yield text


def test_the_pages_secrets_open_the_roles_its_sql_makes(server: PostgresServer) -> None:
    urls = {}
    for text in secrets():
        fields = conninfo_to_dict(database_url(DatabaseSettings(None, "arn"), {"arn": text}.__getitem__))
        assert fields["dbname"] == "control_plane"
        urls[fields["user"]] = server.url(str(fields["user"]), str(fields["dbname"]), str(fields["password"]))
    assert urls.keys() == {"acp_owner", *ROLES}
    with connect(urls["acp_owner"], application_name="test") as owner:
        assert migrate(owner, read_migrations(ROOT / "db" / "migrations")).version == SCHEMA_VERSION
    for role in urls.keys() - {"acp_owner"}:
        with connect(urls[role], application_name="test") as connection:
            check_schema(connection)
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute("DELETE FROM events")


def test_the_pages_sql_undoes_what_a_role_set_itself(server: PostgresServer) -> None:
    with psycopg.connect(server.url("acp_relay", "postgres", "a third password"), autocommit=True) as relay:
        relay.execute("ALTER ROLE CURRENT_USER SET work_mem = '64kB'")
    look, undo = (statement for statement in blocks("sql")[1].split(";") if statement.strip())
    with psycopg.connect(server.url("master", "postgres", "master"), autocommit=True) as master:
        assert master.execute(look.encode()).fetchall() == [("acp_relay", 0, ["work_mem=64kB"])]
        master.execute(undo.encode())
        assert master.execute(look.encode()).fetchall() == []


def test_the_pages_sam_commands_exist_with_options_and_parameters() -> None:
    checked = set()
    for words in commands():
        if words[0] != "sam":
            continue
        name = next(name for name in SAM if words[1:][: len(name.split())] == name.split())
        options = {option for parameter in SAM[name].params for option in parameter.opts}
        for word in words:
            if word.startswith("--"):
                assert word in options, f"sam {name} {word}"
            elif re.match(r"\w+=", word):
                assert word.partition("=")[0] in TEMPLATE["Parameters"], word
            elif word.endswith("Function"):
                assert word in TEMPLATE["Resources"], word
        checked.add(name)
    assert checked == SAM.keys()


def test_the_page_s_aws_commands_exist_with_their_options() -> None:
    session = botocore.session.get_session()
    checked = 0
    for words in commands():
        if words[0] != "aws":
            continue
        model = session.get_service_model(words[1])
        operation = model.operation_model(
            next(name for name in model.operation_names if xform_name(name, "-") == words[2])
        )
        assert operation.input_shape is not None
        options = {f"--{xform_name(member, '-')}" for member in operation.input_shape.members}
        # The AWS CLI has another name for this service than boto3.
        options |= {"--notification-endpoint"} if words[1:3] == ["sns", "subscribe"] else set()
        assert {word for word in words if word.startswith("--")} <= options
        checked += 1
    assert checked == 16


def test_every_command_of_the_page_is_checked_here() -> None:
    assert {words[0] for words in commands()} == {"sam", "aws"}


def test_samconfig_and_the_page_name_the_same_stack() -> None:
    config = tomllib.loads((ROOT / "samconfig.toml").read_text(encoding="utf-8"))["cloud"]
    name = config["deploy"]["parameters"]["stack_name"]
    assert config["global"]["parameters"]["stack_name"] == name
    assert f"--stack-name {name}\n" in PAGE


def test_the_pages_links_lead_somewhere() -> None:
    for path in re.findall(r"\]\((?!http)([^)#]+)", PAGE):
        assert (ROOT / "docs" / path).exists(), path
    for path in re.findall(r"`(scripts/[^` ]+)`", PAGE):
        assert (ROOT / path).exists(), path
    for name in re.findall(r"\b([A-Z]\w+(?:Function|Alarm))\b", PAGE):
        assert name in TEMPLATE["Resources"], name


def test_the_page_says_how_an_alarm_reaches_somebody() -> None:
    used = [words[1:3] for words in commands() if words[0] == "aws"]
    assert [words for words in used if words[0] == "sns"] == [["sns", "create-topic"], ["sns", "subscribe"]]
    assert any("AlarmTopicArn=" in word for words in commands() for word in words if words[0] == "sam")


def test_every_tool_of_the_page_is_named_as_needed() -> None:
    needed = PAGE.partition("## What you need")[2].partition("\n#")[0]
    for tool, name in {"aws": "[AWS CLI]", "sam": "[SAM CLI]"}.items():
        assert name in needed, tool
    assert "version 2" in needed


def test_the_pages_table_lists_every_parameter_of_the_template() -> None:
    rows = {name: cells for name, *cells in re.findall(r"^\| (\w+) \| (.*?) \| (.*?) \| (.*?) \|$", PAGE, re.MULTILINE)}
    for name, parameter in TEMPLATE["Parameters"].items():
        default, allowed, meaning = rows[name]
        assert default == ("**must be given**" if "Default" not in parameter else f"`{parameter['Default']}`") or (
            parameter["Default"] == "" and default == "empty"
        )
        assert all(value in allowed for value in parameter.get("AllowedValues", []))
        assert meaning == " ".join(parameter["Description"].split())


def test_the_page_ends_with_a_checklist() -> None:
    last = PAGE.rpartition("\n## ")[2]
    assert last.startswith("Checklist\n")
    assert last.count("- [ ] ") >= 10


def test_the_sums_are_right() -> None:
    [block] = blocks("python")
    names: dict[str, Any] = {}
    exec(block, names)
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in re.findall(r"^\|.*\|$", PAGE, re.MULTILINE)]
    for side, items in ((0, names["at_rest"]), (3, names["per_million"])):
        said = {row[side]: row[side + 1] for row in rows if len(row) == 5 and row[side]}
        for name, dollars in items.items():
            assert said[name] == f"{dollars:.2f}", name
        assert said["**together**"] == f"**{sum(items.values()):.2f}**"
    lingering = 730 * 3600 * names["GB"] * names["GB_SECOND"]
    assert f"or ${lingering:.2f}," in PAGE


def test_the_sums_and_the_connections_count_what_the_template_has() -> None:
    resources: dict[str, Any] = TEMPLATE["Resources"]
    alarms = [
        name
        for name, resource in resources.items()
        if resource["Type"] == "AWS::CloudWatch::Alarm" and "Condition" not in resource
    ]
    secrets = [name for name in TEMPLATE["Parameters"] if name.endswith("SecretArn") and name != "TracesSecretArn"]
    assert f'"{len(alarms)} alarms": {len(alarms)} * ALARM' in PAGE
    assert f'"{len(secrets)} secrets": {len(secrets)} * SECRET' in PAGE
    most_consumers = re.search(r"SignalLab has at most (\d+) environments", " ".join(PAGE.split()))
    [trigger] = resources["SignalLabFunction"]["Properties"]["Events"].values()
    assert most_consumers
    assert trigger["Properties"]["ScalingConfig"]["MaximumConcurrency"] == int(most_consumers[1])
    api = resources["OpsApiFunction"]["Properties"]["ReservedConcurrentExecutions"]["Fn::If"][1]
    assert f"at most {api}, so {2 * api} connections" in " ".join(PAGE.split())
