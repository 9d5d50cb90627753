"""Every function of the template, invoked in Lambda's own container by plain `sam local invoke`."""

import json
from collections.abc import Callable
from functools import partial
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen
from uuid import UUID

import psycopg
import pytest
from psycopg import sql
from samcli.yamlhelper import yaml_parse
from tests.containers.conftest import INVOKE_SECONDS, Containers
from tests.e2e.conftest import CHECKOUT, wait_for

TEMPLATE = yaml_parse((CHECKOUT / "template.yaml").read_text())
FUNCTIONS = [name for name, part in TEMPLATE["Resources"].items() if part["Type"] == "AWS::Serverless::Function"]


def ingestion(containers: Containers) -> None:
    answer = containers.invoke("IngestionFunction", "ingestion.json")
    assert answer["failed_symbols"] == []
    stored = containers.cloud.query(
        """
        SELECT count(*), array_agg(DISTINCT entity_id ORDER BY entity_id), array_agg(DISTINCT source)
        FROM events JOIN outbox USING (event_id) WHERE events.trace_id = %s
        """,
        UUID(answer["trace_id"]),
    )
    assert stored == [(answer["ingested"], ["AAPL", "MSFT"], ["yfinance-replay"])]
    assert answer["ingested"] > 0


def relay(containers: Containers) -> None:
    # A message that no consumer reads from its queue: a symbol is unknown to the source.
    answer, ok = containers.cloud.invoke("IngestionFunction", {"symbols": ["NOSUCHSYMBOL"]})
    assert ok, answer
    stored = containers.cloud.query(
        "SELECT event_id FROM outbox WHERE trace_id = %s AND topic = 'system.events'",
        UUID(answer["trace_id"]),
    )
    assert len(stored) == 1
    answer = containers.invoke("RelayFunction", "relay.json")
    assert answer["failed"] == answer["dead_lettered"] == answer["released"] == 0
    assert answer["published"] == answer["claimed"] >= 1
    received = containers.cloud.client("sqs").receive_message(
        QueueUrl=containers.cloud.output("SystemEventsQueueUrl"), MaxNumberOfMessages=10, WaitTimeSeconds=5
    )
    messages = {UUID(json.loads(message["Body"])["event_id"]): message["MessageId"] for message in received["Messages"]}
    delivered = containers.cloud.query(
        "SELECT event_id, message_id FROM outbox_states"
        " WHERE state = 'delivered' AND subscription = 'system_events' AND event_id = %s",
        stored[0][0],
    )
    assert delivered == [(stored[0][0], messages[stored[0][0]])]


def signal_lab(containers: Containers) -> None:
    batch = json.loads((CHECKOUT / "events" / "signal_lab.json").read_text())
    sent = {event["event_id"]: event for event in (json.loads(record["body"]) for record in batch["Records"])}
    assert containers.invoke("SignalLabFunction", "signal_lab.json") == {"batchItemFailures": []}
    processed = containers.cloud.query("SELECT event_id FROM processed_events WHERE consumer = 'signal_lab'")
    assert {UUID(event_id) for event_id in sent} <= {row[0] for row in processed}
    prices = containers.cloud.query("SELECT price FROM signal_lab_latest_prices WHERE entity_id = 'EURUSD=X'")
    assert [float(price) for (price,) in prices] == [1.1712]


