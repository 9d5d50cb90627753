"""Signs the one request that is sent to SQS, with AWS's Signature Version 4.

botocore's signer analyses the whole request again each time. Here only the body, the time and the credentials differ
between requests. Source: AWS, *Create a signed AWS API request*. A test compares the result with botocore's.
"""

import hashlib
import hmac
import time
from collections.abc import Callable, Mapping
from functools import reduce
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import quote

from botocore.utils import normalize_url_path

if TYPE_CHECKING:
    from botocore.credentials import Credentials, ReadOnlyCredentials

_ALGORITHM: Final = "AWS4-HMAC-SHA256"
_SERVICE: Final = "sqs"
_TOKEN: Final = "x-amz-security-token"  # noqa: S105  a header's name


class _Prepared(NamedTuple):
    """The parts that are the same for every request of one second."""

    credentials: "ReadOnlyCredentials"
    second: int
    day: str
    key: bytes
    canonical: bytes
    """The canonical request, up to the body's hash."""
    to_sign: bytes
    """The string to sign, up to the canonical request's hash."""
    headers: bytes
    """The headers that signing adds, up to the signature."""


class Signer:
    """Makes the headers that sign a POST of ``headers`` and a body to ``path`` of ``host``.

    ``headers`` are the headers to sign besides the host; their values hold only single spaces.
    """

    def __init__(
        self,
        credentials: "Credentials",
        *,
        region: str,
        host: str,
        path: str,
        headers: Mapping[str, str],
        now: Callable[[], float] = time.time,
    ) -> None:
        self._credentials = credentials
        self._region = region
        self._path = quote(normalize_url_path(path), safe="/~")
        self._headers = {"host": host, **{name.lower(): value for name, value in headers.items()}}
        self._now = now
        self._prepared: _Prepared | None = None

    def headers(self, body: bytes) -> bytes:
        """Returns the header lines X-Amz-Date, Authorization and, if there is a session token, X-Amz-Security-Token.

        Raises whatever botocore's credential providers raise, and ValueError for credentials that no header can hold.
        """
        credentials = self._credentials.get_frozen_credentials()
        second = int(self._now())
        prepared = self._prepared
        if prepared is None or prepared.second != second or prepared.credentials != credentials:
            prepared = self._prepared = self._prepare(credentials, second, prepared)
        canonical = prepared.canonical + hashlib.sha256(body).hexdigest().encode()
        to_sign = prepared.to_sign + hashlib.sha256(canonical).hexdigest().encode()
        return b"%b%b\r\n" % (prepared.headers, hmac.digest(prepared.key, to_sign, "sha256").hex().encode())

    def _prepare(self, credentials: "ReadOnlyCredentials", second: int, before: _Prepared | None) -> _Prepared:
        instant = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(second))
        day = instant[:8]
        signed = {**self._headers, "x-amz-date": instant}
        if credentials.token:
            signed[_TOKEN] = " ".join(credentials.token.split())
        names = ";".join(sorted(signed))
        lines = "".join(f"{name}:{signed[name]}\n" for name in sorted(signed))
        scope = f"{day}/{self._region}/{_SERVICE}/aws4_request"
        added = f"X-Amz-Date: {instant}\r\n"
        if _TOKEN in signed:
            added += f"X-Amz-Security-Token: {signed[_TOKEN]}\r\n"
        authorization = f"{_ALGORITHM} Credential={credentials.access_key}/{scope}, SignedHeaders={names}, Signature="
        if not (authorization + signed.get(_TOKEN, "")).isprintable():
            raise ValueError("the access key's id or the session token holds a character that no header can hold")
        if before is not None and before.credentials == credentials and before.day == day:
            key = before.key
        else:
            key = self._key(credentials.secret_key or "", day)
        return _Prepared(
            credentials=credentials,
            second=second,
            day=day,
            key=key,
            canonical=f"POST\n{self._path}\n\n{lines}\n{names}\n".encode(),
            to_sign=f"{_ALGORITHM}\n{instant}\n{scope}\n".encode(),
            headers=f"{added}Authorization: {authorization}".encode("ascii"),
        )

    def _key(self, secret_key: str, day: str) -> bytes:
        """Returns the signing key for a day, a region and a service."""
        return reduce(
            lambda key, part: hmac.digest(key, part.encode(), "sha256"),
            (day, self._region, _SERVICE, "aws4_request"),
            f"AWS4{secret_key}".encode(),
        )
