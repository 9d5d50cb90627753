"""Requests to the API: with time limits, repeated where that is safe, and errors in the API's own words."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, urlencode
from uuid import uuid4

import urllib3

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from acp_client.profiles import Profile

TIMEOUT_SECONDS: Final = 35.0
"""How long an answer is waited for: API Gateway itself gives up after 29 s."""
TRIES: Final = 3
"""How often a request is sent at most."""
_LONGEST_PAUSE_SECONDS: Final = 10.0
_MOST_BYTES: Final = 16 * 1024 * 1024
_PAGE: Final = 200
"""Items that a page holds at most, as the API has it."""
_TRY_AGAIN: Final = frozenset({429, 502, 503, 504})


class ApiError(Exception):
    """Raised for an answer that is no success. Its text is the API's explanation."""

    def __init__(self, status: int, detail: str, *, retry_after_seconds: float | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.retry_after_seconds = retry_after_seconds


class ApiUnreachable(Exception):
    """Raised when there is no answer from the API, or none that could be the API's."""


class Client:
    """Asks one deployment.

    Reads are sent again after a failure. So are changes: each carries an Idempotency-Key, by which the API answers the
    second time what it answered the first, and does nothing twice.
    """

    def __init__(
        self,
        profile: Profile,
        *,
        agent: str,
        timeout_seconds: float = TIMEOUT_SECONDS,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.profile = profile
        self._headers = {"Accept": "application/json", "User-Agent": agent}
        if profile.token is not None:
            self._headers["Authorization"] = f"Bearer {profile.token}"
        self._sleep = sleep
        # A redirect would hand the token to another host, so none is followed.
        self._pool = urllib3.PoolManager(timeout=urllib3.Timeout(timeout_seconds), retries=False)

    def get(self, path: str, **query: Any) -> Any:
        """Returns the JSON of a read; a parameter that is None is left out. Raises ApiError, ApiUnreachable."""
        return self._request("GET", _with_query(path, query), None, {})

    def text(self, path: str, *, content_type: str) -> str:
        """Returns a read that is no JSON, as text of this type. Raises ApiError, ApiUnreachable."""
        said: str = self._request("GET", path, None, {"Accept": content_type}, text_of=content_type)
        return said

    def health(self) -> Mapping[str, Any]:
        """Returns what /health says, also where it says that something fails; it is asked once.

        Raises ApiError, ApiUnreachable.
        """
        status, said, pause = self._ask("GET", "/health", None, {})
        if status in {200, 503} and isinstance(said, dict) and {"status", "checks"} <= said.keys():
            return said
        raise ApiError(status, _explanation(status, said), retry_after_seconds=pause)

    def pages(self, path: str, *, most: int, **query: Any) -> Iterator[dict[str, Any]]:
        """Yields up to ``most`` items of a list, page by page. Raises ApiError, ApiUnreachable."""
        after = None
        while most > 0:
            page = self.get(path, limit=min(most, _PAGE), after=after, **query)
            yield from page["items"][:most]
            most -= len(page["items"])
            after = page["next"]
            if after is None:
                return

    def send(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, *, key: str | None = None, **query: Any
    ) -> Any:
        """Asks for a change, and returns the answer's JSON; None where it has none.

        ``key`` is the Idempotency-Key; without one the change is a new one. Raises ApiError, ApiUnreachable.
        """
        headers = {"Idempotency-Key": key or str(uuid4())}
        if body is not None:
            headers["Content-Type"] = "application/json"
        content = None if body is None else json.dumps(body).encode()
        return self._request(method, _with_query(path, query), content, headers)

    def _request(
        self, method: str, path: str, body: bytes | None, headers: Mapping[str, str], *, text_of: str | None = None
    ) -> Any:
        for attempt in range(1, TRIES + 1):
            try:
                status, said, pause = self._ask(method, path, body, headers, text_of=text_of)
            except ApiUnreachable:
                if attempt == TRIES:
                    raise
                self._sleep(attempt)
                continue
            if status in _TRY_AGAIN and attempt < TRIES:
                self._sleep(min(pause if pause is not None else attempt, _LONGEST_PAUSE_SECONDS))
                continue
            if not 200 <= status < 300:
                raise ApiError(status, _explanation(status, said), retry_after_seconds=pause)
            return said
        raise AssertionError("the last try returns or raises")

    def _ask(
        self, method: str, path: str, body: bytes | None, headers: Mapping[str, str], *, text_of: str | None = None
    ) -> tuple[int, Any, float | None]:
        """Sends a request once; returns the status, the JSON (None without a body), and Retry-After in seconds.

        With ``text_of``, an answer that is no problem must be text of that type.
        """
        url = self.profile.url + path
        try:
            answer = self._pool.request(
                method, url, body=body, headers={**self._headers, **headers}, preload_content=False, redirect=False
            )
            try:
                content = answer.read(_MOST_BYTES + 1, decode_content=True)
            finally:
                answer.release_conn()
        except urllib3.exceptions.HTTPError as error:
            raise ApiUnreachable(f"{self.profile.url} does not answer: {error}") from error
        if len(content) > _MOST_BYTES:
            raise ApiUnreachable(f"{url} answers with more than {_MOST_BYTES:,} bytes, so it is not the API")
        try:
            if text_of is not None and answer.status < 400:
                return answer.status, _text(content, answer.headers.get("Content-Type", ""), text_of), None
            said = json.loads(content) if content else None
        except ValueError:
            if answer.status < 400:
                wanted = text_of or "JSON"
                raise ApiUnreachable(
                    f"{url} answers {answer.status} and no {wanted}: is it the API's URL, with its stage (/v1)?"
                ) from None
            said = None
        return answer.status, said, _seconds(answer.headers.get("Retry-After"))


def _text(content: bytes, content_type: str, wanted: str) -> str:
    """Returns an answer's text. Raises ValueError where it is of another type."""
    if content_type.partition(";")[0].strip() != wanted:
        raise ValueError(content_type)
    return content.decode()


def in_path(text: str) -> str:
    """Returns text as one part of a path, whatever it contains."""
    return quote(text, safe="")


def _with_query(path: str, query: Mapping[str, Any]) -> str:
    asked = urlencode({name: value for name, value in query.items() if value is not None})
    return f"{path}?{asked}" if asked else path


def _explanation(status: int, said: Any) -> str:
    detail = said.get("detail") if isinstance(said, dict) else None
    return detail if isinstance(detail, str) and detail else f"the API answers {status} without an explanation"


def _seconds(text: str | None) -> float | None:
    return float(text) if text is not None and text.isdecimal() else None
