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
