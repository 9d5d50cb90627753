"""Settings of deciding: of DecisionFunction and AgentFunction, and of the model behind agents."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from control_plane.platform.environ import EnvironReader, read_settings
from control_plane.platform.settings import DatabaseSettings, breaker_cool_down_seconds, breaker_failure_threshold

MAX_AGENT_LEASE_SECONDS = 90


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """Which model answers where an agent has one behind it. Without a provider agents are deterministic."""

    provider: str
    """deterministic, bedrock or openai (an endpoint that is compatible with OpenAI's chat completions)."""
    model_id: str
    url: str | None
    """Where the provider is; None is Bedrock itself."""
    secret_arn: str | None
    """The secret that holds the endpoint's key; None sends none."""
    most_output_tokens: int
    output: str
    """How the answer's shape is asked for: json_schema or tool."""
    price_micros: tuple[int, int] | None
    """What 1,000 tokens of input and of output cost; None looks it up by the model's name."""

    @classmethod
    def read(cls, reader: EnvironReader) -> "ModelSettings":
        """From MODEL_PROVIDER, MODEL_ID, MODEL_URL, MODEL_SECRET_ARN, MODEL_MAX_TOKENS, MODEL_OUTPUT and
        MODEL_PRICE_MICROS.
        """
        provider = reader.text("MODEL_PROVIDER") or "deterministic"
        model_id, secret_arn = reader.text("MODEL_ID") or "", reader.text("MODEL_SECRET_ARN")
        url = reader.url("MODEL_URL")
        output = reader.text("MODEL_OUTPUT") or ("json_schema" if provider == "openai" else "tool")
        if provider not in {"deterministic", "bedrock", "openai"}:
            reader.problem(f"MODEL_PROVIDER is {provider!r}: it must be deterministic, bedrock or openai")
        elif provider != "deterministic" and not _MODEL_ID.fullmatch(model_id):
            reader.problem(
                f"MODEL_ID is {model_id!r}: it must name the model, by at most 122 letters, digits and _ . : / -"
            )
        if provider == "openai" and url is None:
            reader.problem("MODEL_URL is not set: MODEL_PROVIDER openai needs one, such as https://api.openai.com/v1")
        if url is not None:
            _check_model_url(reader, url, has_key=secret_arn is not None)
        if output not in ({"json_schema", "tool"} if provider == "openai" else {"tool"}):
            reader.problem(f"MODEL_OUTPUT is {output!r}: it must be tool, or with MODEL_PROVIDER openai json_schema")
        return cls(
            provider=provider,
            model_id=model_id,
            url=url,
            secret_arn=secret_arn,
            most_output_tokens=reader.integer("MODEL_MAX_TOKENS", 1024, minimum=16, maximum=65_536),
            output=output,
            price_micros=_price(reader),
        )


@dataclass(frozen=True, slots=True)
class DecisionSettings:
    """Settings of DecisionFunction; durations are in seconds."""

    database: DatabaseSettings
    cloud_endpoint_url: str | None
    daily_budget_micros: int
    """Most that all agents together may cost on a day (UTC), in millionths of a US dollar."""
    lease_seconds: float
    """How long a decision is held between two of its steps."""
    call_wait_seconds: float
    """How long an agent's call may wait for its agent before its own time begins."""
    shadow_playbooks: frozenset[str]
    """Playbooks whose decisions are judged and never released."""
    model: ModelSettings
    """The model behind agents, as AgentFunction has it: what a call may cost is reserved here."""

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> "DecisionSettings":
        """Raises ConfigurationError."""
        return read_settings(
            environ,
            lambda reader: cls(
                database=DatabaseSettings.read(reader),
                cloud_endpoint_url=reader.url("CLOUD_ENDPOINT_URL"),
                daily_budget_micros=round(reader.number("DAILY_BUDGET_USD", 0, minimum=0, maximum=100_000) * 1_000_000),
                lease_seconds=reader.number("DECISION_LEASE_SECONDS", 60, minimum=1, maximum=90),
                call_wait_seconds=reader.number("CALL_WAIT_SECONDS", 90, minimum=1, maximum=900),
                shadow_playbooks=frozenset(
                    name for name in map(str.strip, (reader.text("SHADOW_PLAYBOOKS") or "").split(",")) if name
                ),
                model=ModelSettings.read(reader),
            ),
        )


@dataclass(frozen=True, slots=True)
class AgentSettings:
    """Settings of AgentFunction; durations are in seconds."""

    database: DatabaseSettings
    cloud_endpoint_url: str | None
    lease_seconds: float
    """How long a call may take, if its decision gives it as much: then its outcome is unknown."""
    model: ModelSettings
    breaker_failure_threshold: int
    breaker_cool_down_seconds: float

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> "AgentSettings":
        """Raises ConfigurationError."""
        return read_settings(
            environ,
            lambda reader: cls(
                database=DatabaseSettings.read(reader),
                cloud_endpoint_url=reader.url("CLOUD_ENDPOINT_URL"),
                lease_seconds=reader.number("AGENT_LEASE_SECONDS", 60, minimum=1, maximum=MAX_AGENT_LEASE_SECONDS),
                model=ModelSettings.read(reader),
                breaker_failure_threshold=breaker_failure_threshold(reader),
                breaker_cool_down_seconds=breaker_cool_down_seconds(reader),
            ),
        )


_MODEL_ID = re.compile(r"[A-Za-z0-9_.:/-]{1,122}")
"""With ``model:`` before it, it is a switch's scope, which has at most 128 characters."""


def _check_model_url(reader: EnvironReader, url: str, *, has_key: bool) -> None:
    parts = urlsplit(url)
    if parts.username is not None or parts.query or parts.fragment:
        reader.problem("MODEL_URL holds a password, a query or a fragment: put the key into MODEL_SECRET_ARN's secret")
    own = {"localhost", "127.0.0.1", "::1", "host.docker.internal"}
    if has_key and parts.scheme == "http" and parts.hostname not in own:
        reader.problem("MODEL_URL is http://, which shows MODEL_SECRET_ARN's key to the network: it must be https://")


def _price(reader: EnvironReader) -> tuple[int, int] | None:
    text = reader.text("MODEL_PRICE_MICROS")
    if text is None:
        return None
    found = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
    if found is None:
        reader.problem(
            f"MODEL_PRICE_MICROS is {text!r}: it must be the millionths of a US dollar that 1,000 tokens of input and "
            "of output cost, as in 3000/15000"
        )
        return None
    return int(found[1]), int(found[2])
