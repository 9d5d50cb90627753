import re
from uuid import UUID, uuid5

from hypothesis import given
from hypothesis import strategies as st

from control_plane.model.ids import EVENT_NAMESPACE
from control_plane.model.trace import is_sampled, traceparent

# https://www.w3.org/TR/trace-context/#traceparent-header-field-values, version 00
W3C = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")


@given(st.uuids(version=4), st.binary().map(lambda data: uuid5(EVENT_NAMESPACE, data)))
def test_traceparent_is_w3c_and_carries_the_trace_id(trace_id: UUID, event_id: UUID) -> None:
    text = traceparent(str(trace_id), str(event_id))
    assert W3C.fullmatch(text)
    assert UUID(text.split("-")[1]) == trace_id
    assert bytes.fromhex(text.split("-")[2]) == event_id.bytes[-8:]


def test_traceparent_names_the_event_and_says_whether_it_is_sampled() -> None:
    trace_id = "0af76519-16cd-43dd-8448-eb211c80319c"
    event_id = "cea9faf8-8b5a-5945-88e3-977867f54405"
    assert traceparent(trace_id, event_id) == "00-0af7651916cd43dd8448eb211c80319c-88e3977867f54405-00"
    assert traceparent(trace_id, event_id, is_sampled=True).endswith("-88e3977867f54405-01")


@given(st.binary().map(lambda data: str(uuid5(EVENT_NAMESPACE, data))), st.floats(0, 1), st.floats(0, 1))
def test_what_a_smaller_share_samples_a_larger_one_samples_too(event_id: str, one: float, other: float) -> None:
    assert not is_sampled(event_id, 0)
    assert is_sampled(event_id, 1)
    assert is_sampled(event_id, min(one, other)) <= is_sampled(event_id, max(one, other))


def test_the_share_that_is_sampled_is_the_ratio() -> None:
    ids = [str(uuid5(EVENT_NAMESPACE, str(number))) for number in range(2_000)]
    assert 0.22 < sum(is_sampled(one, 0.25) for one in ids) / len(ids) < 0.28