def migration(containers: Containers) -> None:
    """Invokes the function on an empty database, because the local cloud's own is migrated already."""
    owner_url = containers.cloud.environ["DATABASE_OWNER_URL"]
    run = json.loads((containers.folder / ".acp" / "state" / "run.json").read_text())
    superuser = psycopg.conninfo.make_conninfo(
        owner_url, user="postgres", password=run["superuser_password"], dbname="postgres"
    )
    with psycopg.connect(superuser, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE empty OWNER acp_owner"))
    environment = json.loads((containers.folder / ".acp" / "state" / "sam-local.json").read_text())
    variables = environment["MigrationFunction"]
    secrets = containers.cloud.client("secretsmanager")
    url = secrets.get_secret_value(SecretId=variables["DATABASE_SECRET_ARN"])["SecretString"]
    empty = secrets.create_secret(Name="empty", SecretString=url.replace("/control_plane", "/empty"))
    variables["DATABASE_SECRET_ARN"] = empty["ARN"]
    (containers.folder / "empty.json").write_text(json.dumps(environment))

    answer = containers.invoke("MigrationFunction", "migration.json", "--env-vars", "empty.json")
    count = len(list((CHECKOUT / "db" / "migrations").glob("*.sql")))
    assert (len(answer["applied"]), answer["version"]) == (count, count)
    with psycopg.connect(psycopg.conninfo.make_conninfo(owner_url, dbname="empty")) as connection:
        assert connection.execute("SELECT count(*) FROM schema_migrations").fetchone() == (count,)
        subscriptions = connection.execute("SELECT name, topic FROM subscriptions ORDER BY name").fetchall()
    variables = TEMPLATE["Resources"]["MigrationFunction"]["Properties"]["Environment"]["Variables"]
    assert dict(subscriptions) == json.loads(variables["SUBSCRIPTIONS"])


def maintenance(containers: Containers) -> None:
    with psycopg.connect(containers.cloud.environ["DATABASE_OWNER_URL"]) as connection:
        connection.execute(
            "INSERT INTO repeated_looks (entity_id, source, event_type, series, occurred_at, observed_at)"
            " VALUES ('OLD', 'yfinance', 'MARKET_TICK_INGESTED', '1m', now() - interval '2 years',"
            " now() - interval '2 years')"
        )
    answer = containers.invoke("MaintenanceFunction", "maintenance.json")
    assert (answer["deleted_repeated_looks"], answer["deleted_events"], answer["finished"]) == (1, 0, True), answer
    assert containers.cloud.query("SELECT FROM repeated_looks WHERE entity_id = 'OLD'") == []


def ops_api(containers: Containers) -> None:
    health = containers.invoke("OpsApiFunction", "ops_api_health.json")
    assert health["statusCode"] == 200, health
    sample = json.loads((CHECKOUT / "events" / "ops_api_event.json").read_text())
    assert containers.invoke("OpsApiFunction", sample)["statusCode"] == 401
    event_id = a_stored_event(containers)
    sample["pathParameters"] = {"event_id": event_id}
    sample["path"] = f"/events/{event_id}"
    for headers in (sample["headers"], sample["multiValueHeaders"]):
        value = f"Bearer {containers.cloud.environ['API_TOKEN']}"
        headers["Authorization"] = value if headers is sample["headers"] else [value]
    timeline = containers.invoke("OpsApiFunction", sample)
    assert timeline["statusCode"] == 200, timeline
    assert json.loads(timeline["body"])["event"]["event_id"] == event_id


def command_api(containers: Containers) -> None:
    sample = json.loads((CHECKOUT / "events" / "command_api.json").read_text())
    assert containers.invoke("CommandApiFunction", sample)["statusCode"] == 401
    value = f"Bearer {containers.cloud.environ['API_TOKEN']}"
    sample["headers"]["Authorization"], sample["multiValueHeaders"]["Authorization"] = value, [value]
    held = containers.invoke("CommandApiFunction", sample)
    assert held["statusCode"] == 200, held
    assert json.loads(held["body"])["held_by"] == "token:root"
    for sent in (sample, sample["requestContext"]):
        sent["path"] = sent["path"].replace("hold", "resume")
    sample["resource"] = "/subscriptions/{name}/resume"
    sample["headers"]["Idempotency-Key"], sample["multiValueHeaders"]["Idempotency-Key"] = (
        "another-key",
        ["another-key"],
    )
    assert containers.invoke("CommandApiFunction", sample)["statusCode"] == 200


def a_stored_event(containers: Containers) -> str:
    return str(containers.cloud.query("SELECT event_id FROM events ORDER BY ingested_at LIMIT 1")[0][0])


def consumer(containers: Containers, function: str) -> None:
    """Checks for any other consumer that it processes its sample."""
    name = TEMPLATE["Resources"][function]["Properties"]["CodeUri"].removeprefix("functions/")
    batch = json.loads((CHECKOUT / "events" / f"{name}.json").read_text())
    sent = {UUID(json.loads(record["body"])["event_id"]) for record in batch["Records"]}
    assert containers.invoke(function, f"{name}.json") == {"batchItemFailures": []}
    processed = containers.cloud.query("SELECT event_id FROM processed_events WHERE consumer = %s", name)
    assert {row[0] for row in processed} >= sent


def dead_letter(containers: Containers) -> None:
    text = (CHECKOUT / "events" / "dead_letter.json").read_text()
    for queue in ("MarketTicksDeadLetterQueue", "FailedInvocationsQueue"):
        text = text.replace(f"ai-control-plane-{queue}", containers.cloud.environ[f"{queue}Name"])
    batch = json.loads(text)
    assert containers.invoke("DeadLetterFunction", batch) == {"batchItemFailures": []}
    kept = containers.cloud.query("SELECT message_id FROM dead_letters")
    assert {row[0] for row in kept} >= {record["messageId"] for record in batch["Records"]}


def timers(containers: Containers) -> None:
    assert containers.invoke("TimersFunction", "timers.json").keys() == {"expired", "woken", "anchored"}


def operations(containers: Containers) -> None:
    report = containers.invoke("OperationsFunction", "operations.json")
    assert report.pop("folded") >= 0
    assert report == {"steps": 0, "finished": 0, "failed": 0, "active": 0, "stalled": 0}


def retrial(containers: Containers) -> None:
    answer = containers.invoke("RetrialFunction", "retrial.json")
    assert answer["refused"] == "no_decision", answer
    policies = {"kind": "policies", "domain": "finance", "policies": '@id("x") permit (principal, action, resource);'}
    tried = containers.invoke("RetrialFunction", policies)["result"]
    assert (tried["policies"], tried["tried"]) == (["x"], tried["recorded"])


def trace(containers: Containers) -> None:
    """Exports what the functions before it have left to a real receiver."""
    report: dict[str, Any] = {"events": 0}
    tries = 0
    while not report["events"] and tries < 4:  # The deployed function, which runs every minute, may come first.
        with psycopg.connect(containers.cloud.environ["DATABASE_OWNER_URL"]) as owner:
            owner.execute("UPDATE trace_cursor SET stored_by = '0'")  # there once the function has run
        report = containers.invoke("TraceFunction", "trace.json")
        tries += 1
    assert (report["failure"], report["rejected_spans"]) == (None, 0), report
    assert report["events"] > 0, report
    received = containers.traces.spans(report["spans"])
    assert {span.name.split()[0] for span in received} >= {"create", "send", "process"}


def of_deciding(containers: Containers, function: str, sample: str, *, refuses: bool) -> None:
    """Its sample is about a decision that there is not: some leave it alone, the others take it for invented."""
    batch = json.loads((CHECKOUT / "events" / sample).read_text())
    failed = [{"itemIdentifier": record["messageId"]} for record in batch["Records"]] if refuses else []
    assert containers.invoke(function, sample) == {"batchItemFailures": failed}


CONSUMERS = [
    name
    for name in FUNCTIONS
    if any(one["Type"] == "SQS" for one in TEMPLATE["Resources"][name]["Properties"].get("Events", {}).values())
]
# The order matters: each function needs what an earlier one left.
EFFECTS: dict[str, Callable[[Containers], None]] = {
    "MigrationFunction": migration,
    "IngestionFunction": ingestion,
    "MaintenanceFunction": maintenance,
    "RelayFunction": relay,
    "SignalLabFunction": signal_lab,
    "OpsApiFunction": ops_api,
    "CommandApiFunction": command_api,
    "DeadLetterFunction": dead_letter,
    "TimersFunction": timers,
    "OperationsFunction": operations,
    "RetrialFunction": retrial,
    "TraceFunction": trace,
    "DecisionFunction": partial(of_deciding, function="DecisionFunction", sample="decision.json", refuses=False),
    "AgentFunction": partial(of_deciding, function="AgentFunction", sample="agent.json", refuses=False),
    "GatekeeperFunction": partial(of_deciding, function="GatekeeperFunction", sample="gatekeeper.json", refuses=True),
    "ActionFunction": partial(of_deciding, function="ActionFunction", sample="action.json", refuses=True),
}
EFFECTS |= {name: partial(consumer, function=name) for name in CONSUMERS if name not in EFFECTS}


def test_every_function_of_the_template_is_tested() -> None:
    assert sorted(FUNCTIONS) == sorted(EFFECTS)


@pytest.mark.parametrize("function", EFFECTS)
def test_a_function_runs_in_lambdas_container_with_its_effect(containers: Containers, function: str) -> None:
    EFFECTS[function](containers)


def test_the_api_is_served_from_containers(containers: Containers) -> None:
    event_id = a_stored_event(containers)
    with containers.start_api() as url:
        # Each request starts a container, which waits one second for Postgres, or three: on a busy machine it then says
        # that Postgres does not answer.
        status, health = get(f"{url}/health")
        assert (status, "database" in health["checks"]) in {(200, True), (503, True)}
        assert get(f"{url}/events/{event_id}")[0] == 401

        def timeline() -> Any:
            status, found = get(f"{url}/events/{event_id}", token=containers.cloud.environ["API_TOKEN"])
            assert status in {200, 503}, found
            return found if status == 200 else None

        found = wait_for(timeline, seconds=2 * INVOKE_SECONDS, what="the event")
    assert found["event"]["event_id"] == event_id


def get(url: str, *, token: str | None = None) -> tuple[int, Any]:
    request = Request(url, headers={"Authorization": f"Bearer {token}"} if token else {})
    try:
        with urlopen(request, timeout=INVOKE_SECONDS) as answer:
            return answer.status, json.load(answer)
    except HTTPError as refused:
        with refused:
            return refused.code, json.load(refused)
