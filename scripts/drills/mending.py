"""Mending undoes what a drill has changed, from its record: at its end, after Ctrl-C, or later if it was killed."""

from __future__ import annotations

import json
import posixpath
import time
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, urlsplit

import psycopg

from control_plane.operations.kind import State
from control_plane.operations.redrive import Redrive
from control_plane.operations.rows import read_operation
from control_plane.operations.service import request_operation, start_operation
from control_plane.platform import breakers
from drills import messages, record
from drills.messages import QUERIES
from local_cloud import database
from local_cloud.errors import AcpError
from local_cloud.functions import function_name
from local_cloud.interrupts import uninterrupted
from local_cloud.market import SOURCES, MarketChoice

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from uuid import UUID

    from mypy_boto3_lambda import LambdaClient
    from psycopg import Connection

    from control_plane.operations.kind import Operation
    from drills.record import Change, DrillRecord
    from local_cloud.aws import LocalCloud
    from local_cloud.cloud import Cloud
    from local_cloud.run_state import RunState

_DELIVER_SECONDS = 90.0
_CONSUME_SECONDS = 30.0
_REDRIVE_SECONDS = 60.0
_DRILLS: Final = {"source": messages.SOURCE, "entity_id": messages.ENTITY}


def mend(cloud: Cloud, run: RunState, left: DrillRecord, say: Callable[[str], None]) -> None:
    """Undoes all changes of a drill and deletes its record; doing so twice does no harm.

    Raises AcpError if something cannot be undone; the record then stays.
    """
    aws = cloud.aws(run)
    for function, change in left.functions.items():
        if revert(aws, function, change):
            say(f"{function} has its own settings again")
    for symbol in left.market_faults:
        set_market_fault(cloud.environ(run).get("MARKET_DATA_URL"), symbol, None)
    server = cloud.postgres(run)
    with psycopg.connect(database.owner_url(server, run), autocommit=True) as owner:
        if count := redrive_drills(owner, lambda: run_operations(cloud, run)):
            say(f"{count} dead letters of drills are redriven")
        _recover_source(owner, cloud, run)
        for subscription in messages.KEEPERS:
            _deliver(owner, cloud, run, subscription)
        for query in ("forget_bars", "forget_prices", "forget_detector_bars"):
            owner.execute(QUERIES[query].sql, {"source": messages.SOURCE})
    left.clear(cloud.workspace)


def mend_what_was_left(cloud: Cloud, run: RunState, say: Callable[[str], None]) -> str | None:
    """Undoes what an interrupted drill has left, and says so. Returns the drill's name, or None if there was none."""
    left = record.load(cloud.workspace)
    if left is None:
        return None
    with uninterrupted():
        mend(cloud, run, left, say)
    say(f"The drill {left.drill} had been cut off; what it left is put right.")
    return left.drill


def change_variables(aws: LocalCloud, function: str, change: Change) -> None:
    """Sets a function's variables as the change says, and waits until they are in effect."""
    _update(aws, function, change.applied(variables(aws, function)))


def revert(aws: LocalCloud, function: str, change: Change) -> bool:
    """Undoes a change. Returns False if there is nothing to undo, for example because the function is gone."""
    functions = aws.functions  # The same client throughout, since each client has its own exception classes.
    try:
        now = _variables(functions, function)
    except functions.exceptions.ResourceNotFoundException:
        return False
    reverted = change.reverted(now)
    if reverted == now:
        return False
    _update(aws, function, reverted)
    return True


def variables(aws: LocalCloud, function: str) -> Mapping[str, str]:
    """Returns a deployed function's environment variables."""
    return _variables(aws.functions, function)


def set_market_fault(url: str | None, symbol: str, fault: Mapping[str, Any] | None) -> None:
    """Sets a fault of the market replay, or ends it. Raises AcpError if the replay does not answer."""
    if url is None:
        # The replay that the drill made fail no longer runs, so its faults are gone, too.
        return
    request = urllib.request.Request(  # noqa: S310  the replay's own URL
        f"{url}/faults/{quote(symbol, safe='')}",
        data=None if fault is None else json.dumps(fault).encode(),
        method="DELETE" if fault is None else "PUT",
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=10):
            pass
    except urllib.error.URLError as error:
        msg = f"The market replay at {url} did not take the fault of {symbol!r}: {error.reason}."
        raise AcpError(msg, remedy="Is it running? See scripts/acp status") from error


