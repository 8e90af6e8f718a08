"""Ingest against the bare work: reading with h5py and compressing with zstd, in as many processes.

Also what a store takes beside the best that zstd could do, and what the whole of SEVIR would take.
"""

from __future__ import annotations

import multiprocessing
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from numcodecs.zstd import Zstd

from nowcast import demo, store
from nowcast.ingest import ingest
from tests import fixtures
from tests.benchmarks.bench_loader import fields

SAMPLE = sorted((Path(demo.__file__).parent / "sample").glob("*.h5"))
COPIES, ROUNDS, EVENTS, FILE_EVENTS = 31, 3, 40, 20
SEVIR_EVENTS = 20_000


@pytest.fixture(scope="module")
def feed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample frames of KNMI again on other days."""
    folder = tmp_path_factory.mktemp("feed")
    for copy in range(COPIES):
        for path in SAMPLE:
            new = folder / path.name.replace("20100826", f"201008{copy + 1:02}")
            shutil.copy(path, new)
            with h5py.File(new, "r+") as file:
                overview = file["overview"].attrs
                for edge in ("start", "end"):
                    stamp = overview[f"product_datetime_{edge}"]
                    text = np.ravel(stamp)[0].decode().replace("26-AUG", f"{copy + 1:02}-AUG")
                    overview[f"product_datetime_{edge}"] = np.array([text.encode()], stamp.dtype)
    return folder


def by_hand(paths: list[Path]) -> None:
    codec = Zstd(3)
    for path in paths:
        with h5py.File(path) as file:
            pixels = file["image1/image_data"][()]
        codec.encode(pixels)


def in_processes(paths: list[Path], count: int) -> None:
    jobs = [multiprocessing.get_context("fork").Process(target=by_hand, args=(paths[part::count],))
            for part in range(count)]  # fmt: skip
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()


def seconds(job: Callable[[], object]) -> float:
    start = time.perf_counter()
    job()
    return time.perf_counter() - start


@pytest.mark.parametrize("workers", [0, 2])
def test_knmi(feed: Path, tmp_path: Path, workers: int) -> None:
    paths, ours, hand = sorted(feed.glob("*.h5")), [], []
    for turn in range(ROUNDS):
        hand.append(seconds(lambda: in_processes(paths, max(1, workers))))
        ours.append(seconds(lambda turn=turn: ingest("knmi", [feed], tmp_path / str(turn), workers=workers)))
    rates = [len(paths) / np.median(times) for times in (ours, hand)]
    print(f"\nKNMI, {len(paths)} files, workers={workers}: {rates[0]:.0f} files/s, h5py + zstd in {max(1, workers)} "
          f"processes {rates[1]:.0f}, ratio {np.median(np.array(hand) / ours):.2f} (target 0.6; the start of workers "
          "counts)")  # fmt: skip


def sizes(path: Path) -> tuple[int, int]:
    """Bytes of the chunks of a store, and of the best of zstd 3 to 9 for the same frames."""
    kept = store.size(path)
    cube = store.timeline(path)
    best = dict.fromkeys(range(3, 10), 0)
    for frames, _ in store.packed(path, cube.attrs["channels"]).values():
        for start in range(0, cube.sizes["time"], frames.inner[0]):
            codes = frames.read(range(start, min(start + frames.inner[0], cube.sizes["time"])))
            for level in best:
                best[level] += len(Zstd(level).encode(np.ascontiguousarray(codes)))
    return kept, min(best.values())


def test_size(feed: Path, tmp_path: Path) -> None:
    sources = {"knmi": [str(path) for path in sorted(feed.glob("*.h5"))[:36]], "sevir": [str(sevir(tmp_path, 4))]}
    if (fixtures.SHARED / "fmi").is_dir():
        sources["fmi-pgm"] = [str(fixtures.SHARED / "fmi" / "pgm")]
    for name, found in sources.items():
        ingest(name, found, tmp_path / f"{name}-store")
        kept, best = sizes(tmp_path / f"{name}-store")
        print(f"\n{name}: {kept / 2**20:.2f} MiB with all labels, best of zstd 3 to 9 {best / 2**20:.2f} MiB, "
              f"ratio {kept / best:.2f} (target 1.3)")  # fmt: skip


def sevir(root: Path, events: int) -> Path:
    """Files of events in SEVIR's layout: 384 x 384 x 49 levels."""
    rows = []
    for first in range(0, events, FILE_EVENTS):
        ids = [f"S{number}" for number in range(first, min(first + FILE_EVENTS, events))]
        name = f"vil/2019/SEVIR_VIL_STORMEVENTS_2019_{first:04}_0630.h5"
        images = np.stack([np.moveaxis(np.clip(fields(49, (384, 384), int(one[1:])) * 200, 0, 254), 0, -1)
                           for one in ids])  # fmt: skip
        fixtures.sevir_file(root / "data" / name, "vil", images, ids, compression="gzip", chunks=(1, 384, 384, 49))
        rows += [fixtures.sevir_row(one, name, index) for index, one in enumerate(ids)]
    fixtures.sevir_catalog(root, rows)
    return root


@pytest.mark.parametrize("workers", [0, 2])
def test_sevir(tmp_path: Path, workers: int) -> None:
    root = sevir(tmp_path / "sevir", EVENTS)
    spent = seconds(lambda: ingest("sevir", [root], tmp_path / "store", workers=workers))
    each = store.size(tmp_path / "store") / EVENTS
    print(f"\nSEVIR-like, {EVENTS} events, workers={workers}: {EVENTS / spent:.1f} events/s, "
          f"{EVENTS / spent * 49 * 384 * 384 / 1e6:.0f} MB/s; all {SEVIR_EVENTS:,}: "
          f"{SEVIR_EVENTS * spent / EVENTS / 3600:.1f} h, {SEVIR_EVENTS * each / 1e9:.0f} GB")  # fmt: skip
