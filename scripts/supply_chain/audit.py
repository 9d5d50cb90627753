"""scripts/audit: asks which packages of the locks have known vulnerabilities.

OSV is asked about Python's, through pip-audit, and npm's registry about those that the page ships.

What cannot be mended yet and does no harm here may be accepted for a while: accepted.toml beside this file says what,
why and until when. An acceptance that is over, or of what is found no longer, fails like a finding.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import requests

from local_cloud.workspace import CHECKOUT
from supply_chain.locks import read_lock
from supply_chain.npm_advisories import RegistryAway, advisories, registry
from supply_chain.vendored import LOCK, read_vendor_lock

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

OSV = "https://api.osv.dev/v1/query"
ACCEPTED = Path(__file__).with_name("accepted.toml")
LONGEST = timedelta(days=184)
"""Half a year: whoever accepts for longer forgets."""


@dataclass(frozen=True, slots=True)
class Acceptance:
    """A known vulnerability that is lived with until a day, and why. `id` is OSV's, or one of its aliases."""

    id: str
    package: str
    reason: str
    until: date


@dataclass(frozen=True, slots=True)
class Finding:
    """A line about a package; `ids` are all names of its vulnerability, none where it is not about one."""

    line: str
    package: str
    ids: frozenset[str] = frozenset()


def read_accepted(text: str, *, today: date) -> list[Acceptance]:
    """The acceptances in a file's text. Raises ValueError for one that is not whole, or that lasts too long."""
    accepted = []
    for entry in tomllib.loads(text).get("accepted", []):
        name = entry.get("id", "one without an id")
        if entry.keys() != {"id", "package", "reason", "until"} or not all(
            isinstance(entry[field], str) and entry[field].strip() for field in ("id", "package", "reason")
        ):
            raise ValueError(f"{name}: an acceptance has an id, a package, a reason and a day until which it holds")
        if type(entry["until"]) is not date:
            raise ValueError(f"{name}: until must be a day, such as 2026-06-30, without quotes")
        if entry["until"] > today + LONGEST:
            raise ValueError(
                f"{name}: accepted until {entry['until']}, and {LONGEST.days} days from today are the most"
            )
        accepted.append(Acceptance(**entry))
    return accepted


@dataclass(frozen=True, slots=True)
class Scan:
    """What a database said of the packages of some locks, or why it was not asked."""

    packages: frozenset[str]
    """Their names."""
    locks: int
    findings: Sequence[Finding] = ()
    reason: str | None = None
    """Why it could not be asked; None where it was."""


def judge(found: Iterable[Finding], accepted: Iterable[Acceptance], *, today: date) -> tuple[list[str], list[str]]:
    """What is accepted, and what is not: findings, acceptances that are over, and those of nothing that is found."""
    lived_with, problems, used = [], [], set()
    for finding in found:
        fitting = [each for each in accepted if each.package == finding.package and each.id in finding.ids]
        used.update(fitting)
        valid = [each for each in fitting if today <= each.until]
        if valid:
            lived_with.append(f"{finding.line}; accepted until {valid[0].until}: {valid[0].reason}")
        elif fitting:
            problems.append(f"{finding.line}; was accepted until {fitting[0].until}")
        else:
            problems.append(finding.line)
    problems += [
        f"{each.package}: {each.id} is accepted, and not found: take it out" for each in accepted if each not in used
    ]
    return lived_with, problems


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


def findings(report: Mapping[str, Any], found: Sequence[Path], checkout: Path) -> list[Finding]:
    """One for each vulnerability, naming the locks that hold the package, and one for each package not looked up."""
    held: dict[tuple[str, str], list[str]] = {}
    for lock in found:
        for locked in read_lock(lock):
            held.setdefault((locked.name, locked.version), []).append(str(lock.relative_to(checkout)))
    lines: dict[str, Finding] = {}
    for package in report["dependencies"]:
        if "skip_reason" in package:
            line = f"{package['name']}: not looked up: {package['skip_reason']}"
            lines[line] = Finding(line, package["name"])
            continue
        name, version = package["name"], package["version"]
        for one in package["vulns"]:
            mended = f"mended in {', '.join(one['fix_versions'])}" if one["fix_versions"] else "not mended yet"
            line = f"{name} {version}: {one['id']}, {mended} ({', '.join(held.get((name, version), []))})"
            lines[line] = Finding(line, name, frozenset({one["id"], *one.get("aliases", [])}))
    return [lines[line] for line in sorted(lines)]


