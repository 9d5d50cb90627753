"""Whose fault a refusal of SQS is: the message's, the queue's, or nobody knows."""

from typing import Any
from uuid import UUID, uuid4

import pytest
from botocore.exceptions import ClientError, ParamValidationError

from control_plane.model.lifecycle import Accepted, Failed, MessageFault
from control_plane.outbox.publisher import Message
from control_plane.outbox.sqs import SqsPublisher, read_answer


class Client:
    """Takes every batch but those that hold ``refused``."""

    def __init__(self, error: Exception, *, refused: str) -> None:
        self._error = error
        self._refused = refused

    def send_message_batch(self, *, QueueUrl: str, Entries: list[dict[str, Any]]) -> dict[str, Any]:  # noqa: N803 - boto3's
        if any(entry["MessageBody"] == self._refused for entry in Entries):
            raise self._error
        return {"Successful": [{"Id": entry["Id"], "MessageId": entry["MessageBody"]} for entry in Entries]}


def outcomes(error: Exception, *bodies: str) -> list[object]:
    client: Any = Client(error, refused="odd")
    messages = [Message(1, uuid4(), uuid4(), UUID(int=1), "market.ticks", 1, body, {}) for body in bodies]
    return list(SqsPublisher(client, monotonic=lambda: 0).publish("url", messages, start_before=1))


def test_a_message_id_is_kept_as_something_postgres_takes() -> None:
    odd = [{"Id": "0", "MessageId": None}, {"Id": "1", "MessageId": "m\x00n"}]
    first, second = read_answer({"Successful": odd}, 2)
    assert isinstance(first, Accepted)
    assert first.message_id
    assert isinstance(second, Accepted)
    assert "\x00" not in second.message_id


def test_what_botocore_itself_does_not_send_is_that_messages_own_fault() -> None:
    before, odd, after = outcomes(ParamValidationError(report="Invalid type"), "before", "odd", "after")
    assert (before, after) == (Accepted("before"), Accepted("after"))
    assert isinstance(odd, MessageFault)
    assert "Invalid type" in odd.reason


@pytest.mark.parametrize("code", ["MissingParameter", "AWS.SimpleQueueService.UnsupportedOperation"])
def test_what_a_queue_of_another_kind_asks_for_is_not_the_messages_fault(code: str) -> None:
    """A FIFO queue wants a MessageGroupId, whatever the message."""
    error: Any = {"Error": {"Code": code, "Message": "said the queue"}}
    assert [type(one) for one in outcomes(ClientError(error, "SendMessageBatch"), "odd", "fine")] == [Failed, Failed]
