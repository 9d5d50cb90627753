"""No secret is in a deployed function's environment or log, or in the stack itself, in clear."""

import json
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from tests.e2e.conftest import LocalCloud, wait_for
from tests.template import FUNCTIONS


def passwords(cloud: LocalCloud) -> set[str]:
    manager = cloud.client("secretsmanager")
    texts = {
        manager.get_secret_value(SecretId=secret["ARN"])["SecretString"]
        for secret in manager.list_secrets()["SecretList"]
    }
    # Returns the secret part of a secret's text: a database URL's password, or the whole text.
    return {urlsplit(text).password or text for text in texts}


def lines_of(logs: Any, group: str) -> list[str]:
    pages = logs.get_paginator("filter_log_events").paginate(logGroupName=group)
    return [event["message"] for page in pages for event in page["events"]]


def test_no_secret_is_in_environment_log_or_stack(local_cloud: LocalCloud) -> None:
    secrets = passwords(local_cloud)
    assert len(secrets) >= 1
    assert all(len(secret) >= 8 for secret in secrets)
    functions, logs = local_cloud.client("lambda"), local_cloud.client("logs")
    for function in FUNCTIONS:
        # Each function has logged something: what it did, or why it could not.
        local_cloud.invoke(function, {})
        name = local_cloud.output(f"{function}Name")
        environment = json.dumps(functions.get_function_configuration(FunctionName=name)["Environment"])
        assert "_SECRET_ARN" in environment
        lines = wait_for(partial(lines_of, logs, f"/aws/lambda/{name}"), seconds=30, what=f"a log of {name}")
        for text in (environment, *lines):
            assert not [secret for secret in secrets if secret in text], (function, text)
    cloudformation = local_cloud.client("cloudformation")
    # An emulator also lists deleted stacks, which have no template any more.
    stacks = [
        stack for stack in cloudformation.describe_stacks()["Stacks"] if not stack["StackStatus"].startswith("DELETE")
    ]
    assert stacks
    templates = [cloudformation.get_template(StackName=stack["StackName"]) for stack in stacks]
    described = json.dumps([stacks, templates], default=str)
    assert not [secret for secret in secrets if secret in described]
