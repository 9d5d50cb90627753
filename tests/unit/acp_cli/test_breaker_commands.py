from __future__ import annotations

import pytest

from acp_cli.breaker_commands import Guarded, find, guarded_by_breakers
from local_cloud.errors import UsageError
from local_cloud.run_state import Deployment, RunState

URL = "http://sqs.us-east-1.localhost:4566/000000000000/"
OUTPUTS = {
    "MarketTicksQueueUrl": URL + "acp-market-ticks-1a2b",
    "MarketTicksDeadLetterQueueUrl": URL + "acp-MarketTicksDeadLetterQueue-3c",
    "SystemEventsQueueUrl": URL + "acp-system-events-4d",
    "RelayFunctionName": "relay",
}
SIGNAL_LAB = Guarded("signal_lab", ("MarketTicksQueue",), kind="subscription")
SYSTEM_EVENTS = Guarded("system_events", ("SystemEventsQueue",), kind="subscription")
REPLAY = Guarded("yfinance-replay", kind="source")


def guarded(*stored: str, market: str = "replay") -> list[Guarded]:
    urls = f'{{"signal_lab": "{OUTPUTS["MarketTicksQueueUrl"]}", "system_events": "{OUTPUTS["SystemEventsQueueUrl"]}"}}'
    deployment = Deployment("1@2", template="", code="", outputs=OUTPUTS, environ={"SUBSCRIPTION_QUEUE_URLS": urls})
    return guarded_by_breakers(RunState(market_source=market, deployment=deployment), OUTPUTS, stored)


def test_the_relays_subscriptions_and_the_source_have_breakers() -> None:
    assert guarded() == [SIGNAL_LAB, SYSTEM_EVENTS, REPLAY]
    assert guarded(market="yahoo")[-1] == Guarded("yfinance", kind="source")


def test_a_stored_breaker_is_listed_once() -> None:
    stored = ["signal_lab", "yfinance", "yfinance-replay"]
    assert guarded(*stored) == [SIGNAL_LAB, SYSTEM_EVENTS, REPLAY, Guarded("yfinance")]


@pytest.mark.parametrize(
    ("asked", "meant"),
    [
        ("signal_lab", SIGNAL_LAB),
        ("SIGNAL_LAB", SIGNAL_LAB),
        ("signal", SIGNAL_LAB),
        ("MarketTicksQueue", SIGNAL_LAB),
        ("markettic", SIGNAL_LAB),
        (" system_", SYSTEM_EVENTS),
        ("yfinance", REPLAY),
        ("yfinance-replay", REPLAY),
    ],
)
def test_every_word_that_people_use_is_understood(asked: str, meant: Guarded) -> None:
    assert find(guarded(), asked) == meant


def test_a_whole_word_is_not_read_as_a_prefix() -> None:
    assert find(guarded("yfinance"), "yfinance") == Guarded("yfinance")


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("bonds", "Nothing called 'bonds' has a breaker."),
        ("", "Nothing called '' has a breaker."),
        ("market.ticks", "Nothing called 'market.ticks' has a breaker."),
        ("s", "'s' could be several."),
    ],
)
def test_a_word_for_nothing_or_for_several_is_refused(asked: str, said: str) -> None:
    with pytest.raises(UsageError) as refusal:
        find(guarded(), asked)
    assert str(refusal.value) == (
        f"{said} There are: signal_lab (MarketTicksQueue), system_events (SystemEventsQueue), yfinance-replay."
    )


def test_a_missing_breaker_list_is_explained() -> None:
    with pytest.raises(UsageError, match=r"Nothing called 'x' has a breaker\. There are none\."):
        find([], "x")