def scan_locks(url: str, checkout: Path) -> Scan | str:
    """Scans Python's locks, or returns what pip-audit said if it could not."""
    found = locks(checkout)
    if reason := unreachable(url):
        return Scan(frozenset(), len(found), reason=reason)
    report = scan(found, url, checkout / ".acp" / "cache" / "pip-audit")
    if isinstance(report, str):
        return report
    names = frozenset(package["name"] for package in report["dependencies"])
    return Scan(names, len(found), findings(report, found, checkout))


def scan_vendored(checkout: Path) -> Scan:
    """Scans the packages of npm that the page ships."""
    packages = read_vendor_lock()
    names = frozenset(package.name for package in packages)
    try:
        known = advisories(registry(), packages)
    except RegistryAway as error:
        return Scan(names, 1, reason=str(error))
    lines = [
        Finding(
            f"{package.name} {package.version}: {one['url'].rpartition('/')[2]}, {one['title']}, of versions "
            f"{one['vulnerable_versions']} ({LOCK.relative_to(checkout)})",
            package.name,
            frozenset({one["url"].rpartition("/")[2], str(one["id"])}),
        )
        for package in packages
        for one in known.get(package.name, [])
    ]
    return Scan(names, 1, lines)


def main(arguments: Sequence[str]) -> int:
    """Print what was found. Returns 1 where something was that is not accepted, or where not all could be scanned."""
    parser = argparse.ArgumentParser(
        "scripts/audit",
        description="Scan every lock for known vulnerabilities: Python's by OSV, the page's by npm's registry.",
    )
    parser.add_argument("--if-reachable", action="store_true", help="exit 0 where a database cannot be reached")
    parser.add_argument("--osv-url", default=OSV, metavar="URL", help="another database that answers as OSV does")
    options = parser.parse_args(arguments)
    today = datetime.now(UTC).date()
    try:
        accepted = read_accepted(ACCEPTED.read_text(encoding="utf-8"), today=today)
    except ValueError as error:
        sys.stderr.write(f"{ACCEPTED.name}: {error}\n")
        return 1
    python = scan_locks(options.osv_url, CHECKOUT)
    if isinstance(python, str):
        sys.stderr.write(f"pip-audit failed:\n{python}\n")
        return 1
    vendored = scan_vendored(CHECKOUT)
    return report_on(python, vendored, accepted, today=today, if_reachable=options.if_reachable)


def report_on(python: Scan, vendored: Scan, accepted: Sequence[Acceptance], *, today: date, if_reachable: bool) -> int:
    """Prints what was found, and what was not scanned. Returns the exit code."""
    if python.reason:
        sys.stderr.write(f"not scanned: {python.reason}\n")
        accepted = [each for each in accepted if each.package in vendored.packages]
    if vendored.reason:
        sys.stderr.write(f"not scanned: {vendored.reason}\n")
        accepted = [each for each in accepted if each.package not in vendored.packages]
    lived_with, problems = judge([*python.findings, *vendored.findings], accepted, today=today)
    sys.stdout.writelines(f"{line}\n" for line in [*lived_with, *problems])
    if problems:
        sys.stderr.write(
            "Take newer versions with: scripts/lock -U, or for the page's: scripts/vendor\n"
            f"Or accept for a while what cannot be: {ACCEPTED}\n"
        )
        return 1
    scanned = sum(one.locks for one in (python, vendored) if one.reason is None)
    if scanned:
        other = "other " if lived_with else ""
        sys.stdout.write(f"No {other}known vulnerability. Locks scanned: {scanned}.\n")
    return 0 if if_reachable or not (python.reason or vendored.reason) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
