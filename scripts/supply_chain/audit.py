"""scripts/audit: asks OSV, through pip-audit, which packages of the locks have known vulnerabilities."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import requests

from local_cloud.workspace import CHECKOUT
from supply_chain.locks import read_lock

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

OSV = "https://api.osv.dev/v1/query"


def locks(checkout: Path) -> list[Path]:
    """Returns the locks of what is shipped, then those of the tools."""
    return [*sorted(checkout.glob("layers/*/requirements.txt")), *sorted(checkout.glob("requirements/*.txt"))]


def unreachable(url: str) -> str | None:
    """Returns why the vulnerability database cannot be used, or None if it answers as OSV does."""
    try:
        response = requests.post(
            url, json={"package": {"name": "pip", "ecosystem": "PyPI"}, "version": "1"}, timeout=15
        )
        response.raise_for_status()
        answer = response.json()
    except requests.RequestException as error:
        status = error.response.status_code if error.response is not None else type(error).__name__
        return f"{url} does not answer ({status})"
    return None if isinstance(answer, dict) else f"{url} does not answer as OSV does"


def scan(found: Sequence[Path], url: str, cache: Path) -> dict[str, Any] | str:
    """Returns pip-audit's report, or what pip-audit said if it could not scan."""
    options = ["--disable-pip", "--require-hashes", "--format=json", "--progress-spinner=off", f"--cache-dir={cache}"]
    named = [f"--requirement={lock}" for lock in found]
    command = [sys.executable, "-m", "pip_audit", *options, "--vulnerability-service=osv", f"--osv-url={url}", *named]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        report: dict[str, Any] = json.loads(done.stdout)
    except json.JSONDecodeError:
        return done.stderr.strip()
    return report


def findings(report: Mapping[str, Any], found: Sequence[Path], checkout: Path) -> list[str]:
    """Returns a line for each vulnerability, with the locks it is in, and for each package not looked up."""
    held: dict[tuple[str, str], list[str]] = {}
    for lock in found:
        for locked in read_lock(lock):
            held.setdefault((locked.name, locked.version), []).append(str(lock.relative_to(checkout)))
    lines = set()
    for package in report["dependencies"]:
        if "skip_reason" in package:
            lines.add(f"{package['name']}: not looked up: {package['skip_reason']}")
            continue
        name, version = package["name"], package["version"]
        for one in package["vulns"]:
            mended = f"mended in {', '.join(one['fix_versions'])}" if one["fix_versions"] else "not mended yet"
            lines.add(f"{name} {version}: {one['id']}, {mended} ({', '.join(held.get((name, version), []))})")
    return sorted(lines)


def main(arguments: Sequence[str]) -> int:
    """Prints what was found. Returns 1 if there was anything, or if nothing could be scanned."""
    parser = argparse.ArgumentParser("scripts/audit", description="Scan every lock for known vulnerabilities, by OSV.")
    parser.add_argument("--if-reachable", action="store_true", help="exit 0 where the database cannot be reached")
    parser.add_argument("--osv-url", default=OSV, metavar="URL", help="another database that answers as OSV does")
    options = parser.parse_args(arguments)
    if reason := unreachable(options.osv_url):
        sys.stderr.write(f"not scanned: {reason}\n")
        return 0 if options.if_reachable else 1
    found = locks(CHECKOUT)
    report = scan(found, options.osv_url, CHECKOUT / ".acp" / "cache" / "pip-audit")
    if isinstance(report, str):
        sys.stderr.write(f"pip-audit failed:\n{report}\n")
        return 1
    lines = findings(report, found, CHECKOUT)
    sys.stdout.writelines(f"{line}\n" for line in lines)
    if lines:
        sys.stderr.write("Take newer versions with: scripts/lock -U\n")
        return 1
    sys.stdout.write(f"No known vulnerability. Locks scanned: {len(found)}.\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
