"""The HTTP session of yfinance: it decides which hosts to ask, for how long, and how much of an answer to read."""

import re
from typing import Any, Final, Literal
from urllib.parse import urljoin, urlsplit

from curl_cffi.curl import CURL_WRITEFUNC_ERROR
from curl_cffi.requests import Response, Session
from curl_cffi.requests.exceptions import ConnectionError as CurlConnectionError
from curl_cffi.requests.exceptions import RequestException

COOKIE_TIMEOUT = 3.0
"""Seconds. yfinance fetches cookie and crumb under one lock, and charts can be fetched without either."""

LARGEST_ANSWER: Final = 2 << 20
"""The most bytes of one answer, decompressed. Seven days of one-minute bars, day and night, take half of it."""

MOST_REDIRECTS: Final = 5

_YAHOO_HOST: Final = re.compile(r"([a-z0-9-]+\.)*yahoo\.com(:443)?")

REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})


class RefusedRequest(Exception):
    """Carries an answer out of yfinance; whether it is an error is judged later."""

    def __init__(self, response: Response) -> None:
        self.response = response
        super().__init__(response.status_code)


class TooLargeAnswer(Exception):
    """Raised when an answer is larger than LARGEST_ANSWER; the rest of it is not read."""

    def __init__(self) -> None:
        super().__init__(f"the answer is larger than {LARGEST_ANSWER} bytes, and was read no further")


class _Body:
    """An answer's body as it arrives, decompressed; it ends the request when it becomes too large."""

    def __init__(self) -> None:
        self.content = bytearray()
        self.is_too_large = False

    def add(self, chunk: bytes) -> int:
        if len(self.content) + len(chunk) > LARGEST_ANSWER:
            self.is_too_large = True
            return CURL_WRITEFUNC_ERROR
        self.content += chunk
        return len(chunk)


class YahooSession(Session[Response]):
    """The HTTP session of yfinance, with limits for time, size and hosts.

    If ``confined``, only the chart API is asked and no redirect is followed; otherwise only Yahoo's hosts, by https.
    """

    def __init__(self, chart_url: str, *, timeout: float, confined: bool) -> None:
        super().__init__(impersonate="chrome")
        self._chart_url = chart_url
        self._longest = timeout
        self._confined = confined

    def request(  # type: ignore[override]  # the base class spells thirty parameters out
        self,
        method: Literal["GET", "POST"],
        url: str,
        **kwargs: Any,
    ) -> Response:
        """Sends a request, and follows redirects from Yahoo to Yahoo. Raises RefusedRequest and TooLargeAnswer."""
        is_chart = url.startswith(self._chart_url)
        if self._confined and not is_chart:
            raise CurlConnectionError(f"{urlsplit(url).netloc} is not asked: MARKET_DATA_URL is set")
        kwargs["timeout"] = self._longest if is_chart else min(self._longest, COOKIE_TIMEOUT)
        kwargs["allow_redirects"] = False
        # A consent page's form names where to send the consent, so not only redirects can lead to another host.
        if not is_chart and not _is_yahoo(url):
            raise CurlConnectionError("a host that is not Yahoo's is not asked")
        for _ in range(MOST_REDIRECTS + 1):
            response = self._send(method, url, kwargs)
            location = response.headers.get("location")
            if self._confined or location is None or response.status_code not in REDIRECTS:
                break
            try:
                target = urljoin(url, location)
            except ValueError:
                break
            if not _is_yahoo(target):
                break
            url = target
            if response.status_code == 303 or (method == "POST" and response.status_code in {301, 302}):
                method = "GET"
                kwargs = {name: value for name, value in kwargs.items() if name not in {"data", "json", "params"}}
            else:
                kwargs.pop("params", None)  # The new address already includes them.
        if response.status_code in REDIRECTS:
            raise RefusedRequest(response)
        # yfinance repeats every refused request with another cookie. That can help only where access was denied.
        if is_chart and response.status_code >= 400 and response.status_code not in {401, 403}:
            raise RefusedRequest(response)
        return response

    def _send(self, method: Literal["GET", "POST"], url: str, options: dict[str, Any]) -> Response:
        body = _Body()
        try:
            response = super().request(method, url, content_callback=body.add, **options)
        except RequestException:
            if body.is_too_large:
                raise TooLargeAnswer from None
            raise
        response.content = bytes(body.content)
        return response


def _is_yahoo(url: str) -> bool:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return False
    # A URL with a backslash or a user's name may be read differently by another parser, so it is not accepted as
    # Yahoo's.
    return parts.scheme == "https" and port in {None, 443} and _YAHOO_HOST.fullmatch(parts.netloc.lower()) is not None
