"""Clients for the local cloud; they can reach nothing else."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from botocore.exceptions import BotoCoreError, ClientError

from local_cloud.environ import LOCAL_AWS, REGION
from local_cloud.errors import AcpError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from boto3 import Session
    from botocore.config import Config
    from mypy_boto3_cloudformation import CloudFormationClient
    from mypy_boto3_events import EventBridgeClient
    from mypy_boto3_lambda import LambdaClient
    from mypy_boto3_logs import CloudWatchLogsClient
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_secretsmanager import SecretsManagerClient
    from mypy_boto3_sqs import SQSClient
    from mypy_boto3_sts import STSClient

AWS_ERRORS = (ClientError, BotoCoreError)


class InvocationError(AcpError):
    """Raised when a function raised, timed out or could not start. `details` is what it reported."""


@dataclass(frozen=True, slots=True)
class LocalCloud:
    """The clients for an endpoint such as http://localhost:4566."""

    endpoint: str

    @property
    def events(self) -> EventBridgeClient:
        """The client for EventBridge's rules."""
        return self._session.client("events", endpoint_url=self.endpoint, config=_config())

    @property
    def cloudformation(self) -> CloudFormationClient:
        """The client for stacks."""
        return self._session.client("cloudformation", endpoint_url=self.endpoint, config=_config())

    @property
    def functions(self) -> LambdaClient:
        """The client for functions; it waits as long as a function may run."""
        return self._session.client("lambda", endpoint_url=self.endpoint, config=_config())

    @property
    def logs(self) -> CloudWatchLogsClient:
        """The client for logs."""
        return self._session.client("logs", endpoint_url=self.endpoint, config=_config())

    @property
    def queues(self) -> SQSClient:
        """The client for queues."""
        return self._session.client("sqs", endpoint_url=self.endpoint, config=_config())

    @property
    def buckets(self) -> S3Client:
        """The client for S3 buckets."""
        return self._session.client("s3", endpoint_url=self.endpoint, config=_config())

    @property
    def secrets(self) -> SecretsManagerClient:
        """The client for secrets."""
        return self._session.client("secretsmanager", endpoint_url=self.endpoint, config=_config())

    @property
    def identity(self) -> STSClient:
        """The client that asks who we are. It shows whether the cloud answers at all, so it does not wait for long."""
        return self._session.client("sts", endpoint_url=self.endpoint, config=_config(read_timeout=10))

    @property
    def _session(self) -> Session:
        # boto3 is imported here because that takes half a second, which other commands need not spend.
        import boto3  # noqa: PLC0415

        return boto3.Session(
            aws_access_key_id=LOCAL_AWS["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=LOCAL_AWS["AWS_SECRET_ACCESS_KEY"],
            region_name=REGION,
        )

    def stack_id(self, name: str) -> str | None:
        """Returns the id of the stack of that name, or None if there is none."""
        try:
            stacks = self.cloudformation.describe_stacks(StackName=name)["Stacks"]
        except ClientError as error:
            # CloudFormation has no separate error for a missing stack.
            if error.response["Error"]["Code"] == "ValidationError" and "does not exist" in str(error):
                return None
            raise
        return stacks[0]["StackId"] if stacks and stacks[0]["StackStatus"] != "DELETE_COMPLETE" else None

    def put_secret(self, name: str, value: str) -> str:
        """Creates or replaces a secret. Returns its ARN."""
        secrets = self.secrets
        try:
            return secrets.create_secret(Name=name, SecretString=value)["ARN"]
        except secrets.exceptions.ResourceExistsException:
            return secrets.put_secret_value(SecretId=name, SecretString=value)["ARN"]

    def invoke(self, function: str, event: Mapping[str, Any]) -> Any:
        """Runs a function and waits for its result. Raises InvocationError if it failed."""
        response = self.functions.invoke(FunctionName=function, Payload=json.dumps(event).encode())
        result = json.loads(response["Payload"].read() or b"null")
        if "FunctionError" in response:
            error = result if isinstance(result, dict) else {"errorMessage": str(result)}
            msg = f"{function} failed: {error.get('errorMessage') or 'no reason given'}"
            raise InvocationError(msg, remedy="More: scripts/acp logs " + function)
        return result


@cache
def _config(read_timeout: float = 900) -> Config:
    from botocore.config import Config  # noqa: PLC0415  it imports most of what boto3 does

    return Config(
        # An empty mapping and not None, because None would use the user's proxy.
        proxies={},
        connect_timeout=5,
        read_timeout=read_timeout,
        # A repeated invocation would run the function twice.
        retries={"total_max_attempts": 1},
    )
