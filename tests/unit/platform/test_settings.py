"""Settings: all problems are reported at once, and no secret is shown."""

from collections.abc import Callable
from typing import Any

import pytest

from control_plane.model.errors import ConfigurationError
from control_plane.platform.settings import (
    CommandApiSettings,
    DatabaseFunctionSettings,
    IngestionSettings,
    OpsApiSettings,
    RelaySettings,
    parse_linger_seconds,
    parse_symbols,
)

URL = "postgresql://acp_relay:hunter2@db.example:5432/control_plane"
ARN = "arn:aws:secretsmanager:us-east-1:000000000000:secret:db"
QUEUES = '{"signal_lab": "https://queues.example/ticks"}'
RELAY = {"DATABASE_URL": URL, "SUBSCRIPTION_QUEUE_URLS": QUEUES}
INGESTION = {"DATABASE_SECRET_ARN": ARN, "SYMBOLS": "AAPL"}
OPS_API = {"DATABASE_URL": URL, "API_TOKEN": "open sesame", "RETRIAL_FUNCTION": "retrial"}

FROM_ENVIRON: list[Callable[[dict[str, str]], Any]] = [
    DatabaseFunctionSettings.from_environ,
    IngestionSettings.from_environ,
    RelaySettings.from_environ,
]


def problems(from_environ: Callable[[dict[str, str]], Any], environ: dict[str, str]) -> tuple[str, ...]:
    with pytest.raises(ConfigurationError) as refusal:
        from_environ(environ)
    assert str(refusal.value) == "; ".join(refusal.value.problems)
    return refusal.value.problems


def test_unset_variables_have_defaults() -> None:
    settings = RelaySettings.from_environ(RELAY)
    assert settings.subscription_queue_urls == {"signal_lab": "https://queues.example/ticks"}
    assert settings.cloud_endpoint_url is None
    assert settings.max_delivery_attempts == 5
    assert settings.linger_seconds == 0


def test_set_variables_are_read() -> None:
    settings = RelaySettings.from_environ(
        RELAY
        | {
            "CLOUD_ENDPOINT_URL": "http://localhost:4566/",
            "MAX_DELIVERY_ATTEMPTS": "7",
            "RELAY_LINGER_SECONDS": "1.5",
            "RELAY_CLAIM_SIZE": "50",
            "RELAY_PUBLISH_CONCURRENCY": "2",
            "LEASE_SECONDS": "20",
            "BREAKER_FAILURE_THRESHOLD": "2",
            "BREAKER_COOL_DOWN_SECONDS": "0.5",
        }
    )
    assert settings.cloud_endpoint_url == "http://localhost:4566"
    assert settings.max_delivery_attempts == 7
    assert settings.linger_seconds == 1.5
    assert settings.claim_size == 50
    assert settings.publish_concurrency == 2
    assert settings.lease_seconds == 20
    assert settings.breaker_failure_threshold == 2
    assert settings.breaker_cool_down_seconds == 0.5


def test_ingestion_and_relay_have_the_same_breaker_defaults() -> None:
    for settings in (RelaySettings.from_environ(RELAY), IngestionSettings.from_environ(INGESTION)):
        assert (settings.breaker_failure_threshold, settings.breaker_cool_down_seconds) == (3, 30)
    own = {"BREAKER_FAILURE_THRESHOLD": "1", "BREAKER_COOL_DOWN_SECONDS": "60"}
    settings = IngestionSettings.from_environ(INGESTION | own)
    assert (settings.breaker_failure_threshold, settings.breaker_cool_down_seconds) == (1, 60)


@pytest.mark.parametrize("nothing", ["", " ", "\t\n"])
def test_an_empty_variable_counts_as_absent(nothing: str) -> None:
    empty = dict.fromkeys(
        ("DATABASE_SECRET_ARN", "CLOUD_ENDPOINT_URL", "MAX_DELIVERY_ATTEMPTS", "LEASE_SECONDS"), nothing
    )
    assert RelaySettings.from_environ(RELAY | empty) == RelaySettings.from_environ(RELAY)
    assert IngestionSettings.from_environ(INGESTION | {"DATABASE_URL": nothing, "MARKET_DATA_URL": nothing}) == (
        IngestionSettings.from_environ(INGESTION)
    )


def test_every_missing_name_is_in_one_error() -> None:
    database, queues = problems(RelaySettings.from_environ, {})
    assert "DATABASE_URL" in database
    assert "DATABASE_SECRET_ARN" in database
    assert "SUBSCRIPTION_QUEUE_URLS is not set" in queues

    symbols, database = problems(IngestionSettings.from_environ, {})
    assert "SYMBOLS is empty" in symbols
    assert "DATABASE_URL" in database


