"""Settings: one frozen class per function, read once from the environment, with all problems in one error.

An empty variable counts as absent, because an emulator or a template may declare a variable without a value.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from control_plane.model.errors import ConfigurationError
from control_plane.model.subscription import Subscription, is_subscription_name, is_topic
from control_plane.platform.environ import EnvironReader, read_settings

MAX_SYMBOLS = 200
MAX_LINGER_SECONDS = 840


@dataclass(frozen=True, slots=True)
class DatabaseSettings:
    """Where Postgres is: exactly one of the two fields is set."""

    url: str | None
    secret_arn: str | None

    def __repr__(self) -> str:
        return f"DatabaseSettings(url={'***' if self.url else None}, secret_arn={self.secret_arn!r})"

    @classmethod
    def read(cls, reader: EnvironReader) -> "DatabaseSettings":
        """Reads DATABASE_URL or DATABASE_SECRET_ARN."""
        url, secret_arn = reader.text("DATABASE_URL"), reader.text("DATABASE_SECRET_ARN")
        if url and secret_arn:
            reader.problem(
                "both DATABASE_URL and DATABASE_SECRET_ARN are set: keep one, so that it is clear which counts"
            )
        elif not url and not secret_arn:
            reader.problem("neither DATABASE_URL nor DATABASE_SECRET_ARN is set: one must say where Postgres is")
        return cls(url, secret_arn)


@dataclass(frozen=True, slots=True)
class DatabaseFunctionSettings:
    """Settings of a function that needs only Postgres, such as SignalLab."""

    database: DatabaseSettings
    cloud_endpoint_url: str | None

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> "DatabaseFunctionSettings":
        """Returns the settings. Raises ConfigurationError."""
        return read_settings(
            environ, lambda reader: cls(DatabaseSettings.read(reader), reader.url("CLOUD_ENDPOINT_URL"))
        )


@dataclass(frozen=True, slots=True)
class ApiTokenSettings:
    """Where the API's bearer token is: exactly one of the two fields is set."""

    token: str | None
    secret_arn: str | None

    def __repr__(self) -> str:
        return f"ApiTokenSettings(token={'***' if self.token else None}, secret_arn={self.secret_arn!r})"

    @classmethod
    def read(cls, reader: EnvironReader) -> "ApiTokenSettings":
        """Reads API_TOKEN or API_TOKEN_SECRET_ARN."""
        token, secret_arn = reader.text("API_TOKEN"), reader.text("API_TOKEN_SECRET_ARN")
        if token and secret_arn:
            reader.problem(
                "both API_TOKEN and API_TOKEN_SECRET_ARN are set: keep one, so that it is clear which counts"
            )
        elif not token and not secret_arn:
            reader.problem(
                "neither API_TOKEN nor API_TOKEN_SECRET_ARN is set: one must say which token the API asks for"
            )
        return cls(token, secret_arn)


@dataclass(frozen=True, slots=True)
class OpsApiSettings:
    """Settings of OpsApiFunction; durations are in seconds."""

    database: DatabaseSettings
    cloud_endpoint_url: str | None
    api_token: ApiTokenSettings
    health_max_pending_age_seconds: float
    """The age of the oldest pending delivery from which /health reports that the pipeline is failing."""
    retrial_function: str
    """The name of the function that decides again and tries policies."""

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> "OpsApiSettings":
        """Returns the settings. Raises ConfigurationError."""
        return read_settings(
            environ,
            lambda reader: cls(
                database=DatabaseSettings.read(reader),
                cloud_endpoint_url=reader.url("CLOUD_ENDPOINT_URL"),
                api_token=ApiTokenSettings.read(reader),
                health_max_pending_age_seconds=reader.number(
                    "HEALTH_MAX_PENDING_AGE_SECONDS", 300, minimum=1, maximum=604_800
                ),
                retrial_function=_function_name(reader, "RETRIAL_FUNCTION"),
            ),
        )


def _function_name(reader: EnvironReader, name: str) -> str:
    """Reads the name of a function that another one starts or asks."""
    if (text := reader.text(name)) is None:
        reader.problem(f"{name} is not set: it must name the function that is to be run")
    return text or ""


