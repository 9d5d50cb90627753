"""Deploys the built template on the local cloud with SAM, and reads back what was made."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from typing import TYPE_CHECKING

from local_cloud import queues, schedules, tools
from local_cloud.aws import AWS_ERRORS
from local_cloud.build import digest
from local_cloud.containers import SECRET_COPY
from local_cloud.environ import REGION, without_proxy
from local_cloud.errors import AcpError
from local_cloud.roles import SECRETS
from local_cloud.run_state import Deployment
from local_cloud.template import read_template

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from local_cloud.aws import LocalCloud
    from local_cloud.emulators.emulator import Emulator
    from local_cloud.workspace import Workspace

_DELETE_SECONDS = 120
_SECRETS = {
    **{parameter: f"database-{role.removeprefix('acp_')}" for parameter, role in SECRETS.items()},
    "ApiTokenSecretArn": "api-token",
}
"""The last part of each secret's name, by the template's parameter."""


def put_secrets(cloud: LocalCloud, stack: str, values: Mapping[str, str]) -> dict[str, str]:
    """Stores the secrets of a stack. Takes their values and returns their ARNs, by the template's parameter."""
    return {name: cloud.put_secret(f"{stack}/{_SECRETS[name]}", value) for name, value in values.items()}


def deploy(
    workspace: Workspace,
    cloud: LocalCloud,
    emulator: Emulator,
    template: Path,
    parameters: Mapping[str, str],
    *,
    stack: str,
    previous: Deployment | None,
    promise_lost: Callable[[], int],
) -> tuple[Deployment, str]:
    """Updates the stack to what was built. Returns the deployment, and a few words on what that took.

    `parameters` that the template does not declare are left out. `promise_lost` is called where the queues are new: it
    has what the old ones held delivered again, and returns how many messages that are.
    """
    source = read_template(template)
    declared = source.get("Parameters", {})
    overrides = {name: value for name, value in parameters.items() if name in declared}
    template_digest = hashlib.sha256(
        (template.read_text(encoding="utf-8") + json.dumps(overrides, sort_keys=True)).encode()
    ).hexdigest()
    code_digest = digest([template.parent, *sorted(workspace.layers.glob("*.zip.stamp"))])
    holder = emulator.holder(cloud.endpoint, stack)
    there = previous if previous is not None and previous.held_by == holder else None
    if there is not None and (there.template, there.code) == (template_digest, code_digest):
        return there, "nothing has changed"
    gaps = schedules.update_gaps(source, overrides) if emulator.ignores_changed_rules else None
    if there is None:
        lost = lost_with_queues(cloud, _outputs_of_what_is_left(cloud, stack))
        what = f"new stack{lost and f'; {lost}'}"
    elif gaps is None or there.never_updated == gaps.others:
        what = "updated"
    else:
        lost = lost_with_queues(cloud, there.outputs)
        what = f"new again, as {emulator.title} {emulator.ignores_changes}{lost and f'; {lost}'}"
    is_update = what == "updated"
    if not is_update:
        # This also deletes what an interrupted deployment has left.
        _delete_stack(cloud, stack)
        # While nobody delivers or consumes: what is delivered now was delivered to queues that are gone.
        if promised := promise_lost():
            what += f"; {promised} that no consumer had processed will be delivered again"
    cloud.buckets.create_bucket(Bucket=_bucket(stack))
    tools.sam(
        workspace,
        [
            "deploy",
            "--config-env=local",
            f"--config-file={workspace.checkout / 'samconfig.toml'}",
            f"--template-file={template}",
            f"--stack-name={stack}",
            f"--s3-bucket={_bucket(stack)}",
            f"--region={REGION}",
            "--no-confirm-changeset",
            "--no-fail-on-empty-changeset",
            "--no-progressbar",
            "--parameter-overrides",
            *(f"{name}={json.dumps(value)}" for name, value in overrides.items()),
        ],
        log="sam deploy",
        extra_environ={"AWS_ENDPOINT_URL": cloud.endpoint, **without_proxy(os.environ, cloud.endpoint)},
    )
    outputs = _outputs(cloud, emulator, stack)
    if is_update and gaps is not None and (changed := schedules.bring_up_to_date(cloud, stack, gaps.schedules)):
        what = f"updated, with {changed} {'schedule' if changed == 1 else 'schedules'} made anew"
    held_by = emulator.holder(cloud.endpoint, stack)
    if held_by is None:
        msg = f"{emulator.title} has ended."
        raise AcpError(msg, details=emulator.log_tail(), remedy="Try again: scripts/acp up")
    deployment = Deployment(
        held_by=held_by,
        template=template_digest,
        code=code_digest,
        outputs=outputs,
        environ=_function_environ(cloud, outputs),
        never_updated="" if gaps is None else gaps.others,
    )
    return deployment, what