def test_every_bad_name_is_in_one_error_with_its_value() -> None:
    bad = {
        "CLOUD_ENDPOINT_URL": "localhost:4566",
        "SUBSCRIPTION_QUEUE_URLS": "[]",
        "MAX_DELIVERY_ATTEMPTS": "0",
        "RELAY_LINGER_SECONDS": "841",
        "RELAY_CLAIM_SIZE": "1.5",
        "RELAY_PUBLISH_CONCURRENCY": "many",
        "LEASE_SECONDS": "nan",
        "BREAKER_FAILURE_THRESHOLD": "0",
        "BREAKER_COOL_DOWN_SECONDS": "inf",
    }
    found = problems(RelaySettings.from_environ, RELAY | bad)
    assert len(found) == len(bad)
    for (name, value), problem in zip(bad.items(), found, strict=True):
        assert problem.startswith(f"{name} is {value!r}: it must be ")


@pytest.mark.parametrize("from_environ", FROM_ENVIRON)
def test_the_database_is_named_exactly_once(from_environ: Callable[[dict[str, str]], Any]) -> None:
    rest = {"SYMBOLS": "AAPL", "SUBSCRIPTION_QUEUE_URLS": QUEUES}
    assert from_environ(rest | {"DATABASE_URL": URL}).database.url == URL
    assert from_environ(rest | {"DATABASE_SECRET_ARN": ARN}).database.secret_arn == ARN
    (both,) = problems(from_environ, rest | {"DATABASE_URL": URL, "DATABASE_SECRET_ARN": ARN})
    assert both.startswith("both DATABASE_URL and DATABASE_SECRET_ARN are set")
    (neither,) = problems(from_environ, rest)
    assert neither.startswith("neither DATABASE_URL nor DATABASE_SECRET_ARN is set")


@pytest.mark.parametrize("from_environ", FROM_ENVIRON)
def test_the_password_is_never_shown(from_environ: Callable[[dict[str, str]], Any]) -> None:
    settings = from_environ({"DATABASE_URL": URL, "SYMBOLS": "AAPL", "SUBSCRIPTION_QUEUE_URLS": QUEUES})
    for shown in (repr(settings), str(settings), f"{settings}", repr(settings.database), str(settings.database)):
        assert "hunter2" not in shown
        assert "DatabaseSettings(url=***" in shown
    wrong = {"DATABASE_URL": URL, "DATABASE_SECRET_ARN": ARN, "SYMBOLS": "?", "SUBSCRIPTION_QUEUE_URLS": "?"}
    assert "hunter2" not in str(problems(from_environ, wrong))


def test_the_apis_token_is_named_exactly_once_and_never_shown() -> None:
    settings = OpsApiSettings.from_environ(OPS_API)
    assert (settings.api_token.token, settings.api_token.secret_arn) == ("open sesame", None)
    assert "sesame" not in repr(settings) + str(settings.api_token)
    of_secret = {name: value for name, value in OPS_API.items() if name != "API_TOKEN"} | {"API_TOKEN_SECRET_ARN": ARN}
    assert OpsApiSettings.from_environ(of_secret).api_token.secret_arn == ARN
    (both,) = problems(OpsApiSettings.from_environ, OPS_API | {"API_TOKEN_SECRET_ARN": ARN})
    assert both.startswith("both API_TOKEN and API_TOKEN_SECRET_ARN are set")
    (neither,) = problems(OpsApiSettings.from_environ, OPS_API | {"API_TOKEN": " "})
    assert neither.startswith("neither API_TOKEN nor API_TOKEN_SECRET_ARN is set")


def test_the_functions_whose_runs_the_api_starts_are_named() -> None:
    named = OPS_API | {"INGESTION_FUNCTION": "a", "RELAY_FUNCTION": "b", "OPERATIONS_FUNCTION": "c"}
    settings = CommandApiSettings.from_environ(named)
    assert (settings.ingestion_function, settings.relay_function, settings.operations_function) == ("a", "b", "c")
    unnamed = problems(CommandApiSettings.from_environ, OPS_API)
    assert [problem.partition(" ")[0] for problem in unnamed] == [
        "INGESTION_FUNCTION",
        "RELAY_FUNCTION",
        "OPERATIONS_FUNCTION",
    ]


def test_the_function_that_the_api_asks_is_named() -> None:
    assert OpsApiSettings.from_environ(OPS_API).retrial_function == "retrial"
    (unnamed,) = problems(OpsApiSettings.from_environ, OPS_API | {"RETRIAL_FUNCTION": ""})
    assert unnamed.startswith("RETRIAL_FUNCTION is not set")


