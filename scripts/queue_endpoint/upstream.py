"""The upstream: an emulator whose queues receive the entries that the endpoint accepts."""

import http.client
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from queue_endpoint import protocol

_TIMEOUT_SECONDS = 30
_HOP_BY_HOP = {b"host", b"content-length", b"connection", b"accept-encoding", b"transfer-encoding"}


class Sent(NamedTuple):
    """The result of a batch: the answer for the client, and the message ids of the accepted entries, by entry id."""

    answer: bytes
    message_ids: Mapping[str, str]


class Upstream:
    """An emulator that speaks SQS's JSON protocol, such as LocalStack. Requests keep the client's own headers.

    The client's signature is for this endpoint's address. An emulator does not check it; AWS would refuse it.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme != "http" or parts.hostname is None:
            raise ValueError(f"{url!r} is no http:// URL")
        self._host, self._port = parts.hostname, parts.port or 80

    def send(
        self, head: bytes, said: Mapping[str, Any], entries: Sequence[Mapping[str, Any]], failed: Sequence[Any]
    ) -> Sent:
        """Sends ``entries`` of the request ``said`` to the emulator, and adds ``failed`` to its answer.

        Raises OSError.
        """
        if not entries:
            return Sent(protocol.sent((), failed), {})
        connection = http.client.HTTPConnection(self._host, self._port, timeout=_TIMEOUT_SECONDS)
        try:
            body = json.dumps({**said, "Entries": list(entries)}).encode()
            connection.request("POST", "/", body=body, headers=_headers(head))
            response = connection.getresponse()
            answer = response.read()
        except http.client.HTTPException as error:
            raise OSError(f"{type(error).__name__}: {error}") from error
        finally:
            connection.close()
        if response.status != 200:
            code = response.getheader("x-amzn-query-error")
            return Sent(
                protocol.http(response.status, answer, headers=f"x-amzn-query-error: {code}\r\n" if code else ""), {}
            )
        content = json.loads(answer)
        content["Failed"] = [*content.get("Failed", ()), *failed]
        return Sent(
            protocol.http(200, json.dumps(content).encode()),
            {entry["Id"]: entry["MessageId"] for entry in content.get("Successful", ())},
        )


def _headers(head: bytes) -> dict[str, str]:
    headers = {}
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.strip().lower() not in _HOP_BY_HOP:
            headers[name.decode("latin-1").strip()] = value.decode("latin-1").strip()
    return headers
