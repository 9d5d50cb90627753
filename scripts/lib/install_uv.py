"""``python -I install_uv.py FOLDER REQUIREMENTS`` makes a virtual environment with the uv that REQUIREMENTS locks.

Any Python from 3.8 on runs it, so it imports only the standard library. Only those of the user's pip settings count
that say where packages come from. Others, such as ``user = true``, would install uv elsewhere, or nowhere.
"""

import ast
import os
import re
import subprocess
import sys
import venv
from pathlib import Path

SOURCES = {
    "cert",
    "client-cert",
    "default-timeout",
    "extra-index-url",
    "find-links",
    "index-url",
    "keyring-provider",
    "no-index",
    "proxy",
    "retries",
    "timeout",
    "trusted-host",
    "use-feature",
}
"""Settings of pip that say where packages come from and how they are fetched."""


def install(folder, requirements):
    """Installs uv and returns pip's exit code; pip itself prints what went wrong."""
    venv.create(folder, clear=True, symlinks=True, with_pip=True)
    pip = [str(Path(folder, "bin", "python")), "-I", "-m", "pip"]
    command = ["install", "--quiet", "--no-cache-dir", "--no-deps", "--only-binary=:all:"]
    command += ["--require-hashes", "--requirement", requirements]
    return subprocess.run(pip + command, env=pip_environment(pip), stdout=sys.stderr, check=False).returncode


def pip_environment(pip):
    """Returns the environment for an installation: the sources from pip's files become variables, and no file is read.

    scripts/lib/environment.sh has already removed the other PIP_ variables.
    """
    # A setting `quiet` in a file would leave nothing to read.
    reading = dict(os.environ, PIP_QUIET="0", PIP_VERBOSE="0", PIP_DISABLE_PIP_VERSION_CHECK="1")
    listed = subprocess.run([*pip, "config", "list"], env=reading, stdout=subprocess.PIPE, check=False).stdout.decode()
    # "global" sorts before "install", whose settings win over it; variables win over both.
    settings = re.findall(r"^(?:global|install)\.([a-z-]+)=(.*)$", listed, re.MULTILINE)
    sources = {
        "PIP_" + name.replace("-", "_").upper(): " ".join(str(ast.literal_eval(value)).split())
        for name, value in settings
        if name in SOURCES
    }
    return {**sources, **os.environ, "PIP_CONFIG_FILE": os.devnull, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}


if __name__ == "__main__":
    sys.exit(install(sys.argv[1], sys.argv[2]))