def test_the_oldest_age_that_health_tolerates_has_bounds() -> None:
    assert OpsApiSettings.from_environ(OPS_API).health_max_pending_age_seconds == 300
    own = OpsApiSettings.from_environ(OPS_API | {"HEALTH_MAX_PENDING_AGE_SECONDS": "60"})
    assert own.health_max_pending_age_seconds == 60
    for odd in ("0", "-1", "soon", "1e9"):
        (problem,) = problems(OpsApiSettings.from_environ, OPS_API | {"HEALTH_MAX_PENDING_AGE_SECONDS": odd})
        assert problem.startswith(f"HEALTH_MAX_PENDING_AGE_SECONDS is {odd!r}")


@pytest.mark.parametrize(
    "url",
    [
        "localhost:4566", "ftp://localhost", "http://", "https://:4566", "http://[", "http://localhost:port",
        "http://localhost:99999", "http:/localhost",
    ],
)  # fmt: skip
def test_an_invalid_url_is_refused(url: str) -> None:
    (problem,) = problems(IngestionSettings.from_environ, INGESTION | {"MARKET_DATA_URL": url})
    assert problem == f"MARKET_DATA_URL is {url!r}: it must be an http:// or https:// URL"


@pytest.mark.parametrize("text", ["{", "[]", "{}", '"signal_lab"', '{"signal_lab": ""}', '{"signal_lab": 7}'])
def test_subscriptions_map_to_queue_urls_or_the_setting_is_refused(text: str) -> None:
    (problem,) = problems(RelaySettings.from_environ, RELAY | {"SUBSCRIPTION_QUEUE_URLS": text})
    assert problem.startswith(f"SUBSCRIPTION_QUEUE_URLS is {text!r}")


@pytest.mark.parametrize(
    ("text", "symbols"),
    [
        ("AAPL", ("AAPL",)),
        ("aapl, Msft ,BTC-usd", ("AAPL", "MSFT", "BTC-USD")),
        ("AAPL,aapl,MSFT,AAPL", ("AAPL", "MSFT")),
        (",AAPL,,", ("AAPL",)),
        ("^GSPC,EURUSD=X,BRK-B,0700.HK,M&M.NS", ("^GSPC", "EURUSD=X", "BRK-B", "0700.HK", "M&M.NS")),
    ],
)
def test_symbols_are_upper_case_unique_and_in_order(text: str, symbols: tuple[str, ...]) -> None:
    assert IngestionSettings.from_environ(INGESTION | {"SYMBOLS": text}).symbols == symbols


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ([], "SYMBOLS is empty: name at least one symbol, such as AAPL"),
        ([" ", ""], "SYMBOLS is empty: name at least one symbol, such as AAPL"),
        (["AAPL", "AA PL"], "SYMBOLS holds 'AA PL', which is no symbol"),
        (["AAPL;DROP"], "SYMBOLS holds 'AAPL;DROP', which is no symbol"),
        (["../quote"], "SYMBOLS holds '../QUOTE', which is no symbol"),
        (["ÄÖ"], "SYMBOLS holds 'ÄÖ', which is no symbol"),
        (["X" * 33], f"SYMBOLS holds '{'X' * 33}', which is no symbol"),
        ([f"S{number}" for number in range(201)], "SYMBOLS holds 201 symbols: 200 are the most one run takes"),
        ("AAPL", "SYMBOLS is 'AAPL': it must be a list of symbols"),
        (["AAPL", 7], "SYMBOLS is ['AAPL', 7]: it must be a list of symbols"),
        ({"AAPL": 1}, "SYMBOLS is {'AAPL': 1}: it must be a list of symbols"),
    ],
)
def test_odd_symbols_are_refused_by_name(given: object, complaint: str) -> None:
    with pytest.raises(ConfigurationError) as refusal:
        parse_symbols(given, name="SYMBOLS")
    assert str(refusal.value).startswith(complaint)


@pytest.mark.parametrize(("given", "seconds"), [(None, 12.0), (0, 0.0), (2, 2.0), (0.5, 0.5), (840, 840.0)])
def test_an_event_may_say_how_long_to_linger(given: object, seconds: float) -> None:
    assert parse_linger_seconds(given, default=12.0) == seconds


@pytest.mark.parametrize("given", [-1, 841, float("nan"), float("inf"), "5", True, []])
def test_an_odd_linger_is_refused_with_its_value(given: object) -> None:
    with pytest.raises(ConfigurationError) as refusal:
        parse_linger_seconds(given, default=12.0)
    assert str(refusal.value) == f"linger_seconds of the event is {given!r}: it must be a number from 0 to 840"
