"""template.yaml and samconfig.toml have what the functions need."""

import ast
import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from tests.conftest import SUBSCRIPTIONS
from tests.template import (
    CONSUMERS,
    FOLDERS,
    FUNCTIONS,
    GLOBALS,
    PARAMETERS,
    QUEUES,
    RESOURCES,
    ROOT,
    TEMPLATE,
    declared,
    of_type,
    timeout,
)

from control_plane.decisions import settings as deciding_settings
from control_plane.model.errors import ConfigurationError
from control_plane.ops.migrations import read_migrations
from control_plane.outbox.sqs import SqsPublisher
from control_plane.platform import settings
from control_plane.platform.database import SCHEMA_VERSION
from control_plane.platform.environ import EnvironReader
from control_plane.platform.settings import DeadLetterSettings, MaintenanceSettings, RelaySettings
from domains import EVENT_TYPES
from local_cloud.roles import SECRETS

FIXED_QUEUES = {
    f"{name}{kind}"
    for name in ("MarketTicks", "SystemEvents", "Detector", "Decisions", "Agents", "Gatekeeper", "Actions")
    for kind in ("Queue", "DeadLetterQueue")
}
DECIDING = {"decisions": "decision", "agents": "agent", "gatekeeper": "gatekeeper"}
"""The platform's own subscriptions, and the folders of the functions that consume them."""
ACTIONS = {"actions": "action"}
"""The client's subscription is named for its topic, too."""
FIXED_FUNCTIONS = {
    "IngestionFunction",
    "RelayFunction",
    "SignalLabFunction",
    "OpsApiFunction",
    "CommandApiFunction",
    "MigrationFunction",
    "MaintenanceFunction",
    "DetectorFunction",
    "DecisionFunction",
    "AgentFunction",
    "GatekeeperFunction",
    "ActionFunction",
    "TimersFunction",
    "DeadLetterFunction",
    "OperationsFunction",
    "RetrialFunction",
    "TraceFunction",
}
FIXED_PARAMETERS = {
    "Symbols",
    "IngestionSchedule",
    "RelaySchedule",
    "RelayLingerSeconds",
    "MaxDeliveryAttempts",
    "DatabaseOwnerSecretArn",
    "IngestDatabaseSecretArn",
    "RelayDatabaseSecretArn",
    "ConsumeDatabaseSecretArn",
    "ReadDatabaseSecretArn",
    "MaintainDatabaseSecretArn",
    "DetectDatabaseSecretArn",
    "DecideDatabaseSecretArn",
    "AgentDatabaseSecretArn",
    "GatekeeperDatabaseSecretArn",
    "ActionDatabaseSecretArn",
    "ModelProvider",
    "ModelId",
    "ModelUrl",
    "ModelSecretArn",
    "ModelPriceMicros",
    "ModelMaxTokens",
    "ModelOutput",
    "DailyBudgetUsd",
    "ApiTokenSecretArn",
    "MarketDataUrl",
    "Architecture",
    "LogLevel",
    "SubnetIds",
    "SecurityGroupIds",
    "AlarmTopicArn",
    "TracesEndpoint",
    "TracesSecretArn",
    "TracesSampleRatio",
}
GIVEN = {
    **{name: f"arn:aws:secretsmanager:{role}" for name, role in SECRETS.items()},
    "ApiTokenSecretArn": "arn:aws:secretsmanager:token",
}
CHOSEN = {"TracesEndpoint": "https://collector.example/v1/traces"}
"""What is given where a function is deployed for it alone."""
FOUR_DAYS = 345_600
"""SQS's own MessageRetentionPeriod, in seconds."""


def settings_of(function: str) -> Any:
    """Returns the class whose ``from_environ`` the function's app.py calls."""
    module = ast.parse((ROOT / "functions" / FOLDERS[function] / "app.py").read_text(encoding="utf-8"))
    attributes = [node for node in ast.walk(module) if isinstance(node, ast.Attribute) and node.attr == "from_environ"]
    [name] = {node.value.id for node in attributes if isinstance(node.value, ast.Name)}
    module = settings if hasattr(settings, name) else deciding_settings
    return getattr(module, name)


