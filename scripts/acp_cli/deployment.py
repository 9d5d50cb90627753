"""Deploys the built template on the local cloud with SAM, and reads back what was made."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from samcli.yamlhelper import yaml_parse

from acp_cli import tools
from acp_cli.build import digest
from acp_cli.environ import REGION
from acp_cli.errors import AcpError
from acp_cli.run_state import Deployment

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from acp_cli.aws import LocalCloud
    from acp_cli.workspace import Workspace

STACK = "ai-control-plane"
_DELETE_SECONDS = 120
_BUCKET = "ai-control-plane-deployments"
"""As in samconfig.toml; SAM's own would cost fifteen seconds of waiting for a stack that holds it."""


def deploy(
    workspace: Workspace,
    cloud: LocalCloud,
    template: Path,
    parameters: Mapping[str, str],
    *,
    localstack: str,
    previous: Deployment | None,
) -> tuple[Deployment, str]:
    """Bring the stack to what was built. Returns it, and in a few words what that took.

    `parameters` that the template does not declare are left out. `localstack` names the running LocalStack.
    """
    declared = yaml_parse(template.read_text(encoding="utf-8")).get("Parameters", {})
    overrides = {name: value for name, value in parameters.items() if name in declared}
    template_digest = hashlib.sha256(
        (template.read_text(encoding="utf-8") + json.dumps(overrides, sort_keys=True)).encode()
    ).hexdigest()
    code_digest = digest([template.parent, *sorted(workspace.layers.glob("*.zip.stamp"))])
    there = previous if previous is not None and previous.localstack == localstack else None
    if there is not None and (there.template, there.code) == (template_digest, code_digest):
        return there, "nothing has changed"
    if there is None or there.template != template_digest:
        # LocalStack ignores changes of rules and event source mappings: only a new stack is sure to have them.
        _delete_stack(cloud)
    cloud.buckets.create_bucket(Bucket=_BUCKET)
    tools.sam(
        workspace,
        [
            "deploy",
            "--config-env=local",
            f"--config-file={workspace.checkout / 'samconfig.toml'}",
            f"--template-file={template}",
            f"--stack-name={STACK}",
            f"--region={REGION}",
            "--no-confirm-changeset",
            "--no-fail-on-empty-changeset",
            "--no-progressbar",
            "--parameter-overrides",
            *(f"{name}={json.dumps(value)}" for name, value in overrides.items()),
        ],
        log="sam deploy",
        extra_environ={"AWS_ENDPOINT_URL": cloud.endpoint},
    )
    outputs = _outputs(cloud)
    deployment = Deployment(
        localstack=localstack,
        template=template_digest,
        code=code_digest,
        outputs=outputs,
        environ=_function_environ(cloud, outputs),
    )
    return deployment, "new stack" if there is None else "updated" if there.template == template_digest else "new again"


def _delete_stack(cloud: LocalCloud) -> None:
    cloud.cloudformation.delete_stack(StackName=STACK)
    cloud.cloudformation.get_waiter("stack_delete_complete").wait(
        StackName=STACK, WaiterConfig={"Delay": 1, "MaxAttempts": _DELETE_SECONDS}
    )


def _outputs(cloud: LocalCloud) -> dict[str, str]:
    stack = cloud.cloudformation.describe_stacks(StackName=STACK)["Stacks"][0]
    if stack["StackStatus"] not in {"CREATE_COMPLETE", "UPDATE_COMPLETE"}:
        msg = f"The stack {STACK} ended as {stack['StackStatus']}: {stack.get('StackStatusReason', 'no reason given')}"
        raise AcpError(msg)
    outputs = {output["OutputKey"]: output["OutputValue"] for output in stack.get("Outputs", [])}
    if "ApiUrl" in outputs:
        outputs["ApiUrl"] = reachable_api_url(outputs["ApiUrl"], cloud.endpoint)
    return outputs


def reachable_api_url(declared: str, endpoint: str) -> str:
    """The API where the local cloud serves it; the template's output names a host of AWS's, with its id and stage."""
    url = urlsplit(declared)
    api_id = (url.hostname or "").partition(".")[0]
    return f"{endpoint}/_aws/execute-api/{api_id}{url.path}"


def _function_environ(cloud: LocalCloud, outputs: Mapping[str, str]) -> dict[str, str]:
    """The variables of all functions; what two of them see differently (a service's name) belongs to neither."""
    merged: dict[str, str] = {}
    disputed = set()
    for output, name in outputs.items():
        if output.endswith("FunctionName"):
            configuration = cloud.functions.get_function_configuration(FunctionName=name)
            for variable, value in configuration.get("Environment", {}).get("Variables", {}).items():
                if merged.setdefault(variable, value) != value:
                    disputed.add(variable)
    return {variable: value for variable, value in merged.items() if variable not in disputed and value}
