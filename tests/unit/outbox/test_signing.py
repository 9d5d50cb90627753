"""Our signature equals botocore's, byte for byte."""

import datetime

import botocore.auth
import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from hypothesis import given
from hypothesis import strategies as st

from control_plane.outbox.signing import Signer

HEADERS = {
    "Content-Type": "application/x-amz-json-1.0",
    "X-Amz-Target": "AmazonSQS.SendMessageBatch",
    "X-Amzn-Query-Mode": "true",
}
MIDNIGHT = datetime.datetime(2026, 3, 1, tzinfo=datetime.UTC).timestamp()
KEYS = st.text("ABCDEFGHIJKLMNOPQRSTUVWXYZ234567", min_size=16, max_size=32)
SECRETS = st.text("abcXYZ0189+/", min_size=1, max_size=48)
TOKENS = st.none() | st.text("abcXYZ0189+/= ", max_size=400)


def by_botocore(credentials: Credentials, body: bytes, at: float, *, region: str, url: str) -> dict[str, str]:
    request = AWSRequest("POST", url, headers=HEADERS, data=body)
    with pytest.MonkeyPatch.context() as patch:
        now = datetime.datetime.fromtimestamp(int(at), datetime.UTC).replace(tzinfo=None)
        patch.setattr(botocore.auth, "get_current_datetime", lambda: now)
        SigV4Auth(credentials, "sqs", region).add_auth(request)
    return {name: value for name, value in request.headers.items() if name not in HEADERS}


def parsed(lines: bytes) -> dict[str, str]:
    assert lines.endswith(b"\r\n")
    return dict(line.split(": ", 1) for line in lines.decode("ascii").split("\r\n")[:-1])


def trimmed(headers: dict[str, str]) -> dict[str, str]:
    return {name: " ".join(value.split()) for name, value in headers.items()}


@given(
    body=st.binary(max_size=2000),
    key=KEYS,
    secret=SECRETS,
    token=TOKENS,
    at=st.floats(0, 4e9),
    region=st.sampled_from(["us-east-1", "eu-central-1", "us-gov-west-1"]),
    place=st.sampled_from([("sqs.eu-central-1.amazonaws.com", "/"), ("localhost:4566", "/"), ("[::1]:9", "/a b/ü~/")]),
)
def test_a_signature_equals_botocores(
    *, body: bytes, key: str, secret: str, token: str | None, at: float, region: str, place: tuple[str, str]
) -> None:
    host, path = place
    credentials = Credentials(key, secret, token)
    signer = Signer(credentials, region=region, host=host, path=path, headers=HEADERS, now=lambda: at)
    expected = by_botocore(credentials, body, at, region=region, url=f"http://{host}{path}")
    assert parsed(signer.headers(body)) == trimmed(expected)


class Changing:
    """Credentials that change now and then, and a clock."""

    def __init__(self) -> None:
        self.at = 0.0
        self.credentials = Credentials("AKIDEXAMPLE", "secret", "token")
        self.signer = Signer(
            Credentials("", ""), region="us-east-1", host="localhost", path="/", headers=HEADERS, now=lambda: self.at
        )
        self.signer._credentials = self  # type: ignore[assignment]  # as botocore's refreshed ones

    def get_frozen_credentials(self) -> object:
        return self.credentials.get_frozen_credentials()

    def assert_equal(self, body: bytes) -> None:
        expected = by_botocore(self.credentials, body, self.at, region="us-east-1", url="http://localhost/")
        assert parsed(self.signer.headers(body)) == expected


@given(st.lists(st.tuples(st.floats(-3, 3), st.sampled_from("abc"), st.none() | st.sampled_from("xyz")), min_size=2))
def test_one_signer_follows_the_clock_over_midnight_and_new_credentials(
    steps: list[tuple[float, str, str | None]],
) -> None:
    changing = Changing()
    for seconds, secret, token in steps:
        changing.at = MIDNIGHT + seconds
        changing.credentials = Credentials("AKIDEXAMPLE", secret, token)
        changing.assert_equal(secret.encode())


@pytest.mark.parametrize(
    "odd", [Credentials("AK\r\nX: y", "s"), Credentials("AK", "s", "a\x00b"), Credentials("AKÉ", "s")]
)
def test_credentials_unfit_for_a_header_are_refused_unnamed(odd: Credentials) -> None:
    signer = Signer(odd, region="us-east-1", host="localhost", path="/", headers=HEADERS)
    with pytest.raises(ValueError, match="character") as caught:
        signer.headers(b"")
    assert odd.access_key not in str(caught.value)