def resource_of(value: Any, attribute: str) -> str:
    """Returns the logical id of a GetAtt."""
    name, found = value["Fn::GetAtt"]
    assert found == attribute
    return str(name)


def resolved(value: Any) -> str:
    """Returns a property as the deployed stack has it, with the parameters' defaults."""
    if isinstance(value, dict) and "Fn::If" in value:  # No condition of the template holds by default.
        value = value["Fn::If"][2]
    match value:
        case {"Ref": name}:
            if name in PARAMETERS:
                return str((GIVEN | CHOSEN).get(name, PARAMETERS[name].get("Default")))
            if name in FUNCTIONS:
                return str(name)
            assert name in QUEUES, name
            return f"https://sqs.us-east-1.amazonaws.com/123456789012/{name}"
        case {"Fn::Sub": text}:
            text = re.sub(r"\$\{(\w+)\.QueueName\}", lambda match: f"acp-{match[1]}", text)
            return re.sub(r"\$\{(\w+)\}", lambda match: resolved({"Ref": match[1]}), text)
        case {"Fn::GetAtt": [name, "QueueName"]}:
            return f"acp-{name}"
        case str() | int() | float():
            return str(value)
        case _:
            raise AssertionError(f"not foreseen here: {value}")


def sqs_events(function: str) -> Iterator[dict[str, Any]]:
    for event in FUNCTIONS[function].get("Events", {}).values():
        if event["Type"] == "SQS":
            yield event["Properties"]


def schedules(function: str) -> list[dict[str, Any]]:
    events = FUNCTIONS[function].get("Events", {}).values()
    return [event["Properties"] for event in events if event["Type"].startswith("Schedule")]


SUBSCRIBED = {folder: name for name, folder in (DECIDING | ACTIONS).items()}
CONSUMED = {
    SUBSCRIBED.get(FOLDERS[name], FOLDERS[name]): resource_of(event["Queue"], "Arn")
    for name in FUNCTIONS
    if name != "DeadLetterFunction"  # It takes what the others gave up on.
    for event in sqs_events(name)
}
"""Subscription -> the queue that its function takes messages from; a consumer's function is named as it is."""


# Names


def test_the_names_that_others_rely_on_are_there() -> None:
    assert FUNCTIONS.keys() >= FIXED_FUNCTIONS
    assert QUEUES.keys() >= FIXED_QUEUES
    assert PARAMETERS.keys() >= FIXED_PARAMETERS
    outputs = TEMPLATE["Outputs"]
    for function in FUNCTIONS:
        assert outputs[f"{function}Name"]["Value"] == {"Ref": function}
    for queue in QUEUES:
        assert outputs[f"{queue}Url"]["Value"] == {"Ref": queue}
        assert outputs[f"{queue}Name"]["Value"] == {"Fn::GetAtt": [queue, "QueueName"]}
    assert "ApiUrl" in outputs


def test_every_function_of_the_code_is_deployed() -> None:
    assert {path.parent.name for path in (ROOT / "functions").glob("*/app.py")} == set(FOLDERS.values())


def test_a_functions_folder_is_named_for_it() -> None:
    for function, folder in FOLDERS.items():
        assert function == "".join(word.capitalize() for word in folder.split("_")) + "Function"


def test_no_resource_has_a_name_that_a_second_stack_repeats() -> None:
    # A queue's name: see test_template_security.
    naming = {"FunctionName", "LayerName", "RoleName", "AlarmName", "TopicName", "Name", "StackName"}
    for name, resource in RESOURCES.items():
        given = naming & resource["Properties"].keys()
        if resource["Type"] == "AWS::Serverless::LayerVersion":  # SAM's default is its logical id in every stack.
            assert resource["Properties"]["LayerName"]["Fn::Sub"].startswith("${AWS::StackName}-")
            given.remove("LayerName")
        assert not given, name
    for function, properties in FUNCTIONS.items():
        for event in properties.get("Events", {}).values():
            assert not naming & event["Properties"].keys(), function


