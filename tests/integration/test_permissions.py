"""Compares what each function really asks of AWS, recorded from a run, with what its role permits."""

import io
import json
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import uuid4

import boto3
import psycopg
import pytest
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from psycopg import Connection
from tests.integration.functions.invoked import Function, look
from tests.template import FUNCTIONS, PARAMETERS, QUEUES, ROOT, grants
from werkzeug.serving import make_server

from control_plane.ingestion.store import store_events
from control_plane.model.contract import SourceFetchFailed
from control_plane.model.subscription import Subscription
from control_plane.operations.rows import read_operation
from control_plane.operations.service import request_operation, start_operation
from control_plane.ops.subscriptions import sync_subscriptions
from control_plane.platform.database import connect
from domains import load_kinds
from local_cloud.roles import SECRETS
from market_replay import serve

ACTIONS = {
    # IAM permits a batch by the action for its single messages (Amazon SQS API permissions reference).
    "sqs:SendMessageBatch": "sqs:SendMessage",
}
BY_LAMBDA = {
    "logs:CreateLogStream": "Lambda writes what the function prints",
    "logs:PutLogEvents": "Lambda writes what the function prints",
    "sqs:ReceiveMessage": "Lambda polls the queue for a consumer",
    "sqs:DeleteMessage": "Lambda polls the queue for a consumer",
    "sqs:GetQueueAttributes": "Lambda polls the queue for a consumer",
}
"""Actions for what Lambda does in a function's name, so they are never seen in the function's own calls."""
API_TOKEN = "a-token-of-the-tests-own-0123456789"
PIECE = json.dumps(dict.fromkeys(("fetched", "ingested", "duplicates", "stale", "rejected"), 0)).encode()
"""What IngestionFunction answers for a piece of a backfill without a bar."""
ANSWERS = {"RetrialFunction": b'{"refused": "no_decision", "detail": "There is no such decision."}'}
"""What other functions answer that are waited for."""
ON_FAILURE = ("sqs:SendMessage", "FailedInvocationsQueue")
"""The queue to which Lambda sends a failed scheduled invocation."""


@dataclass
class Recorder:
    """A cloud that records every request: the action, and its resource."""

    application: Callable[..., Iterable[bytes]]
    requests: list[tuple[str, str]] = field(default_factory=list)

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        environ["wsgi.input"] = io.BytesIO(body)
        if started := re.fullmatch(r"/2015-03-31/functions/(\w+)/invocations", environ["PATH_INFO"]):
            self.requests.append(("lambda:InvokeFunction", started[1]))
            if environ.get("HTTP_X_AMZ_INVOCATION_TYPE") != "Event":
                answer = ANSWERS.get(started[1], PIECE)
                start_response("200 OK", [("Content-Length", str(len(answer)))])
                return [answer]
            start_response("202 ACCEPTED", [("Content-Length", "0")])
            return [b""]
        # A request of another protocol than AWS's JSON fails here, and with it the test.
        service, action = environ["HTTP_X_AMZ_TARGET"].split(".")
        asked = json.loads(body)
        name = f"{service.removeprefix('Amazon').lower()}:{action}"
        self.requests.append((ACTIONS.get(name, name), asked.get("QueueUrl") or asked.get("SecretId") or "?"))
        return self.application(environ, start_response)


@dataclass(frozen=True)
class Cloud:
    """The stack's secrets and queues, with a recorder before them."""

    url: str
    recorder: Recorder
    secrets: dict[str, str]
    """Secrets' ARNs by parameter."""
    queues: dict[str, str]
    """Queues' URLs by logical id."""

    def calls(self) -> set[tuple[str, str]]:
        """Returns the calls so far: each action and its resource's logical id."""
        names = {value: name for name, value in (self.secrets | self.queues).items()}
        return {(action, names.get(about, about)) for action, about in self.recorder.requests}


