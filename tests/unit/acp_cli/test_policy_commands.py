"""acp policy check in an interpreter of its own, where nothing has imported the plug-ins before."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]


def policy_check(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = f"""
import sys
sys.path[:0] = [{str(ROOT / "scripts")!r}, {str(ROOT / "layers" / "core")!r}]
from acp_cli.policy_commands import register
import typer
app = typer.Typer()
register(app)
app(["policy", "check", *sys.argv[1:]])
"""
    return subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False)


def test_policies_are_checked_by_a_fresh_interpreter() -> None:
    checked = policy_check()
    assert (checked.returncode, checked.stderr) == (0, "finance's policies: 15 policies fit their schema.\n")


def test_the_gate_is_the_first_of_finance_to_be_imported() -> None:
    program = f"import sys; sys.path.insert(0, {str(ROOT / 'layers' / 'core')!r}); import domains.finance.gate"
    subprocess.run([sys.executable, "-c", program], check=True)
