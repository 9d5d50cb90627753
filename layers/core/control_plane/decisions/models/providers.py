"""From settings to the model that agents share."""

from collections.abc import Callable
from dataclasses import dataclass

from control_plane.decisions.models.breaker import GuardedClient
from control_plane.decisions.models.conversation import ModelClient
from control_plane.decisions.models.prices import Price, UnpricedModel, price_of
from control_plane.decisions.settings import ModelSettings
from control_plane.model.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class PricedModel:
    """A model that may be asked: its client, and what it costs."""

    client: ModelClient
    price: Price


def connect_model(
    settings: ModelSettings,
    read_secret: Callable[[str], str],
    *,
    failure_threshold: int = 3,
    cool_down_seconds: float = 30.0,
) -> PricedModel | None:
    """Returns the model that the settings name; None where agents are deterministic. Nothing is opened or read yet.

    ``read_secret`` returns the text of a secret, by its ARN. Raises ConfigurationError for a model without a price.
    """
    if settings.provider == "deterministic":
        return None
    try:
        price = price_of(settings.model_id) if settings.price_micros is None else Price(*settings.price_micros)
    except UnpricedModel as error:
        raise ConfigurationError([str(error)]) from None
    return PricedModel(
        GuardedClient(
            _client(settings, read_secret), failure_threshold=failure_threshold, cool_down_seconds=cool_down_seconds
        ),
        price,
    )


def _client(settings: ModelSettings, read_secret: Callable[[str], str]) -> ModelClient:
    # Imported here, because most deployments have one provider or none, and every cold start imports this module.
    if settings.provider == "bedrock":
        from control_plane.decisions.models.converse import ConverseClient  # noqa: PLC0415

        return ConverseClient(
            settings.model_id, most_output_tokens=settings.most_output_tokens, endpoint_url=settings.url
        )
    from control_plane.decisions.models.chat import ChatClient  # noqa: PLC0415

    assert settings.url is not None
    secret_arn = settings.secret_arn
    return ChatClient(
        settings.url,
        settings.model_id,
        most_output_tokens=settings.most_output_tokens,
        key=None if secret_arn is None else lambda: read_secret(secret_arn),
        output="tool" if settings.output == "tool" else "json_schema",
    )
