"""Redelivery: promising anew what queues were given that are gone, with the messages that waited in them."""

import json
from collections.abc import Mapping
from typing import Any
from uuid import uuid4

from psycopg import Connection

from control_plane.model.text import readable
from control_plane.ops.timeline import QUERIES


def promise_lost(connection: Connection[Any], *, requested_by: str, reason: str) -> Mapping[str, int]:
    """Makes pending again what was delivered and not processed, as one operation in one transaction.

    It is for queues that are gone. A message that still waits in one is delivered twice, which its consumer notices.
    Subscriptions that are not active, or whose consumer has recorded nothing, are left out; so is a message that is
    pending already. Returns how many deliveries each subscription has been promised. ``connection`` is the owner's, in
    autocommit mode.
    """
    operation_id = uuid4()
    with connection.transaction():
        rows = connection.execute(QUERIES["promise_lost_deliveries"].sql, {"operation_id": operation_id}).fetchall()
        promised = dict(rows)
        if promised:
            connection.execute(
                QUERIES["record_redrive"].sql,
                {
                    "operation_id": operation_id,
                    "filter": json.dumps({"delivered_and_not_processed": True}),
                    "progress": json.dumps({"deliveries": sum(promised.values())}),
                    "requested_by": readable(requested_by),
                    "reason": readable(reason),
                },
            )
    return promised
