"""What is installed: pins, extras, and what works without them."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.paths import ROOT, SAMPLE

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
OPTIONAL = ("av", "dask", "distributed", "lightning", "lpips", "mlflow", "onnxscript", "prefect", "rasterio", "skimage")
"""What the core is installed without."""


def pins(file: str) -> dict[str, str]:
    """Name -> version of all ``name==version`` in a file."""
    found = re.findall(r"(?m)^([\w.-]+)(?:\[[\w,]+\])?==([^\s;\\]+)", (ROOT / file).read_text())
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in found}


def test_the_lock_has_hashes_and_the_versions_that_are_tested() -> None:
    locked, tested = pins("requirements.lock"), pins("constraints.txt")
    assert len(locked) > 150
    assert {name: version for name, version in locked.items() if tested.get(name, version) != version} == {}
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    starts = [place for place, line in enumerate(lines) if "==" in line and not line.startswith((" ", "#"))]
    assert all("--hash=sha256:" in lines[place + 1] for place in starts)


def test_malicious_releases_are_excluded() -> None:
    (lightning,) = [line for line in EXTRAS["train"] if line.startswith("lightning")]
    assert "!=2.6.2" in lightning and "!=2.6.3" in lightning


def test_all_is_every_extra_but_those_it_names() -> None:
    (everything,) = EXTRAS["all"]
    named = set(everything.partition("[")[2].rstrip("]").split(","))
    assert set(EXTRAS) - named == {"all", "docs", "mlflow", "pysteps", "test"} & set(EXTRAS)


def test_make_clean_keeps_what_cannot_be_made_again() -> None:
    said = subprocess.run(["make", "-n", "clean"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    removed = {word for line in said.splitlines() if line.startswith("rm") for word in line.split()[2:]}
    assert removed and not removed & {"runs", "var", "."}


CORE = """
import sys
for name in {optional}:
    sys.modules[name] = None  # an import of it fails
import nowcast
from nowcast.cli import main
nowcast.ingest("knmi", sys.argv[1:], "frames")
sys.argv = "nowcast forecast --store frames --model lagrangian-radar.safetensors --leads 2 --out now.nc".split()
main()
"""


def test_the_core_forecasts_without_the_extras(tmp_path: Path) -> None:
    files = sorted(SAMPLE.glob("*.h5"))[:7]
    command = [sys.executable, "-c", CORE.format(optional=OPTIONAL), *files]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (tmp_path / "now.nc").exists(), run.stdout + run.stderr


@pytest.mark.parametrize("package", OPTIONAL)
def test_no_room_of_a_forecast_imports_an_extra(package: str) -> None:
    rooms = ("core", "config", "store", "ingestion", "forecasting", "registry", "plotting", "web", "cli", "models")
    pattern = re.compile(rf"(?m)^(import|from) {package}\b")
    files = [path for room in rooms for path in (ROOT / "nowcast" / room).rglob("*.py")]
    assert [str(path) for path in files if pattern.search(path.read_text())] == []
