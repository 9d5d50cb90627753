"""What a function's cold start loads."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = {"pandas", "numpy", "yfinance", "curl_cffi", "pydantic"}


def loaded_by(function: str) -> set[str]:
    """Returns the top-level modules that importing a function's app.py loads, in a new interpreter."""
    program = f"""
import sys
sys.path[:0] = [{str(ROOT / "functions" / function)!r}, {str(ROOT / "layers" / "core")!r}]
import app
print(*{{name.partition(".")[0] for name in sys.modules}})
"""
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(answer.stdout.split())


def test_the_relay_loads_nothing_heavy() -> None:
    loaded = loaded_by("relay")
    assert {"control_plane", "psycopg", "boto3"} <= loaded
    assert HEAVY & loaded == set()


@pytest.mark.parametrize("function", ["ops_api", "command_api"])
def test_the_api_loads_nothing_heavy_but_its_models(function: str) -> None:
    loaded = loaded_by(function)
    assert {"control_plane", "psycopg", "boto3"} <= loaded
    assert (HEAVY | {"cedarpy"}) & loaded == {"pydantic"}


@pytest.mark.parametrize("function", ["signal_lab", "migration", "maintenance"])
def test_only_ingestion_loads_the_market_data_layer(function: str) -> None:
    assert {"pandas", "numpy", "yfinance", "curl_cffi"} & loaded_by(function) == set()


def run(function: str, program: str) -> str:
    """Returns what a program prints in a new interpreter, beside a function's app.py."""
    paths = f"import sys; sys.path[:0] = [{str(ROOT / 'functions' / function)!r}, {str(ROOT / 'layers' / 'core')!r}]\n"
    return subprocess.run([sys.executable, "-c", paths + program], capture_output=True, text=True, check=True).stdout


def test_decisions_without_a_model_load_no_provider() -> None:
    loaded = run(
        "decision",
        "import app\n"
        "from control_plane.decisions.models.providers import connect_model\n"
        "from control_plane.decisions.settings import ModelSettings\n"
        "from domains import load_deciding\n"
        "app.with_model(load_deciding(), None)\n"
        "print(*sys.modules)",
    ).split()
    models = "control_plane.decisions.models"
    assert {f"{models}.chat", f"{models}.converse", "numpy", "cedarpy"} & set(loaded) == set()


def test_a_cold_start_builds_no_type_of_event_or_answer_before_its_use() -> None:
    program = (
        "import app\n"
        "from control_plane.model.late import LateModel\n"
        "from domains import load_deciding\n"
        "load_deciding()\n"
        "def below(kind):\n"
        "    for each in kind.__subclasses__():\n"
        "        yield each\n"
        "        yield from below(each)\n"
        "found = list(below(LateModel))\n"
        "print(len(found) > 30, [each.__name__ for each in found if each.__pydantic_complete__])"
    )
    assert run("decision", program).strip() == "True []"
