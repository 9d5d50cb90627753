"""AWS clients of the functions."""

from typing import TYPE_CHECKING, Any, Final

import boto3
import botocore.session
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectTimeoutError,
    EndpointConnectionError,
    ReadTimeoutError,
)

from control_plane.model.errors import ControlPlaneError

if TYPE_CHECKING:
    from botocore.credentials import Credentials
    from mypy_boto3_sqs import SQSClient


_SECRET_REMEDIES: Final = {
    "ResourceNotFoundException": (
        "There is none of this name in this account and region: give the stack the ARN of one that is there, as "
        "…DatabaseSecretArn, DatabaseOwnerSecretArn or ApiTokenSecretArn"
    ),
    "AccessDeniedException": (
        "The function's role may read what the stack's parameter names: give the whole ARN, its last six characters "
        "included. A secret under a KMS key of your own needs the key's ARN, too, as SecretsKeyArn"
    ),
    "DecryptionFailure": (
        "The key that encrypts it must be enabled, and one of your own be named by the stack's parameter SecretsKeyArn"
    ),
    "InvalidRequestException": "Is it to be deleted? Restore it: aws secretsmanager restore-secret",
}


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
    """The text of a secret. Raises SecretUnavailable, within a quarter of a minute."""
    client: Any = boto3.client(
        "secretsmanager",
        endpoint_url=endpoint_url,
        config=Config(connect_timeout=2, read_timeout=5, retries={"mode": "standard", "total_max_attempts": 2}),
    )
    try:
        answer = client.get_secret_value(SecretId=arn)
    except ClientError as error:
        said = error.response.get("Error", {})
        remedy = _SECRET_REMEDIES.get(said.get("Code", ""))
        raise SecretUnavailable(f"the secret {arn} cannot be read: {error}{f'. {remedy}' if remedy else ''}") from error
    except (ConnectTimeoutError, EndpointConnectionError, ReadTimeoutError) as error:
        raise SecretUnavailable(f"the secret {arn} cannot be read: {error}. {vpc_hint('secretsmanager')}") from error
    except BotoCoreError as error:
        raise SecretUnavailable(f"the secret {arn} cannot be read: {error}") from error
    finally:
        client.close()
    text = answer.get("SecretString")
    if not text:
        raise SecretUnavailable(f"the secret {arn} holds no text: store one as its SecretString")
    return str(text)


def vpc_hint(service: str) -> str:
    """Why AWS itself cannot be reached: nearly always this."""
    return (
        f"A function in a VPC needs an interface endpoint for {service} there, whose security group lets it in on port "
        "443, or a NAT gateway; a public subnet is not enough"
    )
