"""The loader against the rate at which the same bytes can be read and decompressed by hand.

Each pair is measured in turns with the same number of processes, so that the ratio holds on a busy machine too.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from numcodecs.zstd import Zstd

from nowcast.config import Span, WindowSettings
from nowcast.core import cube
from nowcast.core.grid import Grid
from nowcast.core.units import VIL_LEVELS
from nowcast.data.loader import Loader, Windows, loader
from nowcast.store import FrameStore

WORKERS = 2
ROUNDS = 3
START = np.datetime64("2019-06-01T00:00", "ns")


def fields(count: int, shape: tuple[int, int], seed: int) -> np.ndarray:
    """Smooth cells with noise in them: compresses like radar, by a factor of 3."""
    import cv2

    rng = np.random.default_rng(seed)
    coarse = rng.standard_normal((count + 8, 24, 24)).astype(np.float32)
    smooth = np.stack(
        [
            cv2.resize(coarse[i : i + 8].mean(axis=0) * 3, shape[::-1], interpolation=cv2.INTER_CUBIC)
            for i in range(count)
        ]
    )
    return np.clip((smooth - 0.3) * 0.4, 0, 1) * (1 + 0.06 * rng.standard_normal(smooth.shape).astype(np.float32))


def sevir_like(path: Path, events: int) -> str:
    """Events of 49 frames of 384 x 384 in 8 bits."""
    grid = Grid.regular("EPSG:3857", (384, 384), upper_left=(0, 384_000), pixel=(1000, 1000))
    for event in range(events):
        values = VIL_LEVELS[np.clip(fields(49, (384, 384), event) * 200, 0, VIL_LEVELS.size - 1).astype(int)]
        times = START + np.arange(49) * np.timedelta64(300, "s")
        one = cube.make({"vil": values}, times, grid, sequence=f"S{event}", levels=VIL_LEVELS)
        FrameStore(path).append(one, message="event")
    return str(path)


def archive(path: Path, frames: int) -> str:
    """A live feed of 765 x 700 in 16 bits."""
    grid = Grid.regular("EPSG:28992", (765, 700), upper_left=(0, 765_000), pixel=(1000, 1000))
    for start in range(0, frames, 24):
        values = (np.round(fields(24, (765, 700), start) * 200) * 0.12).astype(np.float32)
        values[:, :200] = np.nan
        times = START + np.arange(start, start + 24) * np.timedelta64(300, "s")
        one: xr.Dataset = cube.make({"rainfall_rate": values}, times, grid, cadence=300, quantum=0.12)
        FrameStore(path).append(one, message="frames")
    return str(path)


def copy_chunks(windows: Windows, folder: Path) -> list[list[Path]]:
    """The compressed chunks of every window, as plain files: what is read by hand."""
    source = windows.sources[0]
    frames, _ = source.frames()[source.names[0]]
    folder.mkdir()
    level, chunks = 3, {}
    for place in np.unique(source.slots):
        chunks[place] = folder / f"{place}.zst"
        chunks[place].write_bytes(Zstd(level).encode(frames.read([place])))
    return [[chunks[place] for place in source.positions(window)] for window in range(len(windows))]


def by_hand(windows: list[list[Path]], shape: tuple[int, ...], dtype: np.dtype) -> None:
    codec, out = Zstd(), np.empty(shape, dtype)
    for files in windows:
        for place, path in zip(out, files, strict=True):
            codec.decode(path.read_bytes(), place)


def hand_rate(windows: list[list[Path]], shape: tuple[int, ...], dtype: np.dtype) -> float:
    """Windows per second of as many processes as the loader has."""
    parts = [windows[start::WORKERS] for start in range(WORKERS)]
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=by_hand, args=(part, shape, dtype)) for part in parts]
    return len(windows) / _seconds(lambda: [[p.start() for p in processes], [p.join() for p in processes]])


def loader_rate(batches: Loader, each: int) -> float:
    """Crops per second once the processes are up."""
    count, iterator = 0, iter(batches)
    next(iterator)
    start = time.perf_counter()
    for _ in iterator:
        count += each
    return count / (time.perf_counter() - start)


def _seconds(job: Callable[[], object]) -> float:
    start = time.perf_counter()
    job()
    return time.perf_counter() - start


def report(name: str, ours: list[float], hand: list[float], target: float) -> None:
    ratio = np.median(np.array(ours) / np.array(hand))
    print(
        f"\n{name}: loader {np.median(ours):.0f}/s, by hand {np.median(hand):.0f}/s, ratio {ratio:.2f} "
        f"(target {target}), {WORKERS} processes, {os.cpu_count()} cores"
    )


@pytest.fixture(scope="module")
def events(tmp_path_factory: pytest.TempPathFactory) -> str:
    return sevir_like(tmp_path_factory.mktemp("sevir") / "store", 24)


@pytest.fixture(scope="module")
def feed(tmp_path_factory: pytest.TempPathFactory) -> str:
    return archive(tmp_path_factory.mktemp("feed") / "store", 240)


def test_sevir_windows(events: str, tmp_path: Path) -> None:
    """25 x 384 x 384 in 8 bits."""
    settings = WindowSettings(quantity="vil", in_steps=13, out_steps=12, stride=12)
    windows = Windows([Span(store=events)], settings, training=False)
    files = copy_chunks(windows, tmp_path / "chunks")
    options = {"batch_size": 4, "workers": WORKERS, "seed": 0, "shuffle": True, "batches": 120}
    packed, scaled = loader(windows, packed=True, **options), loader(windows, **options)  # type: ignore[arg-type]
    ours, floats, hand = [], [], []
    for _ in range(ROUNDS):
        hand.append(hand_rate(files * 6, (25, 384, 384), np.dtype(np.uint8)))
        ours.append(loader_rate(packed, 4))
        floats.append(loader_rate(scaled, 4))
    report("SEVIR-like windows, 25 x 384 x 384", ours, hand, 0.7)
    report("the same, scaled to float32 by the process that trains", floats, hand, 0.7)


@pytest.mark.parametrize("each", [1, 4, 16])
def test_archive_crops(feed: str, tmp_path: Path, each: int) -> None:
    """20 x 128 x 128 of 765 x 700 in 16 bits, batches of 16."""
    settings = WindowSettings(quantity="rainfall_rate", in_steps=8, out_steps=12, crop=128, crops_per_window=each)
    windows = Windows([Span(store=feed)], settings, training=False)
    files = copy_chunks(windows, tmp_path / "chunks")
    batches = loader(windows, batch_size=16, workers=WORKERS, seed=0, shuffle=True, batches=8 * each, packed=True)
    ours, hand = [], []
    for _ in range(ROUNDS):
        hand.append(each * hand_rate(files[:120], (20, 765, 700), np.dtype(np.int16)))
        ours.append(loader_rate(batches, 16))
    report(f"archive crops, 20 x 128 x 128, {each} per window", ours, hand, 0.7)
    print(f"{np.median(ours) / WORKERS:.0f} crops/s and core")
