"""A function sees what it would see in Lambda: boto3, its layers, its variables, and nothing of this machine's."""

import io
import json
import os
import textwrap
import zipfile
from collections.abc import Iterator
from typing import Any

import pytest
from tests.e2e.conftest import HOST_SECRET, LocalCloud, wait_for

APP = textwrap.dedent(
    """
    import importlib.util
    import os

    def handler(event, context):
        found = [name for name in event["modules"] if importlib.util.find_spec(name)]
        return {"found": found, "environ": dict(os.environ)}
    """
)
FOREIGN = [
    "acp_cli",
    "bench",
    "drills",
    "local_cloud",
    "control_plane",
    "localstack",
    "ministack",
    "moto",
    "psycopg",
    "pydantic",
    "pytest",
    "samcli",
]


@pytest.fixture(scope="module")
def answer(local_cloud: LocalCloud) -> Iterator[dict[str, Any]]:
    """Returns the answer of a function without layers."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("app.py", APP)
    functions, name = local_cloud.client("lambda"), "isolated"
    functions.create_function(
        FunctionName=name,
        Runtime="python3.13",
        Handler="app.handler",
        Role="arn:aws:iam::000000000000:role/any",
        Code={"ZipFile": buffer.getvalue()},
        Timeout=30,
    )
    try:
        wait_for(
            lambda: functions.get_function_configuration(FunctionName=name)["State"] == "Active",
            seconds=30,
            what="the function active",
        )
        result = functions.invoke(FunctionName=name, Payload=json.dumps({"modules": ["boto3", *FOREIGN]}).encode())
        yield json.loads(result["Payload"].read())
    finally:
        functions.delete_function(FunctionName=name)


def test_a_function_can_import_only_what_lambdas_runtime_holds(
    answer: dict[str, Any],
) -> None:
    assert answer["found"] == ["boto3"]


def test_a_function_does_not_see_host_variables_or_home(answer: dict[str, Any]) -> None:
    environ = answer["environ"]
    assert HOST_SECRET not in environ
    assert environ["HOME"] != os.environ["HOME"]
    assert not [name for name in environ if name.startswith(("UV_", "ACP_", "PYTHON", "LOCALSTACK_", "MINISTACK_"))]
    assert environ["AWS_ENDPOINT_URL"].startswith("http://127.0.0.1:")
