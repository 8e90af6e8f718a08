"""Files are read by many threads and processes at once: nothing dies, and everybody reads the same.

Each test runs in a child process, whose exit code says how it ended: a library that is entered by two threads ends the
process, now and then.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nowcast.readers import READERS
from tests.paths import REAL_DATA, ROOT, needs_real
from tests.sources_gridded import mosaic, netcdf

LIMIT = 300
"""Seconds."""
ROUNDS = 5
WRITE_AND_READ = """
import sys, threading
import xarray as xr
from pathlib import Path
from nowcast.core.libraries import writing_netcdf
from nowcast.readers import Item, get
folder = Path(sys.argv[1])
def write(number):
    for turn in range(20):
        with writing_netcdf():
            xr.Dataset({"a": ("x", [1.0, 2.0], {"long_name": "name"})}).to_netcdf(folder / f"{number}.out")
def read(name):
    for turn in range(20):
        for path in sorted(folder.glob("*.nc")):
            get(name).read(Item(path))
def look():
    for turn in range(20):
        for path in sorted(folder.glob("*.nc")):
            xr.load_dataset(path, engine="netcdf4")
jobs = [(write, (0,)), (write, (1,)), (read, ("netcdf",)), (read, ("netcdf",)), (look, ())]
threads = [threading.Thread(target=job, args=args) for job, args in jobs]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
"""


def child(*arguments: object) -> str:
    """Run Python in a child process, which must end well."""
    command = [sys.executable, "-W", "ignore", "-X", "faulthandler", *map(str, arguments)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, cwd=ROOT)
    assert run.returncode == 0, run.stderr[-2000:] or f"ended by signal {-run.returncode}"
    return run.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_a_reader_by_itself(name: str, tmp_path: Path) -> None:
    assert "of 1 readers" in child("-m", "tests.stress", tmp_path, ROUNDS, name)


@pytest.mark.slow
def test_all_readers_at_once(tmp_path: Path) -> None:
    assert f"of {len(READERS)} readers" in child("-m", "tests.stress", tmp_path, ROUNDS, *READERS)


def test_reading_while_xarray_writes_and_reads(tmp_path: Path) -> None:
    for number in range(4):
        netcdf(
            tmp_path / f"rain_{number}.nc", mosaic(frames=1, minutes=5 * number), {"time_coverage_resolution": "PT5M"}
        )
    child("-c", WRITE_AND_READ, tmp_path)


@pytest.mark.slow
def test_ingest_of_a_folder_of_netcdf_files(tmp_path: Path) -> None:
    for number in range(12):
        start = f"minutes since 2024-06-01 {number:02}:00:00"
        variables = mosaic(shape=(64, 64))
        variables["time"][2]["units"] = start
        netcdf(tmp_path / "feed" / f"rain_{number:02}.nc", variables)
    said = child("-m", "nowcast.cli", "ingest", "netcdf", tmp_path / "feed", "--store", tmp_path / "frames", "--json")
    assert json.loads(said)["taken"] == 36


@needs_real("bom")
@pytest.mark.slow
def test_ingest_of_real_netcdf_files(tmp_path: Path) -> None:
    """They do not say how long their rain fell: each is refused, in a process that lives."""
    shutil.copytree(REAL_DATA / "bom", tmp_path / "bom")
    for _ in range(3):
        command = [sys.executable, "-m", "nowcast.cli", "ingest", "netcdf", str(tmp_path / "bom"), "--store"]
        run = subprocess.run([*command, str(tmp_path / "frames")], capture_output=True, timeout=LIMIT, cwd=ROOT)
        assert run.returncode in (0, 1), f"ended by signal {-run.returncode}"
