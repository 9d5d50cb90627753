"""The event contract of docs/event_contract.md in code; whatever breaks it raises ContractViolation."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, ClassVar, Final, Self
from uuid import UUID

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BeforeValidator,
    Field,
    PlainSerializer,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from control_plane.model.errors import ContractViolation
from control_plane.model.ids import canonical_instant, derive_event_id, is_storable_text, storable
from control_plane.model.late import LateModel
from control_plane.model.text import has_invisible

EVENT_TYPE_PATTERN: Final = r"^[A-Z][A-Z0-9]*(_[A-Z0-9]+)*$"
SYSTEM_EVENTS: Final = "system.events"
MAX_REVISION: Final = 2**31 - 1
"""The largest revision that Postgres' integer type holds."""

_RFC_3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?(Z|[+-]\d\d:\d\d)", re.ASCII | re.IGNORECASE)


def _storable_text(text: str) -> str:
    if not is_storable_text(text):
        raise PydanticCustomError("text", "holds a character that JSON text cannot store")
    return text


def _visible_text(text: str) -> str:
    if has_invisible(_storable_text(text)):
        raise PydanticCustomError("text", "holds a control character, a line end or an invisible character")
    return text


def _rfc_3339(value: object) -> object:
    # Pydantic would guess whether a number means seconds or milliseconds, and would cut nanoseconds off.
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
    return int(value) if isinstance(value, float) and value.is_integer() else value  # to JSON, 1.0 and 1 are one number


type Name = Annotated[str, Field(min_length=1, max_length=128), AfterValidator(_visible_text)]
"""A text by which rows are looked up: Postgres indexes no text of more than about 2,700 bytes."""
type Text = Annotated[str, Field(min_length=1, max_length=1024), AfterValidator(_visible_text)]
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


class Payload(LateModel):
    """What an event of one (event_type, schema_version) says. A domain defines and lists its own."""

    event_type: ClassVar[str]
    schema_version: ClassVar[int]
    topic: ClassVar[str]
    also_topics: ClassVar[tuple[str, ...]] = ()
    """Further topics that its events are published on."""


class SourceFetchFailed(Payload):
    """A symbol could not be fetched; ``kind`` is the SourceError's kind."""

    event_type = "SOURCE_FETCH_FAILED"
    schema_version = 1
    topic = SYSTEM_EVENTS

    symbol: Text
    kind: Text
    reason: Text


class SignalRejected(Payload):
    """An observation broke the contract: the field, its value as text, and the reason.

    The whole answer is in raw_payloads.
    """

    event_type = "SIGNAL_REJECTED"
    schema_version = 1
    topic = SYSTEM_EVENTS

    symbol: Text
    rejected_event_type: Text
    field: Text
    value: Annotated[str, Field(max_length=1024), AfterValidator(_visible_text)]
    reason: Text


class SourceGapDetected(Payload):
    """The source no longer has the observations between ``since`` and ``until``, which were never stored."""

    event_type = "SOURCE_GAP_DETECTED"
    schema_version = 1
    topic = SYSTEM_EVENTS

    symbol: Text
    since: Instant
    until: Instant


PLATFORM_PAYLOADS: Final[tuple[type[Payload], ...]] = (SourceFetchFailed, SignalRejected, SourceGapDetected)
"""The payloads of the control plane's own events, which every deployment has."""


_DERIVED_HERE: Final = {"event_id_was_derived": True}
"""The context of validating an event whose id was just derived: deriving it again would find the same."""


class Event(LateModel):
    """One immutable fact. Compare two events by ``event_id``, which is derived from what they say."""

    event_id: UUID
    event_type: Annotated[str, Field(pattern=EVENT_TYPE_PATTERN, max_length=128)]
    source: Name
    entity_id: Name | None
    entity_type: Name | None
    occurred_at: Instant
    observed_at: Instant
    ingested_at: Instant
    series: Annotated[str, Field(max_length=128), AfterValidator(_visible_text)]
    revision: Annotated[int, Field(strict=True, ge=0, le=MAX_REVISION), BeforeValidator(_whole)]
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
    def _has_its_own_id(self, info: ValidationInfo) -> Self:
        if info.context == _DERIVED_HERE:
            return self
        derived = derive_event_id(
            source=self.source,
            event_type=self.event_type,
            entity_id=self.entity_id,
            series=self.series,
            occurred_at=self.occurred_at,
            schema_version=self.schema_version,
            revision=self.revision,
            payload=self.payload,
        )
        if derived != self.event_id:
            raise ContractViolation(
                f"is not the id of this observation, which is {derived}", field="event_id", value=str(self.event_id)
            )
        return self

    def to_message(self) -> dict[str, Any]:
        """Returns the event as JSON, as it is stored in the outbox and sent to consumers."""
        return self.model_dump(mode="json")


