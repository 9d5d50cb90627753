"""What `acp new` makes, and which names it refuses."""

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from samcli.yamlhelper import yaml_parse
from tests.checkout import ROOT

from control_plane.model.contract import FiniteNumber, Instant, Payload, Text
from domains import EVENT_TYPES
from local_cloud.errors import AcpError, UsageError
from scaffold import sample
from scaffold.consumer import new_consumer
from scaffold.migration import new_migration
from scaffold.template import Names, with_consumer

TEMPLATE = (ROOT / "template.yaml").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "name", ["", "Detector", "source-watch", "2nd", "_x", "x_", "a__b", "import", "../x", "x.y", "x" * 41, "ü", "x\n"]
)
def test_a_name_that_code_or_queues_cannot_have_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="A consumer cannot be called") as refused:
        new_consumer(ROOT, name, "system.events")
    assert "such as source_watch" in refused.value.remedy


@pytest.mark.parametrize(
    "name", ["signal_lab", "relay", "market_ticks", "system_events", "events", "failed_invocations"]
)
def test_a_taken_name_is_refused_naming_what_has_it(name: str) -> None:
    with pytest.raises(UsageError, match=f"The name {name} is taken: there is .* already"):
        new_consumer(ROOT, name, "system.events")


def test_an_unknown_topic_is_refused_and_the_known_are_named() -> None:
    with pytest.raises(UsageError, match=r"There is no topic 'market\.tick'") as refused:
        new_consumer(ROOT, "sentinel", "market.tick")
    for topic in {payload.topic for payload in EVENT_TYPES}:
        assert topic in refused.value.remedy


def test_an_unknown_domain_is_refused_and_the_known_are_named() -> None:
    with pytest.raises(UsageError, match="There is no domain 'weather'") as refused:
        new_consumer(ROOT, "sentinel", "market.ticks", "weather")
    assert "finance" in refused.value.remedy


@pytest.mark.parametrize("name", ["", "Source", "a-b", "../x"])
def test_a_migration_s_bad_name_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="A migration cannot be called"):
        new_migration(ROOT, name)


def test_a_new_migration_raises_the_version_the_code_needs() -> None:
    count = len(list((ROOT / "db" / "migrations").glob("*.sql")))
    path, code = new_migration(ROOT, "for_this_test").items()
    assert path[0].name == f"{count + 1:04}_for_this_test.sql"
    assert re.search(rf"^SCHEMA_VERSION\b.*= {count + 1}$", code[1], re.MULTILINE)


def renamed(value: object, names: Names) -> object:
    """Returns what a resource of SignalLab's is called for a consumer with these names."""
    return json.loads(names.renamed(json.dumps(value)))


NAMES_EVERY_QUEUE = {
    "MigrationFunction", "RelayFunction", "RelayFunctionRole", "QueuePolicy", "Dashboard", "DeadLetterFunction",
    "DeadLetterFunctionRole",
}  # fmt: skip
"""The resources that a new consumer changes."""


@settings(max_examples=5, deadline=None)
@given(st.lists(st.sampled_from(["alpha", "b2", "watch"]), min_size=1, max_size=2, unique=True).map("_".join))
def test_a_consumer_s_resources_are_like_signal_labs(name: str) -> None:
    names = Names(name)
    before, after = yaml_parse(TEMPLATE), yaml_parse(with_consumer(TEMPLATE, names, "system.events"))
    resources, outputs = after["Resources"], after["Outputs"]
    assert resources.keys() > before["Resources"].keys()
    for logical_id in ("FunctionRole", "LogPolicy", "LogGroup", "ErrorsAlarm", "ThrottlesAlarm"):
        expected = renamed(resources[f"SignalLab{logical_id}"], names)
        assert resources[f"{names.pascal}{logical_id}"] == expected, logical_id
    for logical_id in ("Queue", "DeadLetterQueue"):
        assert resources[f"{names.pascal}{logical_id}"] == renamed(resources[f"MarketTicks{logical_id}"], names)
        assert {f"{names.pascal}{logical_id}Url", f"{names.pascal}{logical_id}Name"} <= outputs.keys()
    for logical_id, resource in before["Resources"].items():
        if logical_id not in NAMES_EVERY_QUEUE:
            assert resources[logical_id] == resource, logical_id
    moving = resources["DeadLetterFunction"]["Properties"]
    moved = renamed(moving["Events"]["MarketTicks"], names)
    assert moving["Events"][names.pascal] == moved
    queues = json.loads(moving["Environment"]["Variables"]["DEAD_LETTER_QUEUES"]["Fn::Sub"])
    assert queues[name] == f"${{{names.pascal}DeadLetterQueue.QueueName}}"
    [statement] = [
        one
        for one in resources["DeadLetterFunctionRole"]["Properties"]["Policies"][0]["PolicyDocument"]["Statement"]
        if "sqs:ReceiveMessage" in one.get("Action", "")
    ]
    assert moving["Events"][names.pascal]["Properties"]["Queue"] in statement["Resource"]


def test_a_second_new_consumer_is_added_beside_the_first() -> None:
    once = with_consumer(TEMPLATE, Names("first"), "system.events")
    twice = with_consumer(once, Names("second"), "market.ticks")
    subscriptions, former = (
        json.loads(
            yaml_parse(text)["Resources"]["MigrationFunction"]["Properties"]["Environment"]["Variables"][
                "SUBSCRIPTIONS"
            ]
        )
        for text in (twice, TEMPLATE)
    )
    assert subscriptions == former | {"first": "system.events", "second": "market.ticks"}
    anchors = re.findall(r"[ -] &(\w+)", twice)
    assert sorted(anchors) == sorted(set(anchors)), "an anchor is defined twice"


def test_a_template_without_what_is_copied_is_refused() -> None:
    with pytest.raises(AcpError, match=r"template\.yaml has no SignalLabLogGroup"):
        with_consumer(TEMPLATE.replace("  SignalLabLogGroup:", "  OtherLogGroup:"), Names("x"), "system.events")


def test_a_sample_s_messages_are_events_of_the_topic() -> None:
    for topic in {payload.topic for payload in EVENT_TYPES}:
        payloads = [payload for payload in EVENT_TYPES if payload.topic == topic]
        events = [EVENT_TYPES.parse_event(one["body"]) for one in sample.batch(payloads, "Queue")["Records"]]
        assert [event.event_type for event in events] == [payload.event_type for payload in payloads]


def test_an_example_that_cannot_be_made_up_is_named() -> None:
    class Odd(Payload):
        event_type = "ODD_SEEN"
        schema_version = 1
        topic = "odd.things"
        number: FiniteNumber
        when: Instant
        text: Text
        things: list[str]

    with pytest.raises(AcpError, match="No example can be made up for ODD_SEEN's things"):
        sample.batch([Odd], "Queue")
