"""Schedules and other parameters are refused at once if EventBridge or CloudFormation would refuse them later."""

import re

import pytest
from tests.template import TEMPLATE

from local_cloud.schedules import problem_of, update_gaps
from local_cloud.template_parameters import parameter_problem

GOOD = [
    "rate(1 minute)",
    "rate(2 minutes)",
    "rate(10 hours)",
    "rate(1 day)",
    "cron(0 12 * * ? *)",
    "cron(0/5 8-17 ? * MON-FRI *)",
    "cron(0 10 ? * 6#3 *)",
    "cron(15,45 9 LW JAN,JUL ? 2026-2030)",
    "cron(0 18 3W * ? *)",
    "cron(0 18 ? * 6L *)",
]
BAD = [
    ("rate(2 minute)", "'rate(2 minutes)'"),
    ("rate(1 minutes)", "'rate(1 minute)'"),
    ("rate(11 hour)", "'rate(11 hours)'"),
    ("rate(0 minutes)", "neither"),
    ("rate(-1 minutes)", "neither"),
    ("rate(1.5 minutes)", "neither"),
    ("rate(30 seconds)", "neither"),
    ("rate(1  minute)", "neither"),
    ("rate(1 minute) ", "neither"),
    ("every minute", "neither"),
    ("", "neither"),
    ("cron(* * * * *)", "six fields"),
    ("cron(0 12 * * * *)", "exactly one is ?"),
    ("cron(0 12 ? * ? *)", "exactly one is ?"),
    ("cron(60 12 * * ? *)", "'60' is no minutes"),
    ("cron(0 24 * * ? *)", "'24' is no hours"),
    ("cron(0 12 32 * ? *)", "'32' is no day of month"),
    ("cron(0 12 * 13 ? *)", "'13' is no month"),
    ("cron(0 12 ? * MOON *)", "'MOON' is no day of week"),
    ("cron(0/0 12 * * ? *)", "'0/0' is no minutes"),
    ("cron(0 12 * * ? 1969)", "'1969' is no year"),
]


@pytest.mark.parametrize("expression", GOOD)
def test_eventbridge_s_schedules_pass(expression: str) -> None:
    assert problem_of(expression) is None
    for name in ("IngestionSchedule", "RelaySchedule"):
        assert re.fullmatch(TEMPLATE["Parameters"][name]["AllowedPattern"], expression)


@pytest.mark.parametrize(("expression", "reason"), BAD)
def test_other_schedules_are_refused_with_a_reason(expression: str, reason: str) -> None:
    assert reason in (problem_of(expression) or "")


@pytest.mark.parametrize("expression", [expression for expression, _ in BAD if not expression.startswith("cron(")])
def test_the_template_refuses_a_malformed_rate_by_itself(expression: str) -> None:
    assert parameter_problem(TEMPLATE["Parameters"]["RelaySchedule"], expression)


@pytest.mark.parametrize("symbols", ["AAPL", "AAPL,MSFT", "BTC-USD,^GSPC", "BRK.B,EURUSD=X", "0700.HK"])
def test_symbols_as_yahoo_spells_them_pass(symbols: str) -> None:
    assert parameter_problem(TEMPLATE["Parameters"]["Symbols"], symbols) is None


@pytest.mark.parametrize("symbols", ["", "AAPL;MSFT", "AAPL MSFT", "AAPL,,MSFT", "AAPL,", "../etc", "A" * 40, "AAPL\n"])
def test_malformed_symbols_are_refused(symbols: str) -> None:
    assert "such as AAPL,BTC-USD" in (parameter_problem(TEMPLATE["Parameters"]["Symbols"], symbols) or "")


@pytest.mark.parametrize(
    ("declared", "value", "problem"),
    [
        ({"Type": "Number", "MinValue": 0, "MaxValue": 9}, "10", "must be from 0 to 9"),
        ({"Type": "Number", "MinValue": 0, "MaxValue": 9}, "-1", "must be from 0 to 9"),
        ({"Type": "Number"}, "many", "must be a number"),
        ({"Type": "String", "AllowedValues": ["a", "b"]}, "c", "must be one of a, b"),
        ({"Type": "String", "AllowedPattern": "a+"}, "ab", r"must match a\+"),
    ],
)
def test_a_value_is_held_to_what_the_template_declares(declared: dict[str, object], value: str, problem: str) -> None:
    assert re.fullmatch(problem, parameter_problem(declared, value) or "")


@pytest.mark.parametrize(
    "kind",
    [
        "AWS::ApiGateway::RestApi",
        "AWS::ApiGateway::Stage",
        "AWS::CloudWatch::Alarm",
        "AWS::Lambda::EventInvokeConfig",
        "AWS::Logs::LogGroup",
    ],
)
def test_a_change_that_updates_ignore_shows_in_the_digest(kind: str) -> None:
    def digest(text: str) -> str:
        return update_gaps({"Resources": {"One": {"Type": kind, "Properties": {"Text": text}}}}, {}).others

    assert digest("before") != digest("after")
    assert digest("before") == digest("before")