class EventTypes:
    """The event types that a deployment knows: the platform's own and those of its domains. Immutable."""

    def __init__(self, payloads: Iterable[type[Payload]]) -> None:
        """Raises ValueError if two payloads have the same (event_type, schema_version)."""
        self._payloads: dict[tuple[str, int], type[Payload]] = {}
        for payload in payloads:
            key = (payload.event_type, payload.schema_version)
            if key in self._payloads:
                raise ValueError(f"{payload.event_type} v{payload.schema_version} is listed twice")
            self._payloads[key] = payload

    def __iter__(self) -> Iterator[type[Payload]]:
        """Iterates over the payload models, in the order they were listed."""
        return iter(self._payloads.values())

    def find(self, event_type: str, schema_version: int) -> type[Payload]:
        """Returns the model of a type and version. Raises ContractViolation if there is none."""
        model = self._payloads.get((event_type, schema_version))
        if model is None:
            raise ContractViolation(
                "no such type and schema_version in this contract",
                field="event_type",
                value=f"{event_type} v{schema_version}",
            )
        return model

    def newest(self, event_type: str) -> type[Payload]:
        """Returns the model of a type's newest version. Raises ContractViolation if there is no such type."""
        versions = [version for known, version in self._payloads if known == event_type]
        if not versions:
            raise ContractViolation("no such type in this contract", field="event_type", value=event_type)
        return self._payloads[event_type, max(versions)]

    def parse_event(self, message: str | bytes | Mapping[str, Any]) -> Event:
        """Returns the event that a message's body holds.

        Raises ContractViolation, also for a body that is no JSON, an unknown type, and an id that does not belong to
        the content.
        """
        if isinstance(message, str | bytes):
            try:
                message = json.loads(message, object_pairs_hook=_each_once)
            except (ValueError, RecursionError) as error:
                raise ContractViolation(f"is not JSON ({error})", field="message", value=message) from error
        if not isinstance(message, Mapping):
            raise ContractViolation("is not a JSON object", field="message", value=message)
        data = dict(message)
        event_type, version, payload = (data.get(name) for name in ("event_type", "schema_version", "payload"))
        version = _whole(version)
        if isinstance(event_type, str) and isinstance(version, int) and isinstance(payload, Mapping):
            model = self.find(event_type, version)
            # The payload takes the shape that its model gives it, so that equal observations are equal events. Values
            # that JSON cannot hold are refused first, because the model would round an integer that is too large for a
            # double.
            data["payload"] = parse_payload(model, storable(payload)).model_dump(mode="json")
        return _validated(Event, data)


def _each_once(fields: list[tuple[str, Any]]) -> dict[str, Any]:
    """Returns an object of JSON. Raises ContractViolation for a field given twice: readers would differ over it."""
    content = dict(fields)
    if len(content) < len(fields):
        names = [name for name, _ in fields]
        twice = next(name for name in names if names.count(name) > 1)
        raise ContractViolation("is given twice in one object", field=twice)
    return content


def new_event(
    payload: Payload,
    *,
    source: str,
    entity_id: str | None,
    entity_type: str | None,
    occurred_at: datetime,
    observed_at: datetime,
    ingested_at: datetime,
    trace_id: UUID,
    series: str = "",
    revision: int = 0,
    event_id: UUID | None = None,
) -> Event:
    """Returns the event that states ``payload``, with its derived id. Raises ContractViolation.

    ``event_id`` is that id where the caller has derived it from these very values.
    """
    stated = payload.model_dump(mode="json")
    return _validated(
        Event,
        {
            "event_id": event_id
            or derive_event_id(
                source=source,
                event_type=payload.event_type,
                entity_id=entity_id,
                series=series,
                occurred_at=occurred_at,
                schema_version=payload.schema_version,
                revision=revision,
                payload=stated,
            ),
            "event_type": payload.event_type,
            "source": source,
            "entity_id": entity_id,
            "entity_type": entity_type,
            "occurred_at": occurred_at,
            "observed_at": observed_at,
            "ingested_at": ingested_at,
            "series": series,
            "revision": revision,
            "schema_version": payload.schema_version,
            "trace_id": trace_id,
            "payload": stated,
        },
        context=_DERIVED_HERE,
    )


def parse_payload[P: Payload](model: type[P], data: Mapping[str, Any]) -> P:
    """Returns the payload that a source's data describes.

    Raises ContractViolation that names the field and the value.
    """
    return _validated(model, dict(data), "payload")


def _validated[M: LateModel](
    model: type[M], data: dict[str, Any], prefix: str = "", *, context: Mapping[str, bool] | None = None
) -> M:
    try:
        return model.model_validate(data, context=context)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        location = ".".join(str(part) for part in (prefix, *first["loc"]) if part != "")
        value = None if first["type"] == "missing" else first["input"]
        raise ContractViolation(first["msg"], field=location or model.__name__, value=value) from None