def test_every_parameter_is_used_and_says_what_it_is_for() -> None:
    text = json.dumps({key: value for key, value in TEMPLATE.items() if key != "Parameters"})
    for name, parameter in PARAMETERS.items():
        assert f'{{"Ref": "{name}"}}' in text or f"${{{name}}}" in text, name
        assert parameter["Description"]


def test_secret_parameters_have_no_default_and_take_only_arns() -> None:
    assert {name for name, parameter in PARAMETERS.items() if "Default" not in parameter} == GIVEN.keys()
    for name in GIVEN:
        pattern = PARAMETERS[name]["AllowedPattern"]
        assert re.fullmatch(pattern, "arn:aws:secretsmanager:us-east-1:123456789012:secret:acp")
        assert not re.fullmatch(pattern, "")
        assert not re.fullmatch(pattern, "postgresql://acp_relay@host/db")
        assert PARAMETERS[name]["ConstraintDescription"].startswith("must be the ARN of a secret that holds")


# Functions


@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_functions_handler_is_in_its_folder(function: str) -> None:
    properties = FUNCTIONS[function]
    assert properties["CodeUri"] == f"functions/{FOLDERS[function]}"
    assert properties.get("Handler", GLOBALS["Handler"]) == "app.handler"
    module = ast.parse((ROOT / properties["CodeUri"] / "app.py").read_text(encoding="utf-8"))
    [handler] = [node for node in module.body if isinstance(node, ast.FunctionDef) and node.name == "handler"]
    assert len(handler.args.args) == 2


@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_function_runs_on_python_3_13(function: str) -> None:
    assert FUNCTIONS[function].get("Runtime", GLOBALS["Runtime"]) == "python3.13"


def test_a_layer_is_built_for_python_3_13() -> None:
    layers = of_type("AWS::Serverless::LayerVersion")
    assert layers.keys() == {"CoreLayer", "MarketDataLayer", "DecisionsLayer", "TracingLayer"}
    for name, properties in layers.items():
        assert RESOURCES[name]["Metadata"] == {
            "BuildMethod": "python3.13",
            "BuildArchitecture": {"Ref": "Architecture"},
        }
        assert properties["CompatibleRuntimes"] == ["python3.13"]
        assert properties["CompatibleArchitectures"] == GLOBALS["Architectures"] == [{"Ref": "Architecture"}]
        assert (ROOT / properties["ContentUri"] / "requirements.txt").is_file()


def test_a_layer_goes_with_its_stack() -> None:
    for name, properties in of_type("AWS::Serverless::LayerVersion").items():
        assert properties.get("RetentionPolicy") == "Delete", f"{name}: SAM's default keeps every version for ever"


def test_every_function_has_the_core_layer_and_a_few_another() -> None:
    assert GLOBALS["Layers"] == [{"Ref": "CoreLayer"}]
    # SAM puts a function's own layers after those of Globals.
    assert {name: properties["Layers"] for name, properties in FUNCTIONS.items() if "Layers" in properties} == {
        "IngestionFunction": [{"Ref": "MarketDataLayer"}],
        "DecisionFunction": [{"Ref": "DecisionsLayer"}],
        "AgentFunction": [{"Ref": "DecisionsLayer"}],
        "GatekeeperFunction": [{"Ref": "DecisionsLayer"}],
        "RetrialFunction": [{"Ref": "DecisionsLayer"}],
        "TraceFunction": [{"Ref": "TracingLayer"}],
    }


@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_functions_settings_are_satisfied_by_what_the_template_declares(function: str) -> None:
    environ = {name: resolved(value) for name, value in declared(function).items()}
    found = settings_of(function).from_environ(environ)
    assert found.database.url is None
    assert found.database.secret_arn in GIVEN.values()
    assert found.cloud_endpoint_url is None


