import re
from uuid import UUID, uuid5

from hypothesis import given
from hypothesis import strategies as st

from control_plane.model.ids import EVENT_NAMESPACE
from control_plane.model.trace import traceparent

# https://www.w3.org/TR/trace-context/#traceparent-header-field-values, version 00
W3C = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")


@given(st.uuids(version=4), st.binary().map(lambda data: uuid5(EVENT_NAMESPACE, data)))
def test_traceparent_is_w3c_and_carries_the_trace_id(trace_id: UUID, event_id: UUID) -> None:
    text = traceparent(str(trace_id), str(event_id))
    assert W3C.fullmatch(text)
    assert UUID(text.split("-")[1]) == trace_id
    assert bytes.fromhex(text.split("-")[2]) == event_id.bytes[-8:]


def test_traceparent_names_the_event_and_says_it_is_sampled() -> None:
    trace_id = "0af76519-16cd-43dd-8448-eb211c80319c"
    event_id = "cea9faf8-8b5a-5945-88e3-977867f54405"
    assert traceparent(trace_id, event_id) == "00-0af7651916cd43dd8448eb211c80319c-88e3977867f54405-01"
