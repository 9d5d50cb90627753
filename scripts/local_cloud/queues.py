"""Reads how many messages the stack's queues hold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from local_cloud.aws import LocalCloud


@dataclass(frozen=True, slots=True)
class QueueDepth:
    """The messages of one queue, as SQS counts them: approximately."""

    name: str
    visible: int
    in_flight: int


def queue_depths(cloud: LocalCloud, outputs: Mapping[str, str]) -> list[QueueDepth]:
    """Returns the depths of all queues that the stack's outputs name."""
    depths = []
    for output, url in outputs.items():
        if output.endswith("QueueUrl"):
            attributes = cloud.queues.get_queue_attributes(
                QueueUrl=url,
                AttributeNames=["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"],
            )["Attributes"]
            depths.append(
                QueueDepth(
                    output.removesuffix("Url"),
                    int(attributes["ApproximateNumberOfMessages"]),
                    int(attributes["ApproximateNumberOfMessagesNotVisible"]),
                )
            )
    return depths