def read_by(function: str, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    names = set()
    read = EnvironReader.text

    def recording(reader: EnvironReader, name: str) -> str | None:
        names.add(name)
        return read(reader, name)

    monkeypatch.setattr(EnvironReader, "text", recording)
    with pytest.raises(ConfigurationError):
        settings_of(function).from_environ({})
    return names


@pytest.mark.parametrize("function", FUNCTIONS)
def test_every_declared_variable_is_read_and_none_is_a_url(function: str, monkeypatch: pytest.MonkeyPatch) -> None:
    read = read_by(function, monkeypatch)
    names = declared(function).keys()
    assert "DATABASE_URL" in read
    assert "DATABASE_URL" not in names
    assert {name for name in names if not name.startswith("POWERTOOLS_")} <= read
    assert not [name for name in names if name.startswith("AWS_")]


def test_every_variable_is_a_text() -> None:
    numbers = [
        f"{function}: {name}"
        for function in of_type("AWS::Serverless::Function")
        for name, value in declared(function).items()
        if not isinstance(value, str | dict)
    ]
    assert numbers == []


def test_the_export_of_traces_is_there_as_a_whole_or_not_at_all() -> None:
    of_it = {name for name in RESOURCES if re.match(r"(Trac|Spans)", name)}
    assert {name for name, resource in RESOURCES.items() if resource.get("Condition") == "ExportsTraces"} == of_it
    assert TEMPLATE["Conditions"]["ExportsTraces"] == {"Fn::Not": [{"Fn::Equals": [{"Ref": "TracesEndpoint"}, ""]}]}
    assert PARAMETERS["TracesEndpoint"]["Default"] == ""
    # What is not conditional refers to nothing of it.
    others = {name: resource for name, resource in RESOURCES.items() if name not in of_it}
    assert not [name for name in of_it if re.search(rf'"{name}"|\{{{name}[.}}]', json.dumps(others))]


def test_the_relay_says_sampled_only_where_traces_are_exported() -> None:
    ratio = declared("RelayFunction")["TRACES_SAMPLE_RATIO"]
    assert ratio == {"Fn::If": ["ExportsTraces", {"Ref": "TracesSampleRatio"}, "0"]}
    assert declared("TraceFunction")["TRACES_SAMPLE_RATIO"] == {"Ref": "TracesSampleRatio"}


def test_everything_is_kept_for_ever_unless_the_template_is_changed() -> None:
    environ = {name: resolved(value) for name, value in declared("MaintenanceFunction").items()}
    assert MaintenanceSettings.from_environ(environ).retention_days == {}


def test_every_subscription_has_a_topic_and_its_own_queue() -> None:
    topics = json.loads(resolved(declared("MigrationFunction")["SUBSCRIPTIONS"]))
    queues = json.loads(resolved(declared("RelayFunction")["SUBSCRIPTION_QUEUE_URLS"]))
    assert topics.items() >= {"signal_lab": "market.ticks", "system_events": "system.events"}.items()
    assert topics.items() >= {name: consumer.topic for name, consumer in CONSUMERS.items()}.items()
    assert set(topics.values()) <= {topic for payload in EVENT_TYPES for topic in (payload.topic, *payload.also_topics)}
    assert queues.keys() == topics.keys()
    assert len(set(queues.values())) == len(queues)


def test_the_tests_database_has_the_templates_subscriptions() -> None:
    topics = json.loads(resolved(declared("MigrationFunction")["SUBSCRIPTIONS"]))
    assert {name: one.topic for name, one in SUBSCRIPTIONS.items()}.items() <= topics.items()


def test_the_relays_settings_and_the_parameters_of_the_stack_agree() -> None:
    environ = {name: resolved(value) for name, value in declared("RelayFunction").items()}
    relay = RelaySettings.from_environ(environ)
    queues = {"signal_lab": "MarketTicksQueue", "system_events": "SystemEventsQueue"}
    queues |= {name: queue for name, queue in CONSUMED.items() if name not in queues}
    assert relay.subscription_queue_urls == {name: resolved({"Ref": queue}) for name, queue in queues.items()}
    assert relay.lease_seconds > SqsPublisher.send_timeout_seconds
    assert relay.lease_seconds < timeout("RelayFunction")
    for parameter, variable in [
        ("RelayLingerSeconds", "RELAY_LINGER_SECONDS"),
        ("MaxDeliveryAttempts", "MAX_DELIVERY_ATTEMPTS"),
    ]:
        for bound in ("MinValue", "MaxValue"):
            RelaySettings.from_environ(environ | {variable: str(PARAMETERS[parameter][bound])})


def test_each_function_has_its_own_roles_secret() -> None:
    of_consumers = {name: "ConsumeDatabaseSecretArn" for name in FUNCTIONS if FOLDERS[name] in CONSUMERS} | {
        "DetectorFunction": "DetectDatabaseSecretArn",
        "DecisionFunction": "DecideDatabaseSecretArn",
        "TimersFunction": "DecideDatabaseSecretArn",
        "AgentFunction": "AgentDatabaseSecretArn",
        "GatekeeperFunction": "GatekeeperDatabaseSecretArn",
        "ActionFunction": "ActionDatabaseSecretArn",
    }
    assert {function: declared(function)["DATABASE_SECRET_ARN"]["Ref"] for function in FUNCTIONS} == of_consumers | {
        "IngestionFunction": "IngestDatabaseSecretArn",
        "RelayFunction": "RelayDatabaseSecretArn",
        "OpsApiFunction": "ReadDatabaseSecretArn",
        "CommandApiFunction": "CommandDatabaseSecretArn",
        "MigrationFunction": "DatabaseOwnerSecretArn",
        "MaintenanceFunction": "MaintainDatabaseSecretArn",
        "DeadLetterFunction": "MaintainDatabaseSecretArn",
        "OperationsFunction": "MaintainDatabaseSecretArn",
        "RetrialFunction": "ReadDatabaseSecretArn",
        "TraceFunction": "ReadDatabaseSecretArn",
    }


def test_each_function_asks_for_its_secrets_role() -> None:
    for function in FUNCTIONS:
        role = SECRETS[declared(function)["DATABASE_SECRET_ARN"]["Ref"]]
        source = (ROOT / "functions" / FOLDERS[function] / "app.py").read_text(encoding="utf-8")
        asked = re.findall(r'\brole=("\w+"|None)', source)
        assert set(asked) == {"None" if role == "acp_owner" else f'"{role}"'}, function


def test_each_secrets_parameter_names_the_role_it_is_for() -> None:
    for name, role in SECRETS.items():
        assert re.search(rf"\b{role}\b", PARAMETERS[name]["Description"]), name
        assert re.search(rf"\b{role}\b", PARAMETERS[name]["ConstraintDescription"]), name


@pytest.mark.parametrize("function", [name for name in FUNCTIONS if schedules(name)])
def test_a_failed_scheduled_invocation_is_retried_and_then_kept(function: str) -> None:
    config = FUNCTIONS[function]["EventInvokeConfig"]
    assert 0 <= config["MaximumRetryAttempts"] <= 2
    assert config["MaximumEventAgeInSeconds"] >= 60
    destination = config["DestinationConfig"]["OnFailure"]
    assert destination["Type"] == "SQS"
    assert resource_of(destination["Destination"], "Arn") in QUEUES


def test_schedules_are_parameters_or_fixed() -> None:
    assert {name: [item["Schedule"] for item in schedules(name)] for name in FUNCTIONS if schedules(name)} == {
        "IngestionFunction": [{"Ref": "IngestionSchedule"}],
        "RelayFunction": [{"Ref": "RelaySchedule"}],
        "MaintenanceFunction": ["rate(1 hour)"],
        "TimersFunction": ["rate(1 minute)"],
        "OperationsFunction": ["rate(1 minute)"],
        "TraceFunction": ["rate(1 minute)"],
    }
    for function in FUNCTIONS:
        for schedule in schedules(function):
            # LocalStack takes an Input of {} for no event at all, and then never invokes.
            assert "Input" not in schedule


@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_functions_log_group_expires(function: str) -> None:
    groups = of_type("AWS::Logs::LogGroup").values()
    # Lambda's default name, because a local cloud knows no other.
    [group] = [item for item in groups if item["LogGroupName"] == {"Fn::Sub": f"/aws/lambda/${{{function}}}"}]
    assert group["RetentionInDays"] > 0
    assert "LoggingConfig" not in FUNCTIONS[function]


# Queues


def dead_letters_of(queue: str) -> str:
    return resource_of(QUEUES[queue]["RedrivePolicy"]["deadLetterTargetArn"], "Arn")


@pytest.mark.parametrize("queue", [name for name in QUEUES if "RedrivePolicy" in QUEUES[name]])
def test_a_queue_gives_up_after_five_receives(queue: str) -> None:
    assert QUEUES[queue]["RedrivePolicy"]["maxReceiveCount"] == 5
    dead_letters = dead_letters_of(queue)
    assert dead_letters == queue.replace("Queue", "DeadLetterQueue")
    kept, kept_dead = (QUEUES[name].get("MessageRetentionPeriod", FOUR_DAYS) for name in (queue, dead_letters))
    assert kept_dead >= kept
    assert "RedrivePolicy" not in QUEUES[dead_letters]


ENDS = {name for name in QUEUES if "RedrivePolicy" not in QUEUES[name]}
"""Queues of what was given up on."""


def test_what_was_given_up_on_is_moved_out_of_every_queue_that_is_an_end() -> None:
    moved = {resource_of(event["Queue"], "Arn"): event for event in sqs_events("DeadLetterFunction")}
    assert moved.keys() == ENDS
    for queue, event in moved.items():
        assert event["FunctionResponseTypes"] == ["ReportBatchItemFailures"]
        # One that cannot be stored comes again until SQS forgets it: an end has no end of its own.
        assert QUEUES[queue]["VisibilityTimeout"] >= 6 * timeout("DeadLetterFunction")
    environ = {name: resolved(value) for name, value in declared("DeadLetterFunction").items()}
    subscriptions = {queue: name for name, queue in CONSUMED.items()} | {"SystemEventsQueue": "system_events"}
    expected = {f"acp-{dead_letters_of(queue)}": name for queue, name in subscriptions.items()}
    expected |= {"acp-FailedInvocationsQueue": None}
    assert DeadLetterSettings.from_environ(environ).queues == expected


def test_every_queue_is_encrypted() -> None:
    assert [name for name, properties in QUEUES.items() if properties.get("SqsManagedSseEnabled") is not True] == []


def test_a_function_consumes_each_consumers_queue() -> None:
    assert CONSUMED["signal_lab"] == "MarketTicksQueue"
    assert CONSUMED.keys() == CONSUMERS.keys() | DECIDING.keys()
    assert len(set(CONSUMED.values())) == len(CONSUMED), "two functions on one queue share its messages"


@pytest.mark.parametrize(
    ("function", "event"), [(function, event) for function in FUNCTIONS for event in sqs_events(function)]
)
def test_a_consumed_queue_waits_six_timeouts_with_partial_batch_failures(
    function: str, event: Mapping[str, Any]
) -> None:
    queue = resource_of(event["Queue"], "Arn")
    assert QUEUES[queue]["VisibilityTimeout"] >= 6 * timeout(function)
    assert ("RedrivePolicy" in QUEUES[queue]) == (function != "DeadLetterFunction")
    assert event["FunctionResponseTypes"] == ["ReportBatchItemFailures"]


# samconfig.toml and the schema


def test_samconfig_deploys_to_a_local_cloud_and_to_an_account() -> None:
    config = tomllib.loads((ROOT / "samconfig.toml").read_text(encoding="utf-8"))
    for environment in ("local", "cloud"):
        deploy = config[environment]["deploy"]["parameters"]
        assert deploy["stack_name"]
        assert deploy["capabilities"] == "CAPABILITY_IAM"
    assert config["cloud"]["deploy"]["parameters"]["confirm_changeset"] is True
    assert config["local"]["deploy"]["parameters"]["confirm_changeset"] is False


def test_the_code_needs_the_newest_migration() -> None:
    assert read_migrations(ROOT / "db" / "migrations")[-1].version == SCHEMA_VERSION
