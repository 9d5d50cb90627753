from __future__ import annotations

from typing import Any

import pytest
from moto import mock_aws

from local_cloud.aws import LocalCloud
from local_cloud.logs import read_lines

FUNCTION = "stack-Relay-1"


@pytest.fixture
def cloud(monkeypatch: pytest.MonkeyPatch) -> Any:
    with mock_aws():
        yield LocalCloud("https://logs.us-east-1.amazonaws.com")


def test_lines_since_the_start_come_from_every_page(cloud: LocalCloud) -> None:
    import time

    now = int(time.time() * 1000)
    cloud.logs.create_log_group(logGroupName=f"/aws/lambda/{FUNCTION}")
    cloud.logs.create_log_stream(logGroupName=f"/aws/lambda/{FUNCTION}", logStreamName="one")
    cloud.logs.put_log_events(
        logGroupName=f"/aws/lambda/{FUNCTION}",
        logStreamName="one",
        logEvents=[{"timestamp": now - 60_000 + index, "message": f"line {index}\n"} for index in range(10_500)],
    )
    lines = list(read_lines(cloud, FUNCTION, start_milliseconds=now - 60_000 + 5))
    assert lines[0].message == "line 5"
    assert len(lines) == 10_495
    assert len({line.id for line in lines}) == 10_495


def test_a_function_that_never_ran_has_no_lines(cloud: LocalCloud) -> None:
    assert list(read_lines(cloud, "never", start_milliseconds=0)) == []
