"""A copy of the checkout, for tests that change files or follow the docs."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
MYPY_CACHE = ".mypy_cache"
NOT_COPIED = {".git", ".acp", ".aws-sam", MYPY_CACHE, ".ruff_cache", ".pytest_cache", ".hypothesis", "__pycache__"}


class Copy:
    """The copied files, and commands that run in them with their own code."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for path in files():
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / path, target, follow_symlinks=False)
        if (cache := ROOT / MYPY_CACHE).is_dir():
            # mypy then reads anew only what a test changes.
            shutil.copytree(cache, folder / MYPY_CACHE)

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Runs a Python module (``-m``) or file in the copy."""
        code = ("layers/core", "scripts", "scripts/market", "scripts/localstack")
        environ = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "ACP_STATE"))}
        environ |= {
            "PYTHONPATH": os.pathsep.join(str(self.folder / path) for path in code),
            "COLUMNS": "80",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        return subprocess.run(
            [sys.executable, *command], cwd=self.folder, env=environ, capture_output=True, text=True, check=False
        )

    def write(self, path: str, text: str) -> None:
        """Writes a file of the copy."""
        (self.folder / path).parent.mkdir(parents=True, exist_ok=True)
        (self.folder / path).write_text(text, encoding="utf-8")


def files() -> list[Path]:
    """Paths in the checkout: what git tracks or would add; without git, everything but what tools leave."""
    if (ROOT / ".git").exists():
        listed = subprocess.run(
            ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        return [Path(name) for name in listed.split("\0") if name and os.path.lexists(ROOT / name)]
    found = []
    for folder, folders, files in os.walk(ROOT):
        folders[:] = [name for name in folders if name not in NOT_COPIED]
        links = [name for name in folders if (Path(folder) / name).is_symlink()]
        found += [(Path(folder) / name).relative_to(ROOT) for name in [*files, *links]]
    return found
