"""How a request is answered, and what the endpoint says the answer is."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

KINDS: Final = {
    "right": "an answer in the schema",
    "lie": "an answer in the schema whose every choice is another one",
    "wrong_schema": "JSON of another shape",
    "extra_field": "an answer in the schema with one more field",
    "prose": "text that is no JSON",
    "injection": "an answer in the schema whose texts repeat what the request's data says",
    "duplicate_keys": "an answer in which a key is given twice",
    "nan": "an answer with NaN for its numbers",
    "infinity": "an answer with 1e999 for its numbers",
    "deep": "an answer nested a thousand levels deep",
    "long": "an answer of 100 kB",
    "huge": "an HTTP answer of 10 MB",
    "out_of_tokens": "an answer that ends at the token limit",
    "filtered": "no answer: a content filter stepped in",
    "empty": "no answer, and no reason",
    "no_usage": "an answer in the schema, and no usage",
    "odd_usage": "an answer in the schema, and a usage that is no number",
    "much_usage": "an answer in the schema, charged a thousand times over",
    "hang": "nothing, until the client goes away",
    "drip": "an answer in the schema, a byte at a time",
    "cut_off": "half of an answer, and then the connection's end",
    "close": "the connection's end",
    "garbage": "200 and HTML",
    "throttled": "429",
    "error": "500",
    "unavailable": "503",
    "denied": "403, with a text that quotes the key",
    "redirect": "307 to another path",
    "echo_key": "an answer in the schema whose texts repeat the Authorization header",
}
"""Every kind, and what the client gets."""
UNCHARGED: Final = frozenset({"throttled", "unavailable", "denied", "redirect"})
"""What no provider charges for: nothing was generated. All else costs, whatever the client sees of it."""


@dataclass(frozen=True, slots=True)
class Behaviour:
    """How requests are answered: the kind, the answer itself where it is not to be made from the schema, a delay."""

    kind: str = "right"
    answer: Any = None
    latency_ms: float = 0
    drip_ms: float = 20
    """Between the bytes of a drip."""

    @classmethod
    def parse(cls, said: Mapping[str, Any]) -> Self:
        """Raises ValueError for a kind that there is none of, TypeError for a field."""
        behaviour = cls(**said)
        if behaviour.kind not in KINDS:
            raise ValueError(f"there is no behaviour {behaviour.kind!r}: {', '.join(KINDS)}")
        return behaviour
