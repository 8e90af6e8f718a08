"""Ingest against the bare work: reading with h5py and compressing with zstd, in as many processes.

Also what a store takes beside the best that zstd could do, and what the whole of SEVIR would take.
"""

from __future__ import annotations

import multiprocessing
import shutil
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path

import h5py
import numpy as np
import pytest
from numcodecs.zstd import Zstd

from nowcast.ingestion.run import ingest
from nowcast.store import FrameStore, Store
from tests import fixtures, paths
from tests.benchmarks.bench_loader import fields
from tests.paths import REAL_DATA

SAMPLE = sorted(paths.SAMPLE.glob("*.h5"))
MONTHS, ROUNDS, EVENTS, FILE_EVENTS = {5: "MAY", 7: "JUL", 8: "AUG"}, 3, 40, 20
SEVIR_EVENTS = 20_000


@pytest.fixture(scope="module")
def feed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample frames of KNMI again on other days."""
    folder = tmp_path_factory.mktemp("feed")
    for (month, word), day in product(MONTHS.items(), range(1, 32)):
        for path in SAMPLE:
            new = folder / path.name.replace("20100826", f"2010{month:02}{day:02}")
            shutil.copy(path, new)
            with h5py.File(new, "r+") as file:
                overview = file["overview"].attrs
                for edge in ("start", "end"):
                    stamp = overview[f"product_datetime_{edge}"]
                    text = np.ravel(stamp)[0].decode().replace("26-AUG", f"{day:02}-{word}")
                    overview[f"product_datetime_{edge}"] = np.array([text.encode()], stamp.dtype)
    return folder


def by_hand(paths: list[Path]) -> None:
    codec = Zstd(3)
    for path in paths:
        with h5py.File(path) as file:
            pixels = file["image1/image_data"][()]
        codec.encode(pixels)


def in_processes(paths: list[Path], count: int) -> None:
    jobs = [
        multiprocessing.get_context("fork").Process(target=by_hand, args=(paths[part::count],)) for part in range(count)
    ]
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
    paths, counts = sorted(feed.glob("*.h5")), sorted({1, max(1, workers)})
    ours: list[float] = []
    hand: dict[int, list[float]] = {count: [] for count in counts}
    for turn in range(ROUNDS):
        for count in counts:
            hand[count].append(seconds(lambda count=count: in_processes(paths, count)))
        ours.append(seconds(lambda turn=turn: ingest("knmi", [feed], tmp_path / str(turn), workers=workers)))
    against = "; ".join(
        f"h5py + zstd in {count} {len(paths) / np.median(hand[count]):.0f}, ratio "
        f"{np.median(np.array(hand[count]) / ours):.2f}"
        for count in counts
    )
    print(
        f"\nKNMI, {len(paths)} files, workers={workers}: {len(paths) / np.median(ours):.0f} files/s; {against} "
        "(target 0.6 of one; the start of workers counts)"
    )


def sizes(path: Path) -> tuple[int, int]:
    """Bytes of the chunks of a store, and of the best of zstd 3 to 9 for the same frames."""
    kept = Store(path).size()
    cube = FrameStore(path).timeline()
    best = dict.fromkeys(range(3, 10), 0)
    for frames, _ in FrameStore(path).packed(cube.attrs["channels"]).values():
        for start in range(0, cube.sizes["time"], frames.inner[0]):
            codes = frames.read(range(start, min(start + frames.inner[0], cube.sizes["time"])))
            for level in best:
                best[level] += len(Zstd(level).encode(np.ascontiguousarray(codes)))
    return kept, min(best.values())


def test_size(feed: Path, tmp_path: Path) -> None:
    sources = {"knmi": [str(path) for path in sorted(feed.glob("*.h5"))[:36]], "sevir": [str(sevir(tmp_path, 4))]}
    if (REAL_DATA / "fmi").is_dir():
        sources["fmi-pgm"] = [str(REAL_DATA / "fmi" / "pgm")]
    for name, found in sources.items():
        ingest(name, found, tmp_path / f"{name}-store")
        kept, best = sizes(tmp_path / f"{name}-store")
        print(
            f"\n{name}: {kept / 2**20:.2f} MiB with all labels, best of zstd 3 to 9 {best / 2**20:.2f} MiB, "
            f"ratio {kept / best:.2f} (target 1.3)"
        )


def sevir(root: Path, events: int) -> Path:
    """Files of events in SEVIR's layout: 384 x 384 x 49 levels."""
    rows = []
    for first in range(0, events, FILE_EVENTS):
        ids = [f"S{number}" for number in range(first, min(first + FILE_EVENTS, events))]
        name = f"vil/2019/SEVIR_VIL_STORMEVENTS_2019_{first:04}_0630.h5"
        images = np.stack(
            [np.moveaxis(np.clip(fields(49, (384, 384), int(one[1:])) * 200, 0, 254), 0, -1) for one in ids]
        )
        fixtures.sevir_file(root / "data" / name, "vil", images, ids, compression="gzip", chunks=(1, 384, 384, 49))
        rows += [fixtures.sevir_row(one, name, index) for index, one in enumerate(ids)]
    fixtures.sevir_catalog(root, rows)
    return root


@pytest.mark.parametrize("workers", [0, 2])
def test_sevir(tmp_path: Path, workers: int) -> None:
    root = sevir(tmp_path / "sevir", EVENTS)
    spent = seconds(lambda: ingest("sevir", [root], tmp_path / "store", workers=workers))
    each = Store(tmp_path / "store").size() / EVENTS
    print(
        f"\nSEVIR-like, {EVENTS} events, workers={workers}: {EVENTS / spent:.1f} events/s, "
        f"{EVENTS / spent * 49 * 384 * 384 / 1e6:.0f} MB/s; all {SEVIR_EVENTS:,}: "
        f"{SEVIR_EVENTS * spent / EVENTS / 3600:.1f} h, {SEVIR_EVENTS * each / 1e9:.0f} GB"
    )
