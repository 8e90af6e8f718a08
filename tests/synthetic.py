"""Small moving rain, as cubes and stores: the test double of a radar."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import xarray as xr

from nowcast.config import ScalingSettings
from nowcast.core import cube as cubes
from nowcast.core.grid import Grid
from nowcast.models import build
from nowcast.registry import checkpoint
from nowcast.registry.checkpoint import Card
from nowcast.store import FrameStore

START = np.datetime64("2010-08-26T00:00", "ns")
STEP = np.timedelta64(300, "s")
GRID = Grid.regular("EPSG:28992", (48, 64), upper_left=(0, 400_000), pixel=(1000, 1000))


def rain(index: int, *, grid: Grid = GRID, speed: float = 1.0) -> np.ndarray:
    """A cell of up to 12 mm/h that moves ``speed`` pixels east per frame, and a corner without coverage."""
    rows, columns = np.indices(grid.shape, np.float32)
    distance = (rows - 24) ** 2 + (columns - 16 - speed * index) ** 2
    field = 12 * np.exp(-distance / 60).astype(np.float32)
    field[field < 0.1] = 0
    field[:6, :6] = np.nan
    return field


def cube(indices: list[int] | range, *, sequence: str = "", cadence: int | None = 300) -> xr.Dataset:
    fields = np.stack([rain(index) for index in indices])
    times = [START + index * STEP for index in indices]
    frames = cubes.make(
        {"rainfall_rate": fields},
        times,
        GRID,
        sequence=sequence,
        cadence=cadence,
        attrs={"title": "synthetic rain", "licence": "none"},
    )
    digests = np.asarray([cubes.digest(field) for field in fields], object)
    return frames.assign_coords(digest=("time", digests))


def make_store(path: Path, indices: list[int] | range, **options: object) -> str:
    FrameStore(path).append(cube(indices, **options), message="synthetic")  # type: ignore[arg-type]
    return str(path)


def make_clips(path: Path, splits: dict[str, int]) -> str:
    """A store of clips of a video, four frames each from 1970 on, so many of each split; "" is none."""
    grid = Grid.picture((32, 32))
    for split, count in splits.items():
        for number in range(count):
            fields = np.random.default_rng(number).random((4, 32, 32)).astype(np.float32)
            times = np.datetime64(0, "s") + np.arange(4)
            label = f"{split}/{number}"
            clip = cubes.make({"intensity": fields}, times, grid, sequence=label, split=split or None)
            FrameStore(path).append(clip, message="clip")
    return str(path)


TINY = Card(
    model="gs2pm:debug",
    options={},
    in_steps=2,
    out_steps=2,
    quantity="rainfall_rate",
    scaling=ScalingSettings(kind="decibel", low=0.05, high=100),
    cadence_seconds=300,
    recipe={"windows": {"crop": 32, "crops_per_window": 2, "rain_weight": 3.0}},
    code_version="test",
    created="now",
)


def tiny(path: Path, model: str = "gs2pm:debug") -> Path:
    """A checkpoint with random weights, to be tuned."""
    torch.manual_seed(0)
    network = build(model, in_steps=2, out_steps=2)
    return checkpoint.save(path, network, TINY.model_copy(update={"model": model}))
