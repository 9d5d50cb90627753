"""The log of a function's invocations, as Lambda writes it."""

import os
import re

import pytest
from tests.unit.process_executor.functions import Start, invoke
from tests.waiting import wait_until

from process_executor.process import MAX_LOG_BYTES, _Output


def test_the_log_has_lambdas_lines_around_the_functions_output(start: Start) -> None:
    function = start("""
        import os, subprocess, sys
        print("loading")
        def handler(event, context):
            for n in range(3):
                print("out", n)
                print("err", n, file=sys.stderr)
            subprocess.run(["echo", "child"])
            os.write(1, b"no end of line")
    """)
    first, second = invoke(function, request_id="req-1").log, invoke(function, request_id="req-2").log
    number = r"\d+\.\d\d"
    body = "out 0\nerr 0\nout 1\nerr 1\nout 2\nerr 2\nchild\nno end of line\n"
    report = rf"Duration: {number} ms\tBilled Duration: \d+ ms\tMemory Size: 256 MB\tMax Memory Used: [1-9]\d* MB"
    assert re.fullmatch(
        rf"loading\nSTART RequestId: req-1 Version: 7\n{body}END RequestId: req-1\n"
        rf"REPORT RequestId: req-1\t{report}\tInit Duration: {number} ms\n",
        first,
    )
    assert re.fullmatch(
        rf"START RequestId: req-2 Version: 7\n{body}END RequestId: req-2\nREPORT RequestId: req-2\t{report}\n", second
    )


def test_duration_and_billed_duration_are_those_of_the_handler(start: Start) -> None:
    function = start("import time\ndef handler(event, context): time.sleep(0.3)")
    invoke(function)
    found = re.search(r"Duration: (\S+) ms\tBilled Duration: (\d+) ms", invoke(function).log)
    assert found
    duration, billed = found.groups()
    assert 300 <= float(duration) < 3000
    assert int(billed) - 1 < float(duration) <= int(billed)


def test_memory_used_is_the_most_there_was(start: Start) -> None:
    function = start("def handler(event, context): len(bytearray(event))")
    used = [int(re.search(r"Max Memory Used: (\d+) MB", invoke(function, n).log)[1]) for n in (0, 100 << 20, 0)]  # type: ignore[index] # no match fails the test
    assert used[0] + 50 < used[1] <= used[2]


def test_the_logging_module_writes_lambdas_format(start: Start) -> None:
    function = start("""
        import logging
        def handler(event, context): logging.warning("careful, %s", "Jürgen")
    """)
    expected = r"\[WARNING\]\t\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z\treq-1\tcareful, Jürgen\n"
    assert re.search(expected, invoke(function).log)


def test_output_that_is_not_utf8_is_kept_where_possible(start: Start) -> None:
    function = start("import os\ndef handler(event, context): os.write(2, b'caf\\xe9 \\xff\\n')")
    assert "caf\ufffd \ufffd\n" in invoke(function).log


def test_much_output_neither_blocks_nor_is_lost(start: Start) -> None:
    function = start("def handler(event, context):\n    for n in range(50_000): print('line', n)")
    lines = invoke(function).log.splitlines()
    assert lines[1:-2] == [f"line {n}" for n in range(50_000)]


def test_output_still_in_the_pipe_belongs_to_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_Output, "_pump", lambda self: None)
    reading, writing = os.pipe()
    output = _Output(reading)
    os.write(writing, b"just before the answer\n")
    assert output.take() == "just before the answer\n"
    os.close(reading)
    os.close(writing)


def test_endless_output_is_cut_before_it_fills_the_memory(start: Start) -> None:
    function = start("def handler(event, context):\n    for _ in range(event): print('x' * 1023)")
    log = invoke(function, MAX_LOG_BYTES // 1024 + 100).log
    assert "[the rest of this output was dropped]\nEND" in log
    assert len(log) < MAX_LOG_BYTES + 1000


def test_output_beyond_the_limit_is_read_but_not_kept() -> None:
    reading, writing = os.pipe()
    output = _Output(reading)
    with os.fdopen(writing, "wb") as pipe:
        pipe.write(b"x" * 2 * MAX_LOG_BYTES)
    wait_until(lambda: not output._open)
    assert len(output._data) <= MAX_LOG_BYTES + 65536
    log = output.take()
    assert len(log) < MAX_LOG_BYTES + 1000