@pytest.fixture
def cloud(database: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cloud]:
    recorder = Recorder(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, recorder, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}"
    # A client without the local cloud's address asks here, too, instead of the real AWS.
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    secretsmanager, sqs = boto3.client("secretsmanager"), boto3.client("sqs")
    try:
        texts = {
            **{name: database.url(role) for name, role in SECRETS.items()},
            "DatabaseOwnerSecretArn": database.owner_url,
            "ApiTokenSecretArn": API_TOKEN,
        }
        secrets = {
            name: secretsmanager.create_secret(Name=str(uuid4()), SecretString=text)["ARN"]
            for name, text in texts.items()
        }
        queues = {
            name: sqs.create_queue(QueueName=f"{name}-{uuid4()}")["QueueUrl"]
            for name in QUEUES
            if "RedrivePolicy" in QUEUES[name]  # This is a subscription's queue.
        }
        recorder.requests.clear()
        yield Cloud(url, recorder, secrets, queues)
    finally:
        secretsmanager.close()
        sqs.close()
        server.shutdown()
        thread.join()
        server.server_close()


def store_for_every_subscription(app: Connection[Any], database: Any) -> None:
    topics = json.loads(FUNCTIONS["MigrationFunction"]["Environment"]["Variables"]["SUBSCRIPTIONS"])
    with connect(database.owner_url, application_name="test") as owner:
        sync_subscriptions(owner, {name: Subscription(topic) for name, topic in topics.items()})
    failure = replace(
        look(), payload=SourceFetchFailed(symbol="IBM", kind="rate_limited", reason="too many requests"), series=""
    )
    with app.transaction():
        store_events(app, [], [look(), failure])
    with psycopg.connect(database.admin_url, autocommit=True) as admin:
        # Messages of deciding follow from a decision; which one it is does not matter to the relay.
        admin.execute("SET session_replication_role = replica")
        admin.execute(
            "INSERT INTO pending_deliveries (outbox_id, subscription) SELECT min(id), name FROM outbox, subscriptions"
            " WHERE name NOT IN (SELECT subscription FROM pending_deliveries) GROUP BY name"
        )


def request(sample: str) -> dict[str, Any]:
    """Returns the sample of a request, with the token."""
    text = (ROOT / "events" / f"{sample}.json").read_text(encoding="utf-8")
    asked: dict[str, Any] = json.loads(text.replace("Bearer API_TOKEN", f"Bearer {API_TOKEN}"))
    return asked


def replay() -> dict[str, Any]:
    """Returns a request that has RetrialFunction asked."""
    decision_id = str(uuid4())
    where = {"resource": "/decisions/{decision_id}/replay", "path": f"/decisions/{decision_id}/replay"}
    return request("ops_api_event") | where | {"httpMethod": "POST", "pathParameters": {"decision_id": decision_id}}


def runs() -> list[dict[str, Any]]:
    """Returns requests that start the runs of the other functions."""
    body = {"kind": "redrive", "filter": {"everything": True}, "reason": "to see what is asked for"}
    plan = request("command_api") | {"resource": "/operations", "path": "/operations", "pathParameters": None}
    headers = {"Idempotency-Key": ["plan-an-operation"], "Content-Type": ["application/json"]}
    asked = [
        plan
        | {"httpMethod": "POST", "body": json.dumps(body), "multiValueHeaders": plan["multiValueHeaders"] | headers}
    ]
    for name in ("ingestion", "relay"):
        path = f"/{name}/run"
        headers = {"Idempotency-Key": [f"start-{name}"]}
        event = request("command_api") | {"resource": path, "path": path, "pathParameters": None}
        asked.append(event | {"multiValueHeaders": event["multiValueHeaders"] | headers})
    return asked


def start_backfill(database: Any, operations: Function) -> None:
    """Has a backfill of a day planned and made."""
    wanted = {"symbols": ["AAPL"], "since": "2012-01-03T00:00:00Z", "until": "2012-01-04T00:00:00Z", "interval": "1d"}
    with connect(database.url("acp_command"), application_name="test") as command:
        asked = request_operation(command, load_kinds(), kind="backfill", wanted=wanted, requested_by="root").after
        operations({})
        planned = read_operation(command, asked.operation_id)
        assert planned is not None
        assert planned.plan_hash is not None
        start_operation(
            command,
            asked.operation_id,
            plan_hash=planned.plan_hash,
            started_by="root",
            reason="to see what is asked for",
        )
        operations({})
        made = read_operation(command, asked.operation_id)
        assert made is not None
        assert (made.state, made.done) == ("done", 1)


