"""Models' settings, prices, breakers and clients, without a provider."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from control_plane.decisions.models.breaker import GuardedClient
from control_plane.decisions.models.chat import ChatClient
from control_plane.decisions.models.conversation import (
    NOTHING_GENERATED,
    Conversation,
    Reply,
    Turn,
    Usage,
    failed,
    read_usage,
    refused,
    unknown,
)
from control_plane.decisions.models.converse import ConverseClient
from control_plane.decisions.models.prices import PRICES, Price, UnpricedModel, price_of
from control_plane.decisions.models.providers import connect_model
from control_plane.decisions.settings import AgentSettings
from control_plane.decisions.switches import is_scope
from control_plane.model.decision_events import SwitchSet
from control_plane.model.errors import ConfigurationError

CONVERSATION = Conversation("Say why.", (Turn("user", "why?"),), "cause", {"type": "object"})
DATABASE = {"DATABASE_URL": "postgresql://localhost/db"}


# Settings


def settings(**variables: str) -> AgentSettings:
    return AgentSettings.from_environ(DATABASE | variables)


def test_agents_are_deterministic_by_default() -> None:
    assert settings().model.provider == "deterministic"
    assert connect_model(settings().model, lambda _: "") is None


OPENAI = {"MODEL_PROVIDER": "openai", "MODEL_ID": "gpt-5-mini", "MODEL_URL": "https://api.openai.com/v1/"}


@pytest.mark.parametrize(
    ("variables", "problem"),
    [
        ({"MODEL_PROVIDER": "oracle"}, "MODEL_PROVIDER is 'oracle'"),
        ({"MODEL_PROVIDER": "bedrock"}, "MODEL_ID is ''"),
        ({**OPENAI, "MODEL_ID": "a model"}, "MODEL_ID is 'a model'"),
        ({**OPENAI, "MODEL_ID": "m" * 123}, "MODEL_ID is"),
        ({**OPENAI, "MODEL_URL": ""}, "MODEL_URL is not set"),
        ({**OPENAI, "MODEL_URL": "https://user:hunter2@host/v1"}, "MODEL_URL holds a password"),
        ({**OPENAI, "MODEL_URL": "https://host/v1?key=hunter2"}, "MODEL_URL holds a password"),
        ({**OPENAI, "MODEL_URL": "http://host/v1", "MODEL_SECRET_ARN": "arn"}, "must be https://"),
        ({**OPENAI, "MODEL_OUTPUT": "prose"}, "MODEL_OUTPUT is 'prose'"),
        ({"MODEL_PROVIDER": "bedrock", "MODEL_ID": "m", "MODEL_OUTPUT": "json_schema"}, "MODEL_OUTPUT"),
        ({"MODEL_MAX_TOKENS": "0"}, "MODEL_MAX_TOKENS"),
        ({"MODEL_PRICE_MICROS": "3"}, "MODEL_PRICE_MICROS is '3'"),
        ({"MODEL_PRICE_MICROS": "-3/1"}, "MODEL_PRICE_MICROS"),
        ({"AGENT_LEASE_SECONDS": "91"}, "AGENT_LEASE_SECONDS"),
    ],
)
def test_a_setting_that_is_wrong_is_named(variables: dict[str, str], problem: str) -> None:
    with pytest.raises(ConfigurationError, match=problem.replace("(", r"\(")) as refused_:
        settings(**variables)
    assert "hunter2" not in str(refused_.value)


def test_the_longest_name_of_a_model_can_be_switched_on_again() -> None:
    longest = settings(**OPENAI | {"MODEL_ID": "m" * 122}).model.model_id
    assert is_scope(f"model:{longest}")
    SwitchSet(scope=f"model:{longest}", is_off=False, set_by="ada", reason="")


def test_a_key_may_go_to_loopback_in_the_clear() -> None:
    own = settings(**OPENAI | {"MODEL_URL": "http://127.0.0.1:4900/v1", "MODEL_SECRET_ARN": "arn"}).model
    assert own.url == "http://127.0.0.1:4900/v1"


def test_a_model_without_a_price_is_refused() -> None:
    unpriced = settings(**OPENAI | {"MODEL_ID": "my-model"}).model
    with pytest.raises(ConfigurationError, match="MODEL_PRICE_MICROS"):
        connect_model(unpriced, lambda _: "")
    priced = connect_model(
        settings(**OPENAI | {"MODEL_ID": "my-model", "MODEL_PRICE_MICROS": "3/4"}).model, lambda _: ""
    )
    assert priced is not None
    assert (priced.price, priced.client.model) == (Price(3, 4), "my-model")


def test_connecting_reads_no_secret() -> None:
    def unread(_: str) -> str:
        raise AssertionError("read too early")

    for provider in ("openai", "bedrock"):
        assert connect_model(settings(**OPENAI | {"MODEL_PROVIDER": provider, "MODEL_OUTPUT": "tool"}).model, unread)


# Prices


@pytest.mark.parametrize("model", ["gpt-4o", "amazon.nova-lite-v1:0", "eu.amazon.nova-lite-v1:0"])
def test_models_have_prices(model: str) -> None:
    assert price_of(model).input_micros > 0


@pytest.mark.parametrize("model", ["", "gpt-4o-", "xx.amazon.nova-lite-v1:0", "GPT-4O"])
def test_a_model_that_is_not_listed_has_none(model: str) -> None:
    with pytest.raises(UnpricedModel):
        price_of(model)


def test_output_is_never_cheaper_than_input() -> None:
    assert all(0 < price.input_micros <= price.output_micros for price in PRICES.values())


@pytest.mark.parametrize(
    ("told", "usage"),
    [
        ((1, 2), Usage(1, 2)),
        ((0, 0), Usage(0, 0)),
        ((10**12, 1), Usage(2**31 - 1, 1)),
        ((-1, 2), None),
        ((1.5, 2), None),
        ((True, 2), None),
        (("1", 2), None),
        ((None, None), None),
        ((10**400, 1), None),
    ],
)
def test_a_usage_is_two_counts_or_none(told: tuple[object, object], usage: Usage | None) -> None:
    assert read_usage(*told) == usage


@pytest.mark.parametrize("status", [301, 307, *sorted(NOTHING_GENERATED), 408, 409, 424, 500, 502, 504, 529])
def test_an_error_is_free_only_if_nothing_was_generated(status: int) -> None:
    reply = refused(status, None, "server_error")
    assert reply.kind == ("failed" if status in NOTHING_GENERATED or status < 400 else "unknown")
    assert reply.error == f"the provider answered HTTP {status} server_error"


@pytest.mark.parametrize("code", [None, 7, "", [], "two words", "sk-key", "gsk_0123456789abcdef", "\x1b"])
def test_of_an_error_only_a_known_code_is_kept(code: object) -> None:
    assert refused(400, code).error == "the provider answered HTTP 400"


# The breaker


@dataclass
class Scripted:
    """Replies as told."""

    replies: list[Reply] = field(default_factory=list)
    asked: int = 0
    model: str = "m"
    most_output_tokens: int = 1

    def request_bytes(self, conversation: Conversation) -> int:
        return 1

    def ask(self, conversation: Conversation, *, seconds_left: float) -> Reply:
        self.asked += 1
        return self.replies.pop(0)


GOOD, OURS = Reply("answered", b"{}", Usage(1, 1)), failed("HTTP 400")
THEIRS, BUSY = unknown("HTTP 500"), failed("HTTP 429", is_providers_fault=True)


def guarded(*replies: Reply) -> tuple[Scripted, Callable[[], Reply], list[float]]:
    client, now = Scripted(list(replies)), [0.0]
    breaker = GuardedClient(client, failure_threshold=2, cool_down_seconds=10, monotonic=lambda: now[0])
    return client, lambda: breaker.ask(CONVERSATION, seconds_left=1), now


def test_a_provider_that_fails_is_left_alone() -> None:
    client, ask, now = guarded(THEIRS, BUSY, GOOD)
    assert [ask(), ask()] == [THEIRS, BUSY]
    held = ask()
    assert (held.kind, client.asked, held.is_providers_fault) == ("failed", 2, False)
    now[0] = 10
    assert ask() == GOOD


def test_one_probe_is_let_through_at_a_time() -> None:
    client, ask, now = guarded(THEIRS, THEIRS, THEIRS)
    ask(), ask()
    now[0] = 10
    assert ask() == THEIRS
    assert ask().kind == "failed"
    assert client.asked == 3


def test_what_is_not_the_providers_fault_closes_it() -> None:
    client, ask, _ = guarded(THEIRS, OURS, THEIRS, GOOD)
    for _ in range(4):
        ask()
    assert client.asked == 4


# The chat client on the wire


@contextmanager
def answering(answer: bytes, *, pause: float = 0) -> Iterator[tuple[str, list[bytes]]]:
    """Answers one connection with these bytes; yields the URL and what was received."""
    received: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                received.append(connection.recv(65_536))
                time.sleep(pause)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1", received
        thread.join(5)


def http(body: bytes, status: str = "200 OK") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


COMPLETION = (
    b'{"choices":[{"finish_reason":"stop","message":{"content":"{\\"a\\":1}"}}],'
    b'"usage":{"prompt_tokens":3,"completion_tokens":4}}'
)


def ask(url: str, *, key: Callable[[], str] | None = None, **options: Any) -> Reply:
    client = ChatClient(url, "m", most_output_tokens=9, key=key, **options)
    return client.ask(CONVERSATION, seconds_left=2)


def test_the_request_is_one_that_streams_nothing() -> None:
    with answering(http(COMPLETION)) as (url, received):
        assert ask(url, key=lambda: "a-key") == Reply("answered", b'{"a":1}', Usage(3, 4))
    head, _, body = received[0].partition(b"\r\n\r\n")
    assert head.startswith(b"POST /v1/chat/completions HTTP/1.1\r\n")
    assert b"\r\nAuthorization: Bearer a-key" in head
    assert b'"stream":false' in body
    assert b'"max_tokens":9' in body
    assert b"a-key" not in body


def test_openais_own_endpoint_gets_its_own_name_of_the_limit() -> None:
    client = ChatClient("https://api.openai.com/v1", "m", most_output_tokens=9)
    assert b'"max_completion_tokens":9' in client._body(CONVERSATION)


@pytest.mark.parametrize(
    "answer", [b"", b"nonsense", http(b"{}")[:-1], http(b"x" * 1_100_000), http(b"[]"), http(b"{}")]
)
def test_an_answer_without_a_usage_is_unknown(answer: bytes) -> None:
    with answering(answer) as (url, _):
        assert ask(url).kind == "unknown"


@pytest.mark.parametrize("key", ["a\r\nX-Evil: 1", "caf\u00e9", "a\x00b"])
def test_a_key_that_is_no_header_is_not_sent(key: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        reply = ask(f"http://127.0.0.1:{listener.getsockname()[1]}", key=lambda: key)
    assert reply.kind == "failed"
    assert key not in (reply.error or "")


def test_a_refused_key_is_read_again() -> None:
    keys = iter(["old", "new"])
    client: ChatClient | None = None
    for expected in (b"Bearer old", b"Bearer new"):
        with answering(http(b"{}", "401 Unauthorized")) as (url, received):
            if client is None:
                client = ChatClient(url, "m", most_output_tokens=9, key=lambda: next(keys))
            client._url = f"{url}/chat/completions"
            assert client.ask(CONVERSATION, seconds_left=2).kind == "failed"
        assert expected in received[0]


KEY = "gsk_0123456789abcdef"
REPEATED = f'"{KEY}":1'.encode()


@pytest.mark.parametrize(
    "answer",
    [
        http(b'{"error":{"code":"%s","type":"%s"}}' % (KEY.encode(), KEY.encode()), "401 Unauthorized"),
        http(b"{%s,%s}" % (REPEATED, REPEATED)),
        http(COMPLETION.replace(b'\\"a\\"', b'\\"%s\\"' % KEY.encode())),
    ],
)
def test_no_part_of_a_reply_repeats_the_key(answer: bytes) -> None:
    with answering(answer) as (url, _):
        assert KEY not in repr(ask(url, key=lambda: KEY))


def test_clients_show_no_key() -> None:
    client = ChatClient("http://127.0.0.1:1", "m", most_output_tokens=9, key=lambda: "a-key")
    client.ask(CONVERSATION, seconds_left=1)
    assert "a-key" not in repr(client)
    assert repr(ConverseClient("m", most_output_tokens=9)) == "ConverseClient('m')"


def test_the_secret_is_read_by_its_arn_when_it_is_needed() -> None:
    read: list[str] = []

    def secret(arn: str) -> str:
        read.append(arn)
        return "a-key\n"

    with answering(http(COMPLETION)) as (url, received):
        model = settings(**OPENAI | {"MODEL_URL": url, "MODEL_SECRET_ARN": "arn:of:it"}).model
        priced = connect_model(model, secret)
        assert priced is not None
        assert read == []
        assert priced.client.ask(CONVERSATION, seconds_left=2).kind == "answered"
    assert read == ["arn:of:it"]
    assert b"Authorization: Bearer a-key\r\n" in received[0]


@pytest.mark.parametrize(
    ("status", "said", "pause"),
    [(429, "7", 7), (503, "0", 0), (429, None, None), (429, "Fri, 27 Nov 2026 12:00:00 GMT", None), (500, "7", None),
     (429, "-1", None), (429, "1e3", None), (429, "9999999", None)],
)  # fmt: skip
def test_how_long_an_overloaded_provider_wants_not_to_be_asked(
    status: int, said: str | None, pause: int | None
) -> None:
    assert refused(status, retry_after=said).retry_after_seconds == pause
