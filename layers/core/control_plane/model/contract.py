"""The event contract: docs/event_contract.md in code. What does not fit it raises ContractViolation."""

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, ClassVar, Final, Self
from uuid import UUID

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    WithJsonSchema,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from control_plane.model.errors import ContractViolation
from control_plane.model.ids import canonical_instant, derive_event_id, is_storable_text, storable

EVENT_TYPE_PATTERN: Final = r"^[A-Z][A-Z0-9]*(_[A-Z0-9]+)*$"
MARKET_TICKS: Final = "market.ticks"
SYSTEM_EVENTS: Final = "system.events"

_RFC_3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?(Z|[+-]\d\d:\d\d)", re.ASCII | re.IGNORECASE)


def _storable_text(text: str) -> str:
    if not is_storable_text(text):
        raise PydanticCustomError("text", "holds a character that JSON text cannot store")
    return text


def _rfc_3339(value: object) -> object:
    # Pydantic would take a number for seconds or milliseconds, whichever looks likely, and cut nanoseconds off.
    if isinstance(value, str) and not _RFC_3339.fullmatch(value):
        raise PydanticCustomError(
            "instant", "is not an instant as in 2026-01-05T14:32:00Z, with a time zone and at most six decimals"
        )
    if not isinstance(value, str | datetime):
        raise PydanticCustomError("instant", "is not an instant, written as text")
    return value


def _in_utc(instant: datetime) -> datetime:
    try:
        return instant.astimezone(UTC)
    except OverflowError:
        raise PydanticCustomError("instant", "is out of range in UTC") from None


def _nonzero(trace_id: UUID) -> UUID:
    if not trace_id.int:
        raise PydanticCustomError("trace_id", "is all zeros, which W3C Trace Context reserves")
    return trace_id


def _whole(value: object) -> object:
    return int(value) if isinstance(value, float) and value.is_integer() else value  # JSON's 1.0 is its 1


type Name = Annotated[str, Field(min_length=1, max_length=128), AfterValidator(_storable_text)]
"""Of what is looked up by: Postgres indexes no text of more than about 2,700 bytes."""
type Text = Annotated[str, Field(min_length=1, max_length=1024), AfterValidator(_storable_text)]
type FiniteNumber = Annotated[float, Field(strict=True, allow_inf_nan=False)]
type WholeNumber = Annotated[int, Field(strict=True, ge=0, le=2**53 - 1), BeforeValidator(_whole)]
type Instant = Annotated[
    AwareDatetime,
    BeforeValidator(_rfc_3339),
    AfterValidator(_in_utc),
    PlainSerializer(canonical_instant, return_type=str),
    WithJsonSchema(
        {
            "type": "string",
            "format": "date-time",
            "pattern": r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{6})?Z$",
        }
    ),
]


