"""What models cost. A model without a price is refused: nothing could be reserved for it."""

import re
from dataclasses import dataclass
from typing import Final

from control_plane.decisions.models.conversation import Usage
from control_plane.model.errors import ControlPlaneError

OVERHEAD_TOKENS: Final = 2048
"""Most tokens that a provider adds to a request by itself: role markers, and its own text about tools."""

_REGIONAL: Final = re.compile(r"^(us|eu|apac|global|us-gov)\.")
"""Bedrock's cross-region inference profiles: the same model under a prefix."""


class UnpricedModel(ControlPlaneError):
    """Raised for a model of which the table does not know the price."""

    def __init__(self, model: str) -> None:
        self.model = model
        super().__init__(
            f"the model {model!r} has no price, so nothing can be reserved for it: set MODEL_PRICE_MICROS to what "
            "1,000 tokens of input and of output cost in millionths of a US dollar, as in 3000/15000"
        )


@dataclass(frozen=True, slots=True)
class Price:
    """Millionths of a US dollar for 1,000 tokens."""

    input_micros: int
    output_micros: int

    def of(self, usage: Usage) -> int:
        """Returns what a usage costs, rounded up."""
        thousandths = usage.input_tokens * self.input_micros + usage.output_tokens * self.output_micros
        return -(-thousandths // 1000)

    def worst_case(self, request_bytes: int, most_output_tokens: int) -> int:
        """Returns the most that one request can cost: no tokenizer makes more tokens of a text than it has bytes."""
        return self.of(Usage(request_bytes + OVERHEAD_TOKENS, most_output_tokens))


PRICES: Final = {
    # Amazon Bedrock, on demand
    "amazon.nova-micro-v1:0": Price(35, 140),
    "amazon.nova-lite-v1:0": Price(60, 240),
    "amazon.nova-pro-v1:0": Price(800, 3200),
    "anthropic.claude-3-5-haiku-20241022-v1:0": Price(800, 4000),
    "anthropic.claude-haiku-4-5-20251001-v1:0": Price(1100, 5500),
    "anthropic.claude-sonnet-4-20250514-v1:0": Price(3000, 15_000),
    "anthropic.claude-sonnet-4-5-20250929-v1:0": Price(3300, 16_500),
    # OpenAI
    "gpt-4o": Price(2500, 10_000),
    "gpt-4o-mini": Price(150, 600),
    "gpt-4.1": Price(2000, 8000),
    "gpt-4.1-mini": Price(400, 1600),
    "gpt-5": Price(1250, 10_000),
    "gpt-5-mini": Price(250, 2000),
    # scripts/model_endpoint
    "stand-in": Price(1000, 5000),
}
"""List prices, the dearest region's. MODEL_PRICE_MICROS counts before them, for whoever pays others."""


def price_of(model: str) -> Price:
    """Returns a model's price. Raises UnpricedModel."""
    price = PRICES.get(model) or PRICES.get(_REGIONAL.sub("", model))
    if price is None:
        raise UnpricedModel(model)
    return price
