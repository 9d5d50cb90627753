"""Sends spans to an OTLP receiver over HTTP: bounded in time, and never taken for accepted without its word."""

import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from botocore.awsrequest import AWSPreparedRequest
from botocore.compat import HTTPHeaders

from control_plane.model.errors import ControlPlaneError
from control_plane.model.text import readable
from control_plane.platform.aws import send_bounded
from control_plane.platform.connections import UnreadableError
from control_plane.tracing.protobuf import NotAnOtlpAnswer, as_protobuf, read_rejected
from control_plane.tracing.spans import Span

SEND_SECONDS: Final = 10.0
"""How long one request may take."""
TRIES: Final = 3
"""How often one request is sent in a run; the next run begins with it again."""
WAIT_SECONDS: Final = 1.0
"""The wait before a second try; it doubles."""

_TRANSIENT: Final = frozenset({429, 500, 502, 503, 504})
_NOT_THIS: Final = frozenset({400, 413, 422})
_REMEDIES: Final = {
    401: "Check the secret TracesSecretArn",
    403: "Check the secret TracesSecretArn",
    404: "Check TracesEndpoint: it is the whole URL, which mostly ends with /v1/traces",
    405: "Check TracesEndpoint: it is the whole URL, which mostly ends with /v1/traces",
}
_NAME: Final = re.compile(r"[A-Za-z0-9-]+")
_VALUE: Final = re.compile(r"[\x20-\x7e]*")


class ReceiverUnavailable(ControlPlaneError):
    """Raised when the receiver has not accepted spans, which says nothing against the spans."""

    def __init__(self, reason: str, *, status: int | None = None) -> None:
        self.status = status
        super().__init__(f"the receiver of traces has not accepted them: {reason}")


class SpansRefused(ReceiverUnavailable):
    """Raised when the receiver does not take this request, because of its size or of what is in it."""


class BadHeaders(ControlPlaneError):
    """Raised when the secret of the receiver's headers holds something else; names the secret, never its value."""

    def __init__(self, origin: str) -> None:
        super().__init__(
            f"{origin} holds no headers: it must be a JSON object of names and values, such as "
            '{"Authorization": "Bearer …"}, of printable ASCII'
        )


def parse_headers(text: str, *, origin: str) -> Mapping[str, str]:
    """Returns the headers that a secret holds; ``origin`` says where the text is from. Raises BadHeaders."""
    try:
        headers = json.loads(text)
    except ValueError:
        raise BadHeaders(origin) from None
    if not isinstance(headers, dict) or not all(
        _NAME.fullmatch(name) and isinstance(value, str) and _VALUE.fullmatch(value) for name, value in headers.items()
    ):
        raise BadHeaders(origin)
    return headers


class Receiver:
    """One OTLP receiver."""

    def __init__(
        self,
        url: str,
        headers: Callable[[], Mapping[str, str]],
        *,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """``url`` is the whole URL of its traces; ``headers`` are added to every request."""
        self._url = url
        self._headers = headers
        self._monotonic = monotonic
        self._sleep = sleep

    def send(self, spans: Sequence[Span], *, ends: float) -> tuple[int, str]:
        """Sends the spans; returns how many the receiver will not keep, and why.

        A request that failed for a while is tried again, as long as it can end by ``ends``, an instant of
        ``time.monotonic()``. Raises ReceiverUnavailable and SpansRefused.
        """
        body = as_protobuf(spans)
        for tried in range(1, TRIES + 1):
            wait = WAIT_SECONDS * 2 ** (tried - 1)
            try:
                return self._try(body, ends=min(ends, self._monotonic() + SEND_SECONDS))
            except ReceiverUnavailable as error:
                is_transient = error.status is None or error.status in _TRANSIENT
                if not is_transient or tried == TRIES or self._monotonic() + wait >= ends:
                    raise
            self._sleep(wait)
        raise AssertionError("the last try returns or raises")

    def _try(self, body: bytes, *, ends: float) -> tuple[int, str]:
        headers = {
            **self._headers(),
            "Content-Type": "application/x-protobuf",
            "User-Agent": "ai-control-plane",
        }
        request = AWSPreparedRequest("POST", self._url, HTTPHeaders.from_pairs(headers.items()), body, False)
        try:
            answer = send_bounded(request, service="traces", ends=ends)
        except (OSError, UnreadableError) as error:
            raise ReceiverUnavailable(readable(str(error) or type(error).__name__)) from error
        status, content = answer.status_code, answer.content
        if status == 200:
            try:
                return read_rejected(content)
            except NotAnOtlpAnswer as error:
                raise ReceiverUnavailable(
                    f"it answered 200, but not as an OTLP receiver does: {error}. Check TracesEndpoint", status=status
                ) from None
        said = readable(content[:200].decode("utf-8", "replace")).strip()
        remedy = f". {_REMEDIES[status]}" if status in _REMEDIES else ""
        kind = SpansRefused if status in _NOT_THIS else ReceiverUnavailable
        raise kind(f"it answered {status}{f': {said}' if said else ''}{remedy}", status=status)
