"""What a store costs: an append, and the last ten frames of a thousand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from nowcast.core import cube
from nowcast.readers import Item, knmi
from nowcast.store import FrameStore, open_store
from tests import paths

SAMPLE = sorted(paths.SAMPLE.glob("*.h5"))
STEP = np.timedelta64(300, "s")


def frame(index: int) -> xr.Dataset:
    """A real KNMI frame, dated ``index`` steps after the first."""
    cycle = knmi.read(Item(SAMPLE[index % len(SAMPLE)]))
    stamp = np.datetime64("2010-08-26T00:00", "ns") + index * STEP
    digest = cube.digest(cycle["rainfall_rate"].values)
    return cycle.assign_coords(
        time=[stamp], digest=("time", np.asarray([digest], object)), source=("time", np.asarray([str(index)], object))
    )


@pytest.fixture(scope="module")
def thousand(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("store") / "frames"
    frames = [frame(index) for index in range(len(SAMPLE))]
    store = FrameStore(path)
    for index in range(1000):
        stamp = np.datetime64("2010-08-26T00:00", "ns") + index * STEP
        store.append(frames[index % len(frames)].assign_coords(time=[stamp]), message=f"frame {index}")
    return path


def test_append(benchmark, thousand: Path) -> None:
    indices = iter(range(1000, 2000))
    store = FrameStore(thousand)
    benchmark.pedantic(store.append, setup=lambda: ((frame(next(indices)),), {"message": "m"}), rounds=30)
    print(f"\nappend of one 765x700 frame: median {1000 * benchmark.stats['median']:.0f} ms (target 60 ms)")


def test_open_and_last_ten(benchmark, thousand: Path) -> None:
    benchmark.pedantic(lambda: open_store(thousand)["rainfall_rate"][-10:].load(), rounds=20, warmup_rounds=2)
    print(f"\nopen + last 10 of 1,000 frames: median {1000 * benchmark.stats['median']:.0f} ms (target 150 ms)")
