from __future__ import annotations

import pytest

from acp_cli.breaker_commands import Guarded, find, guarded_by_breakers
from local_cloud.errors import UsageError
from local_cloud.run_state import Deployment, RunState

URL = "http://sqs.us-east-1.localhost:4566/000000000000/"
OUTPUTS = {
    "MarketTicksQueueUrl": URL + "acp-MarketTicksQueue-1a2b",
    "MarketTicksDeadLetterQueueUrl": URL + "acp-MarketTicksDeadLetterQueue-3c",
    "SystemEventsQueueUrl": URL + "acp-SystemEventsQueue-4d",
    "RelayFunctionName": "relay",
}
TICKS = Guarded("acp-MarketTicksQueue-1a2b", ("market.ticks", "MarketTicksQueue"), is_queue=True)
SYSTEM = Guarded("acp-SystemEventsQueue-4d", ("system.events", "SystemEventsQueue"), is_queue=True)


def guarded(*stored: str, market: str = "replay") -> list[Guarded]:
    urls = (
        f'{{"market.ticks": "{OUTPUTS["MarketTicksQueueUrl"]}", "system.events": "{OUTPUTS["SystemEventsQueueUrl"]}"}}'
    )
    deployment = Deployment("1@2", template="", code="", outputs=OUTPUTS, environ={"TOPIC_QUEUE_URLS": urls})
    return guarded_by_breakers(RunState(market_source=market, deployment=deployment), OUTPUTS, stored)


def test_the_queues_that_are_sent_to_and_the_source_have_breakers() -> None:
    assert guarded() == [TICKS, SYSTEM, Guarded("yfinance-replay")]
    assert guarded(market="yahoo")[-1] == Guarded("yfinance")


def test_what_the_database_knows_of_is_listed_once() -> None:
    stored = ["acp-MarketTicksQueue-1a2b", "yfinance", "yfinance-replay"]
    assert guarded(*stored) == [TICKS, SYSTEM, Guarded("yfinance-replay"), Guarded("yfinance")]


@pytest.mark.parametrize(
    ("asked", "meant"),
    [
        ("market.ticks", TICKS),
        ("MARKET.TICKS", TICKS),
        ("market", TICKS),
        ("MarketTicksQueue", TICKS),
        ("acp-marketticksqueue-1A2B", TICKS),
        (" acp-System", SYSTEM),
        ("system.events", SYSTEM),
        ("yfinance", Guarded("yfinance-replay")),
        ("yfinance-replay", Guarded("yfinance-replay")),
    ],
)
def test_every_word_that_people_use_is_understood(asked: str, meant: Guarded) -> None:
    assert find(guarded(), asked) == meant


def test_a_whole_word_is_not_taken_for_the_beginning_of_another() -> None:
    assert find(guarded("yfinance"), "yfinance") == Guarded("yfinance")


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("bonds", "Nothing called 'bonds' has a breaker."),
        ("", "Nothing called '' has a breaker."),
        ("acp-", "'acp-' could be several."),
    ],
)
def test_a_word_for_nothing_or_for_several_is_refused_with_those_there_are(asked: str, said: str) -> None:
    with pytest.raises(UsageError) as refusal:
        find(guarded(), asked)
    assert str(refusal.value) == (
        f"{said} There are: acp-MarketTicksQueue-1a2b (market.ticks, MarketTicksQueue), "
        "acp-SystemEventsQueue-4d (system.events, SystemEventsQueue), yfinance-replay."
    )
