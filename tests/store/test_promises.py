"""What a store promises beyond giving back what it got: one writer at a time, a history, and every code a value."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from filelock import FileLock

from nowcast.config import Product
from nowcast.core.cube import make
from nowcast.core.errors import StoreError
from nowcast.forecasting.fallback import issue
from nowcast.ingestion.run import ingest
from nowcast.store import FrameStore, open_store, repository
from nowcast.store.packing import Packing
from nowcast.verification.run import verify
from tests import synthetic
from tests.paths import SAMPLE
from tests.synthetic import GRID, START, STEP

# --- one writer at a time -----------------------------------------------------------------------------


def _ingest(folder: Path) -> object:
    return ingest("knmi", [SAMPLE], folder / "store")


def _issue(folder: Path) -> object:
    frames = synthetic.make_store(folder / "frames", range(3))
    return issue(frames, str(folder / "store"), [Product(name="p", model="persistence")], fallback=(), leads=1)


def _verify(folder: Path) -> object:
    frames, forecasts = synthetic.make_store(folder / "frames", range(3)), str(folder / "forecasts")
    issue(frames, forecasts, [Product(name="p", model="persistence")], fallback=(), leads=1)
    return verify(frames, forecasts, str(folder / "store"))


@pytest.mark.parametrize("write", [_ingest, _issue, _verify])
def test_who_writes_waits_for_another_writer_and_then_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Path], object]
) -> None:
    """The other one is a process that holds the file beside the store."""
    monkeypatch.setattr(repository, "LOCK_SECONDS", 0.1)
    with FileLock(tmp_path / "store.lock"), pytest.raises(StoreError, match="another process is writing"):
        write(tmp_path)
    assert not (tmp_path / "store").exists()


# --- a history ----------------------------------------------------------------------------------------


def test_versions_younger_than_the_limit_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "store"
    versions = [FrameStore(path).append(synthetic.cube([index]), message=f"frame {index}") for index in range(3)]
    assert FrameStore(path).expire(older_than=timedelta(hours=1)) == 0
    assert [commit.snapshot for commit in FrameStore(path).history(limit=3)] == versions[::-1]
    for count, version in enumerate(versions, 1):
        cube = open_store(path, version=version)
        assert cube.sizes["time"] == count
        np.testing.assert_allclose(cube["rainfall_rate"][-1], synthetic.rain(count - 1), atol=0.0051)


# --- every code is a value ----------------------------------------------------------------------------

LEVELS = np.cumsum(np.arange(1, 257, dtype=np.float32)) / 100
PACKINGS = {
    "16 bits": ({"quantum": 0.01}, -327.67, 327.67),
    "8 bits": ({"quantum": 0.5, "floor": -32.0}, -32.0, 95.0),
    "levels": ({"levels": LEVELS[:255]}, LEVELS[0], LEVELS[254]),
    "few levels": ({"levels": LEVELS[:3]}, LEVELS[0], LEVELS[2]),
    "all levels": ({"levels": LEVELS}, LEVELS[0], LEVELS[255]),
}


def ends(kind: str, *, missing: bool = False) -> xr.Dataset:
    """Frames of the lowest value and of the highest, and a pixel without data where asked."""
    packing, low, high = PACKINGS[kind]
    fields = np.stack([np.full(GRID.shape, end, np.float32) for end in (low, high)])
    if missing:
        fields[:, 0, 0] = np.nan
    return make({"rainfall_rate": fields}, [START, START + STEP], GRID, cadence=300, **packing)


@pytest.mark.parametrize("kind", PACKINGS)
def test_the_lowest_and_the_highest_code_are_values(tmp_path: Path, kind: str) -> None:
    cube = ends(kind, missing=kind != "all levels")
    FrameStore(tmp_path / "store").append(cube, message="m")
    found = open_store(tmp_path / "store")["rainfall_rate"]
    np.testing.assert_allclose(found, cube["rainfall_rate"], rtol=1e-5)
    assert np.isnan(found.values).sum() == np.isnan(cube["rainfall_rate"].values).sum()


@pytest.mark.parametrize("kind", PACKINGS)
def test_their_codes_are_known_counted_and_looked_up(kind: str) -> None:
    _, low, high = PACKINGS[kind]
    found = Packing.wanted(ends(kind)["rainfall_rate"])
    assert found is not None
    codes = found.pack(np.array([[low, high]], np.float32))
    assert found.known(codes).tolist() == [[255, 255]]
    assert found.mean(codes, 2) == pytest.approx((low + high) / 2, rel=1e-5, abs=1e-5)
    steps = (codes.astype(int) - np.iinfo(found.dtype).min).ravel()
    np.testing.assert_allclose(found.table[steps], [low, high], rtol=1e-5)
    assert [found.first(float(end)) for end in (low, high)] == codes.ravel().tolist()
    assert np.isnan(found.table).sum() == {"few levels": 253, "all levels": 0}.get(kind, 1)


@pytest.mark.parametrize("kind", [kind for kind in PACKINGS if kind != "all levels"])
def test_a_pixel_without_data_is_no_code_of_a_value(kind: str) -> None:
    found = Packing.wanted(ends(kind)["rainfall_rate"])
    assert found is not None
    codes = found.pack(np.array([[np.nan, PACKINGS[kind][2]]], np.float32))
    assert found.known(codes).tolist() == [[0, 255]]
    assert np.isnan(found.unpack(codes)).tolist() == [[True, False]]
    assert found.mean(codes, 1) == pytest.approx(PACKINGS[kind][2], rel=1e-5)
