"""How fast moving digits are made on one core: clips of 20 frames of 64 x 64 pixels.

OMP_NUM_THREADS=1 python -m pytest -s --benchmark-only tests/benchmarks/bench_moving.py
"""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
import pytest

from nowcast.config import Moving, WindowSettings
from nowcast.data.loader import Windows
from nowcast.readers.moving_images import MovingImages, load_images
from tests.paths import REAL_DATA

DIGITS = REAL_DATA / "mnist" / "t10k-images-idx3-ubyte.gz"
BATCH = 64
TARGET = 2000


@pytest.fixture(scope="module")
def made() -> MovingImages:
    if not DIGITS.is_file():  # as many pictures of the same size and share of black
        noise = np.random.default_rng(0).integers(0, 256, (10_000, 28, 28), np.uint8)
        return MovingImages(np.where(noise > 206, noise, 0).astype(np.uint8), seed=0)
    return MovingImages(load_images(DIGITS), seed=0)


def levels(made: MovingImages, first: int) -> np.ndarray:
    return made.clips(range(first, first + BATCH))


def floats(made: MovingImages, first: int) -> np.ndarray:
    return np.divide(levels(made, first), np.float32(255), dtype=np.float32)


def one_by_one(made: MovingImages, first: int) -> list[np.ndarray]:
    return [made.clip(index) for index in range(first, first + BATCH)]


def _median(benchmark, job: Callable[[], object]) -> float:
    """Seconds of a job on one core."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        benchmark.pedantic(job, rounds=100, warmup_rounds=5)
    finally:
        os.sched_setaffinity(0, cores)
    return float(benchmark.stats["median"])


@pytest.mark.parametrize("make", [levels, floats, one_by_one])
def test_clips(benchmark, made: MovingImages, make: Callable[[MovingImages, int], object]) -> None:
    batches = iter(range(0, 10**9, BATCH))
    rate = BATCH / _median(benchmark, lambda: make(made, next(batches)))
    print(f"\n{make.__name__} in batches of {BATCH}: {rate:,.0f} sequences/s (target {TARGET:,})")
    assert rate > TARGET


@pytest.mark.parametrize(("batch", "target"), [(1, 2000), (BATCH, 10_000)])
def test_clips_of_a_training(benchmark, tmp_path, batch: int, target: int) -> None:
    """Other clips in every epoch, as a training gets them: one at a time, and in batches."""
    if not DIGITS.is_file():
        pytest.skip(f"{DIGITS} is not there")
    settings = WindowSettings(quantity="intensity", in_steps=10, out_steps=10)
    windows = Windows([Moving(images=DIGITS)], settings, training=True)
    seeds = iter(range(10**9))
    rate = batch / _median(benchmark, lambda: windows.__getitems__([(0, next(seeds)) for _ in range(batch)]))
    print(f"\nclips of a training, {batch} at a time: {rate:,.0f} sequences/s (target {target:,})")
    assert rate > target