@dataclass(frozen=True, slots=True)
class OperationsSettings:
    """Settings of OperationsFunction."""

    database: DatabaseSettings
    cloud_endpoint_url: str | None
    ingestion_function: str
    """The name of the function that does a backfill's pieces."""

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> "OperationsSettings":
        """Returns the settings. Raises ConfigurationError."""
        return read_settings(
            environ,
            lambda reader: cls(
                DatabaseSettings.read(reader),
                reader.url("CLOUD_ENDPOINT_URL"),
                _function_name(reader, "INGESTION_FUNCTION"),
            ),
        )


@dataclass(frozen=True, slots=True)
class TraceSettings:
    """Settings of TraceFunction."""

    database: DatabaseSettings
    cloud_endpoint_url: str | None
    endpoint: str
    """The whole URL to which an OTLP receiver takes traces over HTTP."""
    secret_arn: str | None
    """The secret that holds headers for the receiver; None sends none."""
    sample_ratio: float
    """The share of events whose spans are exported whatever becomes of them."""

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> "TraceSettings":
        """Returns the settings. Raises ConfigurationError."""

        def build(reader: EnvironReader) -> TraceSettings:
            endpoint = reader.url("TRACES_ENDPOINT")
            if endpoint is None:
                reader.problem("TRACES_ENDPOINT is not set: it must be the URL of an OTLP receiver's traces")
            return cls(
                database=DatabaseSettings.read(reader),
                cloud_endpoint_url=reader.url("CLOUD_ENDPOINT_URL"),
                endpoint=endpoint or "",
                secret_arn=reader.text("TRACES_SECRET_ARN"),
                sample_ratio=reader.number("TRACES_SAMPLE_RATIO", 1, minimum=0, maximum=1),
            )

        return read_settings(environ, build)


@dataclass(frozen=True, slots=True)
class CommandApiSettings:
    """Settings of CommandApiFunction."""

    database: DatabaseSettings
    cloud_endpoint_url: str | None
    api_token: ApiTokenSettings
    ingestion_function: str
    relay_function: str
    operations_function: str
    """The names of the functions whose runs it starts."""

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> "CommandApiSettings":
        """Returns the settings. Raises ConfigurationError."""
        return read_settings(
            environ,
            lambda reader: cls(
                database=DatabaseSettings.read(reader),
                cloud_endpoint_url=reader.url("CLOUD_ENDPOINT_URL"),
                api_token=ApiTokenSettings.read(reader),
                ingestion_function=_function_name(reader, "INGESTION_FUNCTION"),
                relay_function=_function_name(reader, "RELAY_FUNCTION"),
                operations_function=_function_name(reader, "OPERATIONS_FUNCTION"),
            ),
        )


@dataclass(frozen=True, slots=True)
class MigrationSettings:
    """Settings of MigrationFunction."""

    database: DatabaseSettings
    cloud_endpoint_url: str | None
    subscriptions: Mapping[str, Subscription] | None
    """The wanted subscriptions by name; None leaves the subscriptions as they are."""

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> "MigrationSettings":
        """Returns the settings. Raises ConfigurationError."""
        return read_settings(
            environ,
            lambda reader: cls(DatabaseSettings.read(reader), reader.url("CLOUD_ENDPOINT_URL"), _subscriptions(reader)),
        )


RETENTION_SETTINGS: Final = {
    "decisions": "DECISION_RETENTION_DAYS",
    "events": "EVENT_RETENTION_DAYS",
    "raw_payloads": "RAW_PAYLOAD_RETENTION_DAYS",
    "processed_events": "PROCESSED_EVENT_RETENTION_DAYS",
    "delivery_failures": "DELIVERY_FAILURE_RETENTION_DAYS",
    "consume_failures": "CONSUME_FAILURE_RETENTION_DAYS",
    "audit": "AUDIT_RETENTION_DAYS",
}
"""The setting for each of control_plane.platform.expiry.EXPIRING. Dead letters go by that of events."""


@dataclass(frozen=True, slots=True)
class MaintenanceSettings:
    """Settings of MaintenanceFunction; durations are in days."""

    database: DatabaseSettings
    cloud_endpoint_url: str | None
    retention_days: Mapping[str, int]
    """By what of control_plane.platform.expiry.EXPIRING expires; what is not in it is kept for ever."""

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> "MaintenanceSettings":
        """Returns the settings. Raises ConfigurationError."""

        def build(reader: EnvironReader) -> MaintenanceSettings:
            # The minimum is longer than SQS keeps a message, even with a redrive: deleting an event also deletes the
            # record that it was processed.
            days = {
                what: reader.integer(name, 0, minimum=30, maximum=36_500) for what, name in RETENTION_SETTINGS.items()
            }
            days["raw_payloads"] = days["raw_payloads"] or days["events"]
            days["dead_letters"] = days["events"]
            return cls(
                database=DatabaseSettings.read(reader),
                cloud_endpoint_url=reader.url("CLOUD_ENDPOINT_URL"),
                retention_days={what: kept for what, kept in days.items() if kept},
            )

        return read_settings(environ, build)


