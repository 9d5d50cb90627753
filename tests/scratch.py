"""Folders for the tests' Postgres: in memory where there is room, and gone when the tests' process has ended."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MEMORY = Path("/dev/shm")
LEAST_FREE = 3 * 1024**3
"""Bytes that must be free in memory; a cluster of the tests takes less than a tenth of that."""

# The shell waits until its standard input ends, which happens however the tests' process ends, even killed.
_REMOVE = """
cat >/dev/null
for lock in "$0"/data/postmaster.pid "$0"/*/*/postmaster.pid; do
  pid=$(head -n 1 "$lock") && kill -QUIT "$pid" && while kill -0 "$pid"; do sleep 0.1; done
done
rm -rf -- "$0"
"""


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """Makes a folder, for a cluster in `data` or deeper by one. Whatever ends this process, the server is stopped."""
    folder = tempfile.mkdtemp(prefix="acp-tests-", dir=MEMORY if _has_room(MEMORY) else None)
    remover = subprocess.Popen(
        ["sh", "-c", _REMOVE, folder],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        # Ctrl-C and a killed process group do not reach it.
        start_new_session=True,
    )
    try:
        yield Path(folder)
    finally:
        remover.communicate()


def _has_room(folder: Path) -> bool:
    return os.access(folder, os.W_OK) and shutil.disk_usage(folder).free >= LEAST_FREE
