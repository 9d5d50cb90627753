"""What acp prints to every kind of output; run as a process, because the streams are what is tested."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from acp_cli.cli import COMMANDS
from acp_cli.output import wants_ascii

NAMES = [name for entries in COMMANDS.values() for name in entries]
MODULES = {entry.module for entries in COMMANDS.values() for entry in entries.values()}
PRINTS = "from acp_cli.output import prepare_streams; import os, sys; prepare_streams(os.environ); "


def acp(*arguments: str, **environ: str) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "acp_cli", *arguments]
    return subprocess.run(command, env={**os.environ, **environ}, capture_output=True, check=False, timeout=60)


def python(code: str, **environ: str) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-c", PRINTS + code]
    return subprocess.run(command, env={**os.environ, **environ}, capture_output=True, check=False, timeout=60)


@pytest.mark.parametrize(
    "environ", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C"}, {"LC_ALL": "POSIX"}, {"PYTHONIOENCODING": "latin-1"}]
)
def test_help_is_readable_in_any_encoding(environ: dict[str, str]) -> None:
    result = acp("--help", **environ)
    assert (result.returncode, result.stderr) == (0, b"")
    encoding = "latin-1" if environ.get("PYTHONIOENCODING") == "latin-1" else "ascii"
    text = result.stdout.decode(encoding)
    assert "Exit codes" in text
    assert "?" not in text


def test_each_commands_help_is_readable_in_ascii() -> None:
    # All in one process, because the modules of all commands take seconds to import.
    code = f"from acp_cli.cli import app\nfor name in {NAMES}: app([name, '--help'], standalone_mode=False)"
    result = python("\n" + code, PYTHONIOENCODING="ascii")
    assert (result.returncode, result.stderr) == (0, b"")
    assert result.stdout.decode("ascii").count("Usage: ") == len(NAMES)


def test_an_error_is_readable_in_ascii() -> None:
    result = acp("redrive", PYTHONIOENCODING="ascii")
    assert result.returncode == 2
    assert "redrive ID..." in result.stderr.decode("ascii")


def test_characters_without_a_plain_form_are_written_as_escapes() -> None:
    result = python(r"print('\u2713 \u2500 \u2026 \u250f \u283f \u4e2d \udc80')", PYTHONIOENCODING="ascii")
    assert result.stdout == b"ok - ... + * \\u4e2d \\udc80\n"


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, False),
        ({"LANG": "C.UTF-8"}, False),
        ({"LANG": "C"}, True),
        ({"LANG": "en_US.UTF-8", "LC_ALL": "C"}, True),
        ({"LANG": "C", "LC_ALL": "en_US.UTF-8"}, False),
        ({"LC_ALL": "C", "PYTHONIOENCODING": "utf-8"}, False),
    ],
)
def test_a_c_locale_wants_ascii(environ: dict[str, str], expected: bool) -> None:
    assert wants_ascii(environ) is expected


@pytest.mark.parametrize("name", ["--help", "--version", "completion bash"])
def test_a_reader_that_has_gone_is_no_error(name: str) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    command = [sys.executable, "-m", "acp_cli", *name.split()]
    result = subprocess.run(command, stdout=write_end, stderr=subprocess.PIPE, check=False, timeout=60)
    os.close(write_end)
    assert (result.returncode, result.stderr) == (0, b"")


def test_progress_without_a_reader_does_not_stop_a_command() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    code = PRINTS + "print('progress', file=sys.stderr, flush=True); print('done')"
    result = subprocess.run(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=write_end, check=False, timeout=60
    )
    os.close(write_end)
    assert (result.returncode, result.stdout) == (0, b"done\n")


def test_help_imports_none_of_the_commands() -> None:
    code = (
        "import sys; from acp_cli.cli import app; app(['--help'], standalone_mode=False); "
        "print(sorted(sys.modules.keys() & {'boto3', 'psycopg', 'samcli', 'pydantic', 'acp_cli.status'}))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert result.stdout.splitlines()[-1] == "[]"


# The bench measures a bare loop with boto3 beside the relay.
@pytest.mark.parametrize("module", sorted(MODULES - {"bench_command"}))
def test_a_commands_module_imports_neither_sam_nor_boto3(module: str) -> None:
    code = f"import sys, acp_cli.{module}; print(sorted(sys.modules.keys() & {{'boto3', 'samcli', 'samtranslator'}}))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert result.stdout == "[]\n"


def test_status_loads_no_driver_before_there_is_a_cloud() -> None:
    slow = {"psycopg", "pydantic", "boto3", "bokeh_sampledata", "samcli", "acp_cli.status"}
    code = (
        "import sys; from acp_cli.cli import load; import local_cloud.cloud; load('status'); "
        f"print(sorted(sys.modules.keys() & {slow}))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert result.stdout == "[]\n"


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_names_what_a_word_may_become(shell: str) -> None:
    script = acp("completion", shell)
    assert script.returncode == 0
    assert b"_acp_completion" in script.stdout
    asked = {"COMP_WORDS": "acp tra", "COMP_CWORD": "1", "_TYPER_COMPLETE_ARGS": "acp tra"}
    found = acp(**asked, _ACP_COMPLETE=f"complete_{shell}")
    assert b"trace" in found.stdout
    assert b"relay" not in found.stdout


def test_a_silent_wait_ends_when_its_reader_is_gone() -> None:
    code = (
        "from acp_cli.output import ReaderGone, wait_while_read\n"
        "print('first', flush=True)\n"
        "try: wait_while_read(50)\n"
        "except ReaderGone: print('gone', file=sys.stderr)"
    )
    command = [sys.executable, "-c", PRINTS + "\n" + code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"first\n"
        process.stdout.close()
        process.stdout = None
        _, error = process.communicate(timeout=40)
    assert (process.returncode, error) == (0, b"gone\n")


def test_a_wait_lasts_where_somebody_reads() -> None:
    result = python("\nfrom acp_cli.output import wait_while_read\nwait_while_read(0.2)\nprint('after')")
    assert (result.returncode, result.stdout) == (0, b"after\n")
