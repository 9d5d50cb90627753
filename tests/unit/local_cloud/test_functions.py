from __future__ import annotations

import pytest

from local_cloud.errors import UsageError
from local_cloud.functions import function_name, short_name

OUTPUTS = {"SignalLabFunctionName": "stack-SignalLab-1", "RelayFunctionName": "stack-Relay-1", "ApiUrl": "http://x"}


@pytest.mark.parametrize(
    "asked", ["signal-lab", "signal_lab", "SignalLabFunction", "signallab", "SIGNAL_LAB", "stack-SignalLab-1"]
)
def test_a_function_is_known_by_each_spelling_of_its_name(asked: str) -> None:
    assert function_name(OUTPUTS, asked) == "stack-SignalLab-1"


@pytest.mark.parametrize("asked", ["", "api", "relays", "function"])
def test_an_unknown_function_is_refused_with_those_there_are(asked: str) -> None:
    with pytest.raises(UsageError, match=r"There are: signal-lab, relay\."):
        function_name(OUTPUTS, asked)


def test_a_short_name_is_what_people_type() -> None:
    assert short_name("SignalLabFunction") == "signal-lab"
    assert short_name("Relay") == "relay"