EVENTS: dict[str, Callable[[], list[dict[str, Any]]]] = {
    "IngestionFunction": lambda: [{}],
    "RelayFunction": lambda: [{}],
    "OpsApiFunction": lambda: [request("ops_api_health"), request("ops_api_event"), replay()],
    "CommandApiFunction": lambda: [request("command_api"), *runs()],
    "MigrationFunction": lambda: [{}],
    "MaintenanceFunction": lambda: [{}],
}
"""Events that make a function do all that it can; a consumer's is its sample."""

ABOUT_NOTHING = {"GatekeeperFunction", "ActionFunction"}
"""Their samples name a decision and an action that no database has, which they refuse as somebody's invention."""


def sample(folder: str) -> dict[str, Any]:
    """Returns the sample event of a function by its folder."""
    event: dict[str, Any] = json.loads((ROOT / "events" / f"{folder}.json").read_text(encoding="utf-8"))
    return event


def declared(function: str, cloud: Cloud, market_url: str) -> dict[str, str]:
    """Returns the function's variables as the template declares them, for this cloud."""
    known = {name: str(parameter.get("Default", "")) for name, parameter in PARAMETERS.items()}
    known |= cloud.secrets | cloud.queues | {"Symbols": "AAPL,MSFT", "MarketDataUrl": market_url}
    known |= {"TracesEndpoint": "http://127.0.0.1:9/v1/traces"}  # nothing is exported, so nobody need be there
    known |= {"MaxDeliveryAttempts": "5", "RelayLingerSeconds": "0"} | {name: name for name in FUNCTIONS}
    environ = {}
    for name, value in FUNCTIONS[function]["Environment"]["Variables"].items():
        match value:
            case {"Fn::If": [_, _, str(otherwise)]}:
                environ[name] = otherwise
            case {"Ref": reference}:
                environ[name] = known[reference]
            case {"Fn::Sub": text}:
                for logical_id, url in cloud.queues.items():
                    text = text.replace(f"${{{logical_id}}}", url)
                environ[name] = re.sub(r"\$\{(\w+)\.QueueName\}", r"ai-control-plane-\1", text)
            case {"Fn::GetAtt": [queue, "QueueName"]}:  # as the sample of DeadLetterFunction has it
                environ[name] = f"ai-control-plane-{queue}"
            case _:
                environ[name] = str(value)
    return environ


@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_functions_role_permits_exactly_what_it_asks_of_aws(
    function: str,
    cloud: Cloud,
    database: Any,
    app: Connection[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store_for_every_subscription(app, database)
    with serve() as market:
        for name, value in declared(function, cloud, market.url).items():
            monkeypatch.setenv(name, value)
        monkeypatch.delenv("DATABASE_URL", raising=False)
        folder = FUNCTIONS[function]["CodeUri"].removeprefix("functions/")
        loaded = Function(folder)
        try:
            for event in EVENTS[function]() if function in EVENTS else [sample(folder)]:
                loaded(event)
            if function == "OperationsFunction":
                start_backfill(database, loaded)
            refused = ["ContractViolation"] if function in ABOUT_NOTHING else []
            assert [error["message"] for error in loaded.errors] == refused
        finally:
            loaded.close()

    # Grants that depend on a condition of the template are for Lambda or Secrets Manager, not for a function's call.
    granted = {(grant.action, grant.resource) for grant in grants(function) if grant.only_if is None}
    for_itself = {pair for pair in granted if pair[0] not in BY_LAMBDA and pair != ON_FAILURE}
    assert cloud.calls() == for_itself


def test_grants_for_lambdas_own_calls_exist_in_the_template() -> None:
    """Otherwise a reason could outlive its grant."""
    granted = {(grant.action, grant.resource) for function in FUNCTIONS for grant in grants(function)}
    assert BY_LAMBDA.keys() <= {action for action, _ in granted}
    assert ON_FAILURE in granted