class Payload(BaseModel):
    """Domain data of one (event_type, schema_version). A new one is a subclass; ``PAYLOADS`` finds it by its name."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    event_type: ClassVar[str]
    schema_version: ClassVar[int]
    topic: ClassVar[str]


class MarketTick(Payload):
    """One closed bar of one instrument; prices in ``currency``, ``price`` being the close."""

    event_type = "MARKET_TICK_INGESTED"
    schema_version = 1
    topic = MARKET_TICKS

    price: FiniteNumber
    open: FiniteNumber
    high: FiniteNumber
    low: FiniteNumber
    volume: WholeNumber
    currency: Name
    interval: Annotated[str, Field(pattern=r"^[1-9][0-9]{0,3}(m|h|d|wk|mo)$")]


class SourceFetchFailed(Payload):
    """A symbol could not be had; ``kind`` says whose fault it was (control_plane.model.errors.SourceError)."""

    event_type = "SOURCE_FETCH_FAILED"
    schema_version = 1
    topic = SYSTEM_EVENTS

    symbol: Text
    kind: Text
    reason: Text


class SignalRejected(Payload):
    """A bar broke the contract: the field, the value as text, and why. What the source said is in raw_payloads."""

    event_type = "SIGNAL_REJECTED"
    schema_version = 1
    topic = SYSTEM_EVENTS

    symbol: Text
    rejected_event_type: Text
    field: Text
    value: Annotated[str, Field(max_length=1024), AfterValidator(_storable_text)]
    reason: Text


class SourceGapDetected(Payload):
    """The source no longer has what was missed between ``since`` and ``until``."""

    event_type = "SOURCE_GAP_DETECTED"
    schema_version = 1
    topic = SYSTEM_EVENTS

    symbol: Text
    since: Instant
    until: Instant


PAYLOADS: Final[Mapping[tuple[str, int], type[Payload]]] = {
    (model.event_type, model.schema_version): model
    for model in (MarketTick, SourceFetchFailed, SignalRejected, SourceGapDetected)
}


class Event(BaseModel):
    """One immutable fact. Compare two by ``event_id``: it is derived from what they say."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    event_id: UUID
    event_type: Annotated[str, Field(pattern=EVENT_TYPE_PATTERN, max_length=128)]
    source: Name
    entity_id: Name | None
    entity_type: Name | None
    occurred_at: Instant
    ingested_at: Instant
    schema_version: Annotated[int, Field(strict=True, ge=1), BeforeValidator(_whole)]
    trace_id: Annotated[
        UUID,
        AfterValidator(_nonzero),
        WithJsonSchema({"type": "string", "format": "uuid", "not": {"const": str(UUID(int=0))}}),
    ]
    payload: dict[str, Any]

    @field_validator("payload")
    @classmethod
    def _payload_is_storable(cls, payload: dict[str, Any]) -> dict[str, Any]:
        stored: dict[str, Any] = storable(payload)
        return stored

    @model_validator(mode="after")
    def _fits_its_type(self) -> Self:
        model = PAYLOADS.get((self.event_type, self.schema_version))
        if model is None:
            raise ContractViolation(
                "no such type and schema_version in this contract",
                field="event_type",
                value=f"{self.event_type} v{self.schema_version}",
            )
        # The payload in the shape its model gives it, so that equal observations are equal events.
        object.__setattr__(self, "payload", _validated(model, self.payload, "payload").model_dump(mode="json"))
        derived = _event_id(self)
        if derived != self.event_id:
            raise ContractViolation(
                f"is not the id of this observation, which is {derived}", field="event_id", value=str(self.event_id)
            )
        return self

    @property
    def topic(self) -> str:
        """Where an event of this type is published."""
        return PAYLOADS[self.event_type, self.schema_version].topic

    def to_message(self) -> dict[str, Any]:
        """The event as JSON, as stored in the outbox and sent to consumers."""
        return self.model_dump(mode="json")


def new_event(
    payload: Payload,
    *,
    source: str,
    entity_id: str | None,
    entity_type: str | None,
    occurred_at: datetime,
    ingested_at: datetime,
    trace_id: UUID,
) -> Event:
    """The event that states ``payload``, with its derived id. Raises ContractViolation."""
    return _validated(
        Event,
        {
            "event_id": derive_event_id(
                source=source,
                event_type=payload.event_type,
                entity_id=entity_id,
                occurred_at=occurred_at,
                schema_version=payload.schema_version,
                payload=payload.model_dump(mode="json"),
            ),
            "event_type": payload.event_type,
            "source": source,
            "entity_id": entity_id,
            "entity_type": entity_type,
            "occurred_at": occurred_at,
            "ingested_at": ingested_at,
            "schema_version": payload.schema_version,
            "trace_id": trace_id,
            "payload": payload.model_dump(mode="json"),
        },
    )


def parse_payload[P: Payload](model: type[P], data: Mapping[str, Any]) -> P:
    """A payload from what a source said. Raises ContractViolation that names the field and the value."""
    return _validated(model, dict(data), "payload")


def parse_event(message: str | bytes | Mapping[str, Any]) -> Event:
    """An event from a message's body. Raises ContractViolation, also where it is no JSON or its id is not its own."""
    if isinstance(message, str | bytes):
        try:
            message = json.loads(message)
        except (ValueError, RecursionError) as error:
            raise ContractViolation(f"is not JSON ({error})", field="message", value=message) from error
    if not isinstance(message, Mapping):
        raise ContractViolation("is not a JSON object", field="message", value=message)
    return _validated(Event, dict(message))


def _event_id(event: Event) -> UUID:
    return derive_event_id(
        source=event.source,
        event_type=event.event_type,
        entity_id=event.entity_id,
        occurred_at=event.occurred_at,
        schema_version=event.schema_version,
        payload=event.payload,
    )


def _validated[M: BaseModel](model: type[M], data: dict[str, Any], prefix: str = "") -> M:
    try:
        return model.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        location = ".".join(str(part) for part in (prefix, *first["loc"]) if part != "")
        value = None if first["type"] == "missing" else first["input"]
        raise ContractViolation(first["msg"], field=location or model.__name__, value=value) from None
