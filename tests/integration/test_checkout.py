"""The checkout's scripts with odd pip settings, called through links, or with line ends that git converted."""

import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parent.parent.parent
SCRIPTS = [
    path
    for folder in ("scripts", "scripts/lib", ".ci")
    for path in sorted((CHECKOUT / folder).iterdir())
    if path.suffix == ".sh" or (path.is_file() and path.read_bytes().startswith(b"#!/usr/bin/env bash"))
]
SHELL_TOOLS = ("bash", "cat", "dirname", "env", "mkdir", "mktemp", "readlink", "rm")


def run(*command: object, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        list(map(str, command)), env=environ, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the scripts, in a folder whose name breaks every unquoted use of it."""
    copy = tmp_path / 'it\'s a "Prüfung" & more'
    copy.mkdir()
    shutil.copytree(CHECKOUT / "scripts" / "lib", copy / "scripts" / "lib")
    for name in ("acp", "demo", "test"):
        shutil.copy2(CHECKOUT / "scripts" / name, copy / "scripts" / name)
    return copy


# Setting up without uv


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """A folder for PATH with Python and without uv."""
    folder = tmp_path / "tools"
    folder.mkdir()
    for name in SHELL_TOOLS:
        found = shutil.which(name)
        assert found
        (folder / name).symlink_to(found)
    (folder / "python3.13").symlink_to(Path(sys.base_prefix) / "bin" / "python3.13")
    return folder


@pytest.fixture
def uv_wheel(checkout: Path, tmp_path: Path) -> Path:
    """A package named uv, whose hash is in the copied checkout's lock."""
    wheel = tmp_path / "wheels" / "uv-0.0.1-py3-none-any.whl"
    wheel.parent.mkdir()
    with zipfile.ZipFile(wheel, "w") as archive:
        script = zipfile.ZipInfo("uv-0.0.1.data/scripts/uv")
        script.external_attr = 0o100755 << 16
        archive.writestr(script, "#!/bin/sh\necho uv 0.0.1\n")
        archive.writestr("uv-0.0.1.dist-info/METADATA", "Metadata-Version: 2.1\nName: uv\nVersion: 0.0.1\n")
        archive.writestr("uv-0.0.1.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("uv-0.0.1.dist-info/RECORD", "")
    lock_wheel(checkout, wheel)
    return wheel


def lock_wheel(checkout: Path, wheel: Path) -> None:
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    (checkout / "requirements").mkdir(exist_ok=True)
    (checkout / "requirements" / "uv.txt").write_text(f"uv==0.0.1 --hash=sha256:{digest}\n")


def set_up(checkout: Path, tools: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    script = 'cd "$0"; set -eu; . scripts/lib/environment.sh; find_uv; echo "${UV#"$ACP_HOME/"}"; "$UV" --version'
    return run("bash", "-c", script, checkout, PATH=str(tools), **environ)


BENT = {
    "PIP_USER": "1",
    "PIP_TARGET": "elsewhere",
    "PIP_PYTHON": "/no/such/python",
    "PIP_NO_BINARY": ":all:",
    "PYTHONPATH": "/no/such/folder",
    "PYTHONHOME": "/no/such/home",
    "PYTHONWARNINGS": "error",
    "UV": "/no/such/uv",
    "UV_TARGET": "elsewhere",
    "VIRTUAL_ENV": "/no/such/environment",
}
"""Settings of pip; most of them alone would make an unguarded installation fail, or install elsewhere."""


def test_it_sets_up_whatever_the_users_variables_say(checkout: Path, tools: Path, uv_wheel: Path) -> None:
    done = set_up(checkout, tools, PIP_NO_INDEX="1", PIP_FIND_LINKS=str(uv_wheel.parent), **BENT)
    assert (done.returncode, done.stdout) == (0, "uv/bin/uv\nuv 0.0.1\n"), done.stderr


def test_it_takes_only_package_sources_from_pip_conf(
    checkout: Path, tools: Path, uv_wheel: Path, tmp_path: Path
) -> None:
    pip_conf = tmp_path / "home" / ".config" / "pip" / "pip.conf"
    pip_conf.parent.mkdir(parents=True)
    sources = f"no-index = true\nfind-links =\n    {uv_wheel.parent}\n"
    pip_conf.write_text(
        f"[global]\nuser = true\nquiet = 3\n{sources}[install]\ntarget = elsewhere\nno-binary = :all:\n"
    )
    done = set_up(checkout, tools, HOME=str(tmp_path / "home"))
    assert (done.returncode, done.stdout) == (0, "uv/bin/uv\nuv 0.0.1\n"), done.stderr


def test_a_uv_that_is_not_the_locked_one_is_refused(checkout: Path, tools: Path, uv_wheel: Path) -> None:
    with zipfile.ZipFile(uv_wheel, "a") as archive:
        archive.writestr("uv_extra.py", "")
    done = set_up(checkout, tools, PIP_NO_INDEX="1", PIP_FIND_LINKS=str(uv_wheel.parent))
    assert done.returncode == 69
    assert "THESE PACKAGES DO NOT MATCH THE HASHES" in done.stderr
    assert "uv could not be installed" in done.stderr
    assert not (checkout / ".acp" / "uv").exists()


# Links


@pytest.fixture
def plain_readlink(tools: Path) -> Path:
    """The tools with a readlink that has no options, as macOS long had."""
    real = (tools / "readlink").resolve()
    (tools / "readlink").unlink()
    (tools / "readlink").write_text(f'#!/bin/sh\ncase $1 in -*) exit 1 ;; esac\nexec {real} "$1"\n')
    (tools / "readlink").chmod(0o755)
    return tools


@pytest.fixture
def links(checkout: Path, tmp_path: Path) -> Path:
    """A folder with links to links, relative ones, in a folder that is itself a link."""
    (tmp_path / "home" / "deep" / "bin").mkdir(parents=True)
    (tmp_path / "bin").symlink_to(tmp_path / "home" / "deep" / "bin")
    for name in ("acp", "demo", "test"):
        link = tmp_path / "home" / "deep" / "bin" / name
        link.symlink_to(Path("..", "..", f"{name}-2"))
        (tmp_path / "home" / f"{name}-2").symlink_to(Path("..", checkout.name, "scripts", name))
    # In the place of the real environment: a Python that says where it is and what it was asked for.
    python = checkout / ".acp" / "venvs" / "dev" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\necho "$PWD|$*"\n')
    python.chmod(0o755)
    with (checkout / "scripts" / "lib" / "environment.sh").open("a") as file:
        file.write("environment() { :; }\n")
    return tmp_path / "bin"


@pytest.mark.parametrize(("name", "asked"), [("acp", "-m acp_cli status"), ("demo", "-m acp_cli demo status")])
def test_a_command_works_through_links(
    checkout: Path, links: Path, plain_readlink: Path, name: str, asked: str
) -> None:
    done = run(links / name, "status", PATH=str(plain_readlink))
    assert (done.stdout, done.stderr) == (f"{checkout}|-X pycache_prefix={checkout}/.acp/cache/bytecode {asked}\n", "")


def test_the_tests_work_through_links(checkout: Path, links: Path, plain_readlink: Path) -> None:
    done = run(links / "test", "--help", PATH=str(plain_readlink))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("scripts/test ")
    tool = links.parent / "tools" / "pytest"
    tool.write_text('#!/bin/sh\necho "$PWD|$*"\n')
    tool.chmod(0o755)
    done = run(links / "test", "unit", "--", "-x", PATH=str(plain_readlink))
    assert (done.stdout, done.stderr) == (
        f"{checkout}|tests/unit --numprocesses 2 --dist loadfile -x\n",
        "-- unit tests\n",
    )


# Text that any locale shows


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_what_the_shell_prints_is_ascii(script: Path) -> None:
    assert script.read_text(encoding="utf-8").isascii()


# Line ends


def test_a_clone_with_autocrlf_keeps_scripts_and_migrations_unchanged(tmp_path: Path) -> None:
    origin, clone = tmp_path / "origin", tmp_path / "clone"
    origin.mkdir()
    shutil.copy2(CHECKOUT / ".gitattributes", origin)
    for folder in ("db", "requirements", "scripts", "events", ".ci"):
        shutil.copytree(CHECKOUT / folder, origin / folder, ignore=shutil.ignore_patterns("__pycache__"))
    git = ("git", "-c", "user.name=test", "-c", "user.email=test@example.com", "-c", "commit.gpgsign=false")
    environ = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "GIT_CONFIG_NOSYSTEM": "1"}
    for command in (("init", "--quiet"), ("add", "--all"), ("commit", "--quiet", "--message", "all")):
        run(*git, "-C", origin, *command, **environ).check_returncode()
    run("git", "clone", "--quiet", "-c", "core.autocrlf=true", origin, clone, **environ).check_returncode()
    ours = {path.relative_to(origin) for path in origin.rglob("*") if path.is_file() and ".git" not in path.parts}
    assert len(ours) > 50
    assert [path for path in sorted(ours) if (clone / path).read_bytes() != (origin / path).read_bytes()] == []
