"""AWS clients of the functions."""

import os
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import boto3
import botocore.session
from botocore.awsrequest import AWSPreparedRequest, AWSResponse
from botocore.compat import HTTPHeaders
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, NoRegionError
from botocore.parsers import ResponseParserError

from control_plane.model.errors import ControlPlaneError
from control_plane.model.text import readable
from control_plane.platform.connections import Connections, UnreachableError

if TYPE_CHECKING:
    from botocore.credentials import Credentials
    from mypy_boto3_sqs import SQSClient


CONNECT_TIMEOUT_SECONDS: Final = 2.0
_START_TIMEOUT_SECONDS: Final = 5.0
_SECRET_REMEDIES: Final = {
    "ResourceNotFoundException": (
        "This account and region have no secret of this name: give the stack the ARN of an existing one, as "
        "…DatabaseSecretArn, DatabaseOwnerSecretArn or ApiTokenSecretArn"
    ),
    "AccessDeniedException": (
        "The function's role may only read the ARN in the stack's parameter: give the whole ARN, its last six "
        "characters included. A secret under a KMS key of your own needs the key's ARN, too, as SecretsKeyArn"
    ),
    "DecryptionFailure": (
        "The key that encrypts the secret must be enabled. If it is your own, name it in the parameter SecretsKeyArn"
    ),
    "InvalidRequestException": "It may be scheduled for deletion. Restore it: aws secretsmanager restore-secret",
}


class SecretUnavailable(ControlPlaneError):
    """Raised when a secret cannot be read; names it, never its value."""


class RunNotStarted(ControlPlaneError):
    """Raised when another function's run cannot be started; names the function and the cause."""


def start_run(function_name: str, *, endpoint_url: str | None) -> None:
    """Starts a run of another function, and does not wait for it. Raises RunNotStarted.

    It is asked for once: whoever asked decides whether to ask again.
    """
    try:
        client: Any = boto3.client(
            "lambda",
            endpoint_url=endpoint_url,
            config=Config(
                connect_timeout=CONNECT_TIMEOUT_SECONDS,
                read_timeout=_START_TIMEOUT_SECONDS,
                retries={"total_max_attempts": 1},
            ),
        )
        client.invoke(FunctionName=function_name, InvocationType="Event", Payload=b"{}")
    except (ClientError, BotoCoreError) as error:
        raise RunNotStarted(f"{function_name} cannot be started: {readable(str(error))}") from error


def sqs_client(
    endpoint_url: str | None, *, connect_timeout: float, read_timeout: float, connections: int
) -> "SQSClient":
    """Returns a client that sends once; its caller decides whether to send again, knowing what may be accepted."""
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
    """Returns SQS's URL and region, the credentials and the CA bundle, as botocore resolves them for a client."""
    session = botocore.session.get_session()
    client = session.create_client("sqs", endpoint_url=endpoint_url)
    return (
        client.meta.endpoint_url.rstrip("/") + "/",
        client.meta.region_name,
        session.get_credentials(),
        _ca_bundle(session),
    )


