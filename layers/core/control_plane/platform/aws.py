"""AWS clients of the functions."""

from typing import TYPE_CHECKING, Any

import boto3
import botocore.session
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from control_plane.domain.errors import ControlPlaneError

if TYPE_CHECKING:
    from botocore.credentials import Credentials
    from mypy_boto3_sqs import SQSClient


class SecretUnavailable(ControlPlaneError):
    """Raised when a secret cannot be read; names it, never its value."""


def sqs_client(
    endpoint_url: str | None, *, connect_timeout: float, read_timeout: float, connections: int
) -> "SQSClient":
    """A client that sends once: whether to send again is decided where it is known what may have been accepted."""
    return boto3.client(
        "sqs",
        endpoint_url=endpoint_url,
        config=Config(
            connect_timeout=connect_timeout,
            read_timeout=read_timeout,
            retries={"total_max_attempts": 1},
            max_pool_connections=connections,
        ),
    )


def find_sqs(endpoint_url: str | None) -> tuple[str, str, "Credentials | None", str | None]:
    """SQS's URL and region, the credentials and the CA bundle, as botocore resolves them for a client."""
    session = botocore.session.get_session()
    client = session.create_client("sqs", endpoint_url=endpoint_url)
    return (
        client.meta.endpoint_url.rstrip("/") + "/",
        client.meta.region_name,
        session.get_credentials(),
        session.get_config_variable("ca_bundle"),
    )


def read_secret(arn: str, *, endpoint_url: str | None) -> str:
    """The text of a secret. Raises SecretUnavailable."""
    client: Any = boto3.client(
        "secretsmanager",
        endpoint_url=endpoint_url,
        config=Config(connect_timeout=2, read_timeout=5, retries={"mode": "standard", "total_max_attempts": 3}),
    )
    try:
        answer = client.get_secret_value(SecretId=arn)
    except (ClientError, BotoCoreError) as error:
        raise SecretUnavailable(f"the secret {arn} cannot be read: {error}") from error
    text = answer.get("SecretString")
    if not text:
        raise SecretUnavailable(f"the secret {arn} holds no text: store one as its SecretString")
    return str(text)
