"""To which hosts Yahoo's answers may lead a session."""

from typing import Any

import pytest
from curl_cffi.requests import Response, Session
from curl_cffi.requests.exceptions import ConnectionError as CurlConnectionError

from domains.finance.yahoo_session import MOST_REDIRECTS, RefusedRequest, YahooSession

CHART_URL = "https://query2.finance.yahoo.com/v8/finance/chart/"
PARAMS = {"interval": "1m"}


class Answers:
    """Stands in for libcurl: gives answers with a status and a Location each, and records what was asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *answers: tuple[int, str]) -> None:
        self.asked: list[tuple[str, str]] = []
        self.options: list[dict[str, Any]] = []
        left = list(answers)

        def answer(_session: Session[Any], method: str, url: str, **options: Any) -> Response:
            self.asked.append((method, url))
            self.options.append(options)
            status, location = left.pop(0) if left else (200, "")
            response = Response()
            response.status_code = status
            if location:
                response.headers["location"] = location
            return response

        monkeypatch.setattr(Session, "request", answer)


def session(*, confined: bool = False) -> YahooSession:
    return YahooSession(CHART_URL, timeout=5, confined=confined)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize(
    ("location", "followed_to"),
    [
        ("https://query1.finance.yahoo.com/v8/x?interval=1m", "https://query1.finance.yahoo.com/v8/x?interval=1m"),
        ("https://yahoo.com:443/x", "https://yahoo.com:443/x"),
        ("//consent.YAHOO.com/x", "https://consent.YAHOO.com/x"),
        ("/elsewhere", "https://query2.finance.yahoo.com/elsewhere"),
    ],
)
def test_a_redirect_to_yahoo_is_followed(
    monkeypatch: pytest.MonkeyPatch, status: int, location: str, followed_to: str
) -> None:
    answers = Answers(monkeypatch, (status, location))
    assert session().request("GET", CHART_URL + "AAPL", params=PARAMS).status_code == 200
    assert answers.asked == [("GET", CHART_URL + "AAPL"), ("GET", followed_to)]
    assert "params" not in answers.options[1]
    assert all(options["allow_redirects"] is False for options in answers.options)


@pytest.mark.parametrize(
    "location",
    [
        "http://query2.finance.yahoo.com/",
        "https://query2.finance.yahoo.com:8443/",
        "https://evil.example/",
        "https://yahoo.com.evil.example/",
        "https://evilyahoo.com/",
        "https://evil.example/.yahoo.com",
        "https://evil.example?.yahoo.com",
        "https://evil.example#.yahoo.com",
        "https://evil.example\\.yahoo.com/",
        "https://evil.example\\@finance.yahoo.com/",
        "https://user@finance.yahoo.com/",
        "https://[::1]/",
        "https://[::1",
        "https://yahoo.com:port/",
        "//evil.example/",
        "http://169.254.169.254/latest/meta-data/",
        "file:///etc/passwd",
    ],
)
def test_a_redirect_to_anything_else_is_not_followed(monkeypatch: pytest.MonkeyPatch, location: str) -> None:
    answers = Answers(monkeypatch, (302, location))
    with pytest.raises(RefusedRequest):
        session().request("GET", CHART_URL + "AAPL")
    assert len(answers.asked) == 1


def test_each_step_of_a_redirect_is_judged_again(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = Answers(monkeypatch, (302, "https://finance.yahoo.com/"), (302, "https://evil.example/"))
    with pytest.raises(RefusedRequest):
        session().request("GET", CHART_URL + "AAPL")
    assert [url for _, url in answers.asked] == [CHART_URL + "AAPL", "https://finance.yahoo.com/"]


def test_redirects_without_end_are_given_up_on(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = Answers(monkeypatch, *[(302, "https://finance.yahoo.com/")] * 50)
    with pytest.raises(RefusedRequest):
        session().request("GET", CHART_URL + "AAPL")
    assert len(answers.asked) == MOST_REDIRECTS + 1


@pytest.mark.parametrize(
    ("status", "method", "has_data"),
    [(301, "GET", False), (302, "GET", False), (303, "GET", False), (307, "POST", True), (308, "POST", True)],
)
def test_a_form_is_resent_only_where_the_status_says_so(
    monkeypatch: pytest.MonkeyPatch, status: int, method: str, has_data: bool
) -> None:
    answers = Answers(monkeypatch, (status, "https://finance.yahoo.com/"))
    session().request("POST", "https://consent.yahoo.com/form", data={"agree": "agree"})
    assert answers.asked[1] == (method, "https://finance.yahoo.com/")
    assert ("data" in answers.options[1]) is has_data


def test_another_host_is_not_asked_in_the_first_place(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = Answers(monkeypatch)
    with pytest.raises(CurlConnectionError):
        session().request("POST", "https://evil.example/consent")
    assert answers.asked == []


def test_a_source_with_its_own_address_follows_no_redirect(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = Answers(monkeypatch, (302, "https://finance.yahoo.com/"))
    with pytest.raises(RefusedRequest):
        session(confined=True).request("GET", CHART_URL + "AAPL")
    assert len(answers.asked) == 1