def redrive_drills(owner: Connection[Any], work: Callable[[], None]) -> int:
    """Redrives the dead letters of drills by an operation; returns how many. `owner` is the owner's connection.

    `work` has the operation's due steps done. Raises AcpError if that takes too long.
    """
    ids = [number for (number,) in owner.execute(QUERIES["dead_letters_of_drills"].sql, _DRILLS)]
    if not ids:
        return 0
    by, reason = "acp drill", "the drill's fault is mended"
    asked = request_operation(
        owner, [Redrive()], kind="redrive", wanted={"ids": ids}, requested_by=by, reason=reason
    ).after.operation_id
    planned = _worked(owner, asked, work, until=State.PLANNED)
    start_operation(owner, asked, plan_hash=str(planned.plan_hash), started_by=by, reason=reason)
    return _worked(owner, asked, work, until=State.DONE).done


def run_operations(cloud: Cloud, run: RunState) -> None:
    """Runs OperationsFunction once."""
    cloud.aws(run).invoke(function_name(cloud.outputs(run), "operations"), {})


def _worked(owner: Connection[Any], operation_id: UUID, work: Callable[[], None], *, until: State) -> Operation:
    """Has the operation's steps done until it is in a state; `work` returns when there is no step left, or no time."""
    begun = time.monotonic()
    while True:
        work()
        operation = read_operation(owner, operation_id)
        assert operation is not None, "it was asked for by this very function"
        if operation.state is until:
            return operation
        is_late = time.monotonic() - begun > _REDRIVE_SECONDS
        if is_late or operation.state not in {State.PLANNING, State.RUNNING}:
            msg = f"The redrive of the drill's dead letters is {operation.state}: {operation.error or 'it takes long'}."
            raise AcpError(msg, remedy="See scripts/acp operations and scripts/acp logs operations")


def source_name(run: RunState) -> str:
    """Returns the name of the source that IngestionFunction fetches from, which is also its breaker's."""
    return SOURCES[MarketChoice(str(run.market_source))]


def queue_name(cloud: Cloud, run: RunState) -> str:
    """Returns the name of the queue that the drills' messages go to."""
    url: str = json.loads(cloud.environ(run)["SUBSCRIPTION_QUEUE_URLS"])[messages.SUBSCRIPTION]
    return posixpath.basename(urlsplit(url).path)


def _variables(functions: LambdaClient, function: str) -> Mapping[str, str]:
    return functions.get_function_configuration(FunctionName=function).get("Environment", {}).get("Variables", {})


def _update(aws: LocalCloud, function: str, variables: Mapping[str, str]) -> None:
    functions = aws.functions
    functions.update_function_configuration(FunctionName=function, Environment={"Variables": variables})
    functions.get_waiter("function_updated").wait(FunctionName=function, WaiterConfig={"Delay": 1, "MaxAttempts": 60})


def _recover_source(connection: Connection[Any], cloud: Cloud, run: RunState) -> None:
    """Makes ingestion probe the source at once, if its breaker was left open."""
    if _is_shut(connection, source_name(run)):
        breakers.resume(connection, source_name(run))
        cloud.aws(run).invoke(function_name(cloud.outputs(run), "ingestion"), {})


def _deliver(connection: Connection[Any], cloud: Cloud, run: RunState, subscription: str) -> None:
    """Invokes relays until a subscription has the drills' messages and its breaker is closed; waits for its consumer.

    Raises AcpError if that takes too long.
    """
    relay = function_name(cloud.outputs(run), "relay")
    begun = time.monotonic()
    while True:
        parameters = {**_DRILLS, "subscription": subscription}
        row = connection.execute(QUERIES["unfinished"].sql, parameters).fetchone()
        assert row is not None, "an aggregate has a row"
        undelivered, unconsumed, waiting = row
        is_shut = _is_shut(connection, subscription)
        # An open breaker can only be probed with a message; if none is pending, the next one will do.
        if not undelivered and not (is_shut and waiting):
            if not unconsumed or time.monotonic() - begun > _CONSUME_SECONDS:
                return
            time.sleep(0.2)
            continue
        if time.monotonic() - begun > _DELIVER_SECONDS:
            msg = (
                f"The faults are gone, but {undelivered} messages of drills to {subscription} wait after "
                f"{_DELIVER_SECONDS:.0f} s."
            )
            raise AcpError(
                msg, remedy="See scripts/acp status and scripts/acp logs relay, then scripts/acp drill --mend"
            )
        if is_shut:
            breakers.resume(connection, subscription)
        cloud.aws(run).invoke(relay, {"linger_seconds": 1})


def _is_shut(connection: Connection[Any], name: str) -> bool:
    """Whether a breaker is not closed and no person holds it."""
    return any(
        not breaker.is_closed and breaker.held_by is None for breaker in breakers.read_breakers(connection, [name])
    )