def lost_with_queues(cloud: LocalCloud, outputs: Mapping[str, str]) -> str:
    """Returns what the queues of a stack that is about to be deleted hold; empty if nothing."""
    try:
        depths = queues.queue_depths(cloud, outputs)
    except AWS_ERRORS as error:
        return f"what its queues held is not known: {error}"
    waiting = sum(depth.visible + depth.in_flight for depth in depths)
    return f"{waiting} messages that waited in its queues go with it" if waiting else ""


def _outputs_of_what_is_left(cloud: LocalCloud, stack: str) -> dict[str, str]:
    """Returns the outputs of a stack that an interrupted deployment has left; empty if there is none."""
    try:
        left = cloud.cloudformation.describe_stacks(StackName=stack)["Stacks"]
    except AWS_ERRORS:
        return {}  # CloudFormation reports a missing stack like this.
    there = [each for each in left if each["StackStatus"] != "DELETE_COMPLETE"]
    return {output["OutputKey"]: output["OutputValue"] for each in there for output in each.get("Outputs", [])}


def remove(cloud: LocalCloud, stack: str) -> None:
    """Deletes the stack, its secrets and the bucket it was deployed from; some of it may be gone already."""
    _delete_stack(cloud, stack)
    secrets = cloud.secrets  # One client throughout, because each client has exception classes of its own.
    for name in _SECRETS.values():
        for secret in (f"{stack}/{name}", f"{stack}/{name}{SECRET_COPY}"):
            with contextlib.suppress(secrets.exceptions.ResourceNotFoundException):
                secrets.delete_secret(SecretId=secret, ForceDeleteWithoutRecovery=True)
    buckets, bucket = cloud.buckets, _bucket(stack)
    with contextlib.suppress(buckets.exceptions.NoSuchBucket):
        for page in buckets.get_paginator("list_objects_v2").paginate(Bucket=bucket):
            for item in page.get("Contents", []):
                buckets.delete_object(Bucket=bucket, Key=item["Key"])
        buckets.delete_bucket(Bucket=bucket)
    # A function that was running writes its last lines after its log group is deleted, and so makes it again.
    prefix = f"/aws/lambda/{stack}-"
    for group in cloud.logs.describe_log_groups(logGroupNamePrefix=prefix)["logGroups"]:
        # A function's name is <logical id>-<suffix>; more parts belong to a stack whose name merely begins with this
        # one's.
        if group["logGroupName"].removeprefix(prefix).count("-") == 1:
            cloud.logs.delete_log_group(logGroupName=group["logGroupName"])


def _bucket(stack: str) -> str:
    """Makes the bucket for the code. SAM's own bucket would cost fifteen seconds of waiting for its stack."""
    return f"{stack}-deployments"


def _delete_stack(cloud: LocalCloud, stack: str) -> None:
    cloud.cloudformation.delete_stack(StackName=stack)
    cloud.cloudformation.get_waiter("stack_delete_complete").wait(
        StackName=stack, WaiterConfig={"Delay": 1, "MaxAttempts": _DELETE_SECONDS}
    )


def _outputs(cloud: LocalCloud, emulator: Emulator, stack: str) -> dict[str, str]:
    """Returns the stack's outputs, with the API's address on the emulator instead of AWS's host in the template."""
    made = cloud.cloudformation.describe_stacks(StackName=stack)["Stacks"][0]
    if made["StackStatus"] not in {"CREATE_COMPLETE", "UPDATE_COMPLETE"}:
        msg = f"The stack {stack} ended as {made['StackStatus']}: {made.get('StackStatusReason', 'no reason given')}"
        raise AcpError(msg)
    outputs = {output["OutputKey"]: output["OutputValue"] for output in made.get("Outputs", [])}
    if "ApiUrl" in outputs:
        outputs["ApiUrl"] = emulator.api_url(cloud.endpoint, outputs["ApiUrl"])
    return outputs


def _function_environ(cloud: LocalCloud, outputs: Mapping[str, str]) -> dict[str, str]:
    """Returns the variables of all functions. A variable whose value differs between functions is left out."""
    merged: dict[str, str] = {}
    disputed = set()
    for output, name in outputs.items():
        if output.endswith("FunctionName"):
            configuration = cloud.functions.get_function_configuration(FunctionName=name)
            for variable, value in configuration.get("Environment", {}).get("Variables", {}).items():
                if merged.setdefault(variable, value) != value:
                    disputed.add(variable)
    return {variable: value for variable, value in merged.items() if variable not in disputed and value}