def read_secret(arn: str, *, endpoint_url: str | None, patience_seconds: float = 15.0) -> str:
    """Returns the text of a secret. Raises SecretUnavailable, within ``patience_seconds``, whatever the server does.

    botocore's own transport restarts its time-out with every byte and reads answers of any length, so ours replaces it.
    """
    try:
        client: Any = boto3.client(
            "secretsmanager",
            endpoint_url=endpoint_url,
            config=Config(retries={"mode": "standard", "total_max_attempts": 2}),
        )
        ends = time.monotonic() + patience_seconds
        client._endpoint.http_session = _Transport(ends)  # noqa: SLF001 - botocore has no public place for another
        answer = client.get_secret_value(SecretId=arn)
    except ClientError as error:
        said = error.response.get("Error", {})
        remedy = _SECRET_REMEDIES.get(said.get("Code", ""))
        reason = readable(str(error))
        raise SecretUnavailable(
            f"the secret {arn} cannot be read: {reason}{f'. {remedy}' if remedy else ''}"
        ) from error
    except UnreachableError as error:
        raise SecretUnavailable(f"the secret {arn} cannot be read: {readable(str(error))}") from error
    except NoRegionError as error:
        raise SecretUnavailable(f"the secret {arn} cannot be read: no region is known. Set AWS_REGION") from error
    except Exception as error:  # noqa: BLE001 - botocore's parsers and credential providers raise anything
        # Text that could not be parsed may hold the secret. So the error names its own kind, and neither its text nor
        # its cause.
        kind = type(error).__name__
        told = kind if isinstance(error, _UNREADABLE) else f"{kind}: {error}"
        raise SecretUnavailable(f"the secret {arn} cannot be read: {readable(told)}") from None
    text = answer.get("SecretString")
    if not isinstance(text, str) or not text:
        raise SecretUnavailable(f"the secret {arn} holds no text: store one as its SecretString")
    return text


_UNREADABLE: Final = (ResponseParserError, AttributeError, KeyError, TypeError, ValueError)


class _Transport:
    """Replaces botocore's URLLib3Session: every request ends by the instant ``ends``, and answers have a size limit."""

    def __init__(self, ends: float) -> None:
        self._ends = ends

    def send(self, request: AWSPreparedRequest) -> AWSResponse:
        """See :func:`send_bounded`."""
        return send_bounded(request, service="secretsmanager", ends=self._ends)

    def close(self) -> None:
        """Does nothing, because no connection is kept."""


def send_bounded(
    request: AWSPreparedRequest, *, service: str, ends: float, sending: Callable[[], None] = lambda: None
) -> AWSResponse:
    """Sends a request of botocore's, and returns the answer as botocore takes it.

    ``sending`` is called right before the first byte goes out. Raises OSError and UnreadableError, by the instant
    ``ends`` of ``time.monotonic()``.
    """
    remaining = ends - time.monotonic()
    if remaining <= 0:
        raise TimeoutError("there was no answer in time")
    session = botocore.session.get_session()
    connections = Connections(
        request.url,
        service=service,
        ca_bundle=_ca_bundle(session),
        connect_timeout=min(CONNECT_TIMEOUT_SECONDS, remaining),
    )
    parts = urlsplit(request.url)
    body = request.body if isinstance(request.body, bytes) else str(request.body or "").encode()
    ours = {"Host": parts.netloc.rpartition("@")[2], "Accept-Encoding": "identity", "Connection": "close"}
    ours |= {"Content-Length": str(len(body)), **connections.added_headers}
    replaced = {name.lower() for name in ours}  # awscrt's signer writes a host of its own
    headers = {
        name: value.decode() if isinstance(value, bytes) else value
        for name, value in request.headers.items()
        if name.lower() not in replaced
    } | ours
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    head = f"{request.method} {connections.target_prefix}{parts.path or '/'} HTTP/1.1\r\n{lines}\r\n"
    connection = connections.take()
    sending()
    answer = connections.exchange(connection, head.encode("latin-1") + body, ends=ends)
    return AWSResponse(request.url, answer.status, HTTPHeaders.from_dict(answer.headers), _Body(answer.body))


class _Body:
    """An answer's body with the methods that botocore calls."""

    def __init__(self, body: bytes) -> None:
        self._body = body

    def stream(self, **_: Any) -> Iterator[bytes]:
        """Yields the whole body."""
        yield self._body


def ca_bundle() -> str | None:
    """The certificate authorities that the environment names beside the usual ones."""
    return _ca_bundle(botocore.session.get_session())


def _ca_bundle(session: botocore.session.Session) -> str | None:
    """Returns the CA bundle that botocore's clients use.

    It is AWS_CA_BUNDLE or the profile's, else the one that requests uses.
    """
    return session.get_config_variable("ca_bundle") or os.environ.get("REQUESTS_CA_BUNDLE") or None