@dataclass(frozen=True, slots=True)
class DeadLetterSettings:
    """Settings of DeadLetterFunction."""

    database: DatabaseSettings
    cloud_endpoint_url: str | None
    queues: Mapping[str, str | None]
    """By a queue's name the subscription whose consumer gave up on what it holds; None for failed invocations."""

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> "DeadLetterSettings":
        """Returns the settings. Raises ConfigurationError."""

        def build(reader: EnvironReader) -> DeadLetterSettings:
            subscriptions = _queue_of_each_subscription(
                reader, "DEAD_LETTER_QUEUES", '{"signal_lab": "acp-dead-letters"}'
            )
            failed = reader.text("FAILED_INVOCATIONS_QUEUE")
            queues: dict[str, str | None] = {queue: name for name, queue in subscriptions.items()}
            return cls(
                database=DatabaseSettings.read(reader),
                cloud_endpoint_url=reader.url("CLOUD_ENDPOINT_URL"),
                queues=queues | ({failed: None} if failed else {}),
            )

        return read_settings(environ, build)


@dataclass(frozen=True, slots=True)
class IngestionSettings:
    """Settings of IngestionFunction; durations are in seconds."""

    database: DatabaseSettings
    cloud_endpoint_url: str | None
    symbols: tuple[str, ...]
    market_data_url: str | None
    breaker_failure_threshold: int
    breaker_cool_down_seconds: float

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> "IngestionSettings":
        """Returns the settings. Raises ConfigurationError."""

        def build(reader: EnvironReader) -> IngestionSettings:
            symbols: tuple[str, ...] = ()
            try:
                symbols = parse_symbols((reader.text("SYMBOLS") or "").split(","), name="SYMBOLS")
            except ConfigurationError as error:
                reader.problem(str(error))
            return cls(
                database=DatabaseSettings.read(reader),
                cloud_endpoint_url=reader.url("CLOUD_ENDPOINT_URL"),
                symbols=symbols,
                market_data_url=reader.url("MARKET_DATA_URL"),
                breaker_failure_threshold=breaker_failure_threshold(reader),
                breaker_cool_down_seconds=breaker_cool_down_seconds(reader),
            )

        return read_settings(environ, build)


@dataclass(frozen=True, slots=True)
class RelaySettings:
    """Settings of RelayFunction; durations are in seconds."""

    database: DatabaseSettings
    cloud_endpoint_url: str | None
    subscription_queue_urls: Mapping[str, str]
    """The queue of each subscription that this relay delivers to."""
    max_delivery_attempts: int
    linger_seconds: float
    claim_size: int
    publish_concurrency: int
    lease_seconds: float
    breaker_failure_threshold: int
    breaker_cool_down_seconds: float
    traces_ratio: float
    """The share of events whose spans are exported; 0 where none are."""

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> "RelaySettings":
        """Returns the settings. Raises ConfigurationError."""
        return read_settings(
            environ,
            lambda reader: cls(
                database=DatabaseSettings.read(reader),
                cloud_endpoint_url=reader.url("CLOUD_ENDPOINT_URL"),
                subscription_queue_urls=_queue_of_each_subscription(
                    reader, "SUBSCRIPTION_QUEUE_URLS", '{"signal_lab": "https://…"}'
                ),
                max_delivery_attempts=reader.integer("MAX_DELIVERY_ATTEMPTS", 5, minimum=1, maximum=100),
                linger_seconds=reader.number("RELAY_LINGER_SECONDS", 0, minimum=0, maximum=MAX_LINGER_SECONDS),
                claim_size=reader.integer("RELAY_CLAIM_SIZE", 500, minimum=1, maximum=10_000),
                publish_concurrency=reader.integer("RELAY_PUBLISH_CONCURRENCY", 4, minimum=1, maximum=64),
                lease_seconds=reader.number("LEASE_SECONDS", 30, minimum=1, maximum=900),
                breaker_failure_threshold=breaker_failure_threshold(reader),
                breaker_cool_down_seconds=breaker_cool_down_seconds(reader),
                traces_ratio=reader.number("TRACES_SAMPLE_RATIO", 0, minimum=0, maximum=1),
            ),
        )


