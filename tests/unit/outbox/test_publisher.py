"""The message as it is sent: its attributes, its size, and how many messages one send holds."""

from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control_plane.outbox.publisher import MAX_BATCH_BYTES, Message, batches, make_message

EVENT_ID = "cea9faf8-8b5a-5945-88e3-977867f54405"
TRACE_ID = "0af76519-16cd-43dd-8448-eb211c80319c"


def made(
    body: str = "{}", *, event_type: str = "MARKET_TICK", operation_id: UUID | None = None, traces_ratio: float = 0
) -> Message:
    return make_message(
        outbox_id=1,
        subscription="signal_lab",
        operation_id=operation_id,
        claim_token=uuid4(),
        event_id=EVENT_ID,
        event_type=event_type,
        schema_version=1,
        trace_id=TRACE_ID,
        topic="market.ticks",
        attempt=1,
        is_suspect=False,
        body=body,
        traces_ratio=traces_ratio,
    )


def test_a_live_message_bears_the_attributes_of_the_contract() -> None:
    assert made().attributes == {
        "event_id": EVENT_ID,
        "event_type": "MARKET_TICK",
        "schema_version": "1",
        "trace_id": TRACE_ID,
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-88e3977867f54405-00",
    }


DECISION_ID = "5b0a9a57-7f5b-5c3e-9a53-0d9a4a3a0b11"


@pytest.mark.parametrize(
    ("body", "decision_id"),
    [
        (f'{{"payload": {{"decision_id": "{DECISION_ID}", "parent": {{"decision_id": "{TRACE_ID}"}}}}}}', DECISION_ID),
        ('{"payload": {"price": 1}}', None),
        ('{"payload": {"decision_id": null}}', None),
        ('{"payload": {"decision_id": "short"}}', None),
        (f'{{"payload": {{"decision_id": "{DECISION_ID}', None),
        (f'{{"payload": {{"text": "\\"decision_id\\": \\"{DECISION_ID}\\""}}}}', None),
        ("", None),
    ],
)
def test_a_message_names_the_decision_that_its_payload_names(body: str, decision_id: str | None) -> None:
    assert made(body).decision_id == decision_id


@pytest.mark.parametrize(("ratio", "flags"), [(0, "00"), (0.59, "00"), (0.6, "01"), (1, "01")])
def test_traceparent_says_sampled_for_the_share_of_events_that_is_exported(ratio: float, flags: str) -> None:
    assert 0.59 < int(EVENT_ID[24:], 16) / 2**48 < 0.6
    assert made(traces_ratio=ratio).attributes["traceparent"].rpartition("-")[2] == flags


def test_a_message_of_an_operation_names_it() -> None:
    operation_id = uuid4()
    assert made(operation_id=operation_id).attributes["operation_id"] == str(operation_id)


@given(st.text(), st.text())
def test_size_counts_the_bytes_of_body_and_attributes(body: str, event_type: str) -> None:
    message = made(body, event_type=event_type)
    everything = body + "".join(f"{name}String{value}" for name, value in message.attributes.items())
    assert message.size == len(everything.encode())


def test_a_batch_holds_ten_messages_in_order() -> None:
    messages = [made(str(number)) for number in range(23)]
    assert [len(batch) for batch in batches(messages)] == [10, 10, 3]
    assert [message for batch in batches(messages) for message in batch] == messages


def test_a_batch_holds_no_more_bytes_than_one_send() -> None:
    overhead = made("").size
    half, more = made("x" * (MAX_BATCH_BYTES // 2 - overhead)), made("x" * (MAX_BATCH_BYTES // 2 - overhead + 1))
    assert [len(batch) for batch in batches([half, half, half, more])] == [2, 1, 1]