def parse_symbols(given: object, *, name: str) -> tuple[str, ...]:
    """Returns symbols in upper case, each once, in the given order.

    Raises ConfigurationError that names the first bad one.
    """
    if not isinstance(given, list | tuple) or not all(isinstance(symbol, str) for symbol in given):
        raise ConfigurationError([f"{name} is {given!r}: it must be a list of symbols"])
    symbols = tuple(dict.fromkeys(symbol.strip().upper() for symbol in given if symbol.strip()))
    if not symbols:
        raise ConfigurationError([f"{name} is empty: name at least one symbol, such as AAPL"])
    if len(symbols) > MAX_SYMBOLS:
        raise ConfigurationError([f"{name} holds {len(symbols)} symbols: {MAX_SYMBOLS} are the most one run takes"])
    odd = [symbol for symbol in symbols if not _is_symbol(symbol)]
    if odd:
        raise ConfigurationError([f"{name} holds {odd[0]!r}, which is no symbol: letters, digits and . - = ^ & only"])
    return symbols


def _is_symbol(text: str) -> bool:
    characters_fit = all(character.isalnum() or character in ".-=^&" for character in text)
    return len(text) <= 32 and text.isascii() and characters_fit and any(map(str.isalnum, text))


def _queue_of_each_subscription(reader: EnvironReader, name: str, example: str) -> Mapping[str, str]:
    text = reader.text(name)
    kind = "queue URLs" if name.endswith("URLS") else "queue names"
    if text is None:
        reader.problem(f"{name} is not set: it must map subscriptions to {kind}, as in {example}")
        return {}
    try:
        mapping = json.loads(text)
    except ValueError:
        mapping = None
    if (
        not isinstance(mapping, dict)
        or not mapping
        or not all(isinstance(url, str) and url for url in mapping.values())
    ):
        reader.problem(f"{name} is {text!r}: it must be a JSON object that maps subscriptions to {kind}")
        return {}
    return mapping


def _subscriptions(reader: EnvironReader) -> Mapping[str, Subscription] | None:
    text = reader.text("SUBSCRIPTIONS")
    if text is None:
        return None
    try:
        mapping = json.loads(text)
    except ValueError:
        mapping = None
    subscriptions = (
        {name: _subscription(name, value) for name, value in mapping.items()} if isinstance(mapping, dict) else {}
    )
    sound = {name: one for name, one in subscriptions.items() if one is not None}
    if not sound or len(sound) < len(subscriptions):
        culprit = next((f", where {name!r} is wrong" for name, one in subscriptions.items() if one is None), "")
        reader.problem(
            f"SUBSCRIPTIONS is {text!r}{culprit}: it must map at least one subscription to its topic, as in "
            '{"signal_lab": "market.ticks"}, or to {"topic": "market.ticks", "from": "beginning"}'
        )
    return sound


def _subscription(name: str, value: object) -> Subscription | None:
    options = {"topic": value} if isinstance(value, str) else value
    if not isinstance(options, dict) or not options.keys() <= {"topic", "from"}:
        return None
    topic, start = options.get("topic"), options.get("from", "now")
    if not isinstance(topic, str) or not is_topic(topic) or not is_subscription_name(name):
        return None
    return Subscription(topic, from_beginning=start == "beginning") if start in ("now", "beginning") else None


def breaker_failure_threshold(reader: EnvironReader) -> int:
    """Reads BREAKER_FAILURE_THRESHOLD."""
    return reader.integer("BREAKER_FAILURE_THRESHOLD", 3, minimum=1, maximum=100)


def breaker_cool_down_seconds(reader: EnvironReader) -> float:
    """Reads BREAKER_COOL_DOWN_SECONDS."""
    return reader.number("BREAKER_COOL_DOWN_SECONDS", 30, minimum=0.1, maximum=3600)


def parse_linger_seconds(given: object, *, default: float) -> float:
    """Returns the event's own linger_seconds, or the default. Raises ConfigurationError."""
    if given is None:
        return default
    if isinstance(given, bool) or not isinstance(given, int | float) or not 0 <= given <= MAX_LINGER_SECONDS:
        raise ConfigurationError(
            [f"linger_seconds of the event is {given!r}: it must be a number from 0 to {MAX_LINGER_SECONDS}"]
        )
    return float(given)
