"""What it takes to bring files into a store, in time and in bytes, against the least that it could take.

That is: unpack every image with h5py and pack it with zstd, with nothing looked at, checked or written. Both
are measured in turns with the same number of processes, so that the ratio holds on a busy machine too.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
import zarr
from numcodecs.zstd import Zstd

from nowcast import demo, ingest, store
from tests import fixtures
from tests.benchmarks.bench_loader import fields

WORKERS, ROUNDS = 2, 3
FILES, EVENTS = 400, 40
LEVELS = range(3, 10)
SAMPLE = Path(demo.__file__).parent / "sample"
SEVIR = "vil/2019/SEVIR_VIL_STORMEVENTS_2019_0101_0630.h5"
SEVIR_EVENTS = 20_000


def seconds(job: Callable[[], object]) -> float:
    start = time.perf_counter()
    job()
    return time.perf_counter() - start


# --- files ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def knmi(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real composites under other times, five minutes apart."""
    real = fixtures.SHARED / "knmi"
    sources = sorted((real if real.is_dir() else SAMPLE).rglob("*.h5"))
    folder = tmp_path_factory.mktemp("knmi")
    for number in range(FILES):
        ends = [np.datetime64("2011-01-01T00:00:00") + (number + step) * np.timedelta64(300, "s") for step in (0, 1)]
        path = shutil.copy(sources[number % len(sources)], folder / f"RAD_NL25_RAP_5min_{number:06}.h5")
        with h5py.File(path, "r+") as file:
            for edge, moment in zip(("start", "end"), ends, strict=True):
                file["overview"].attrs[f"product_datetime_{edge}"] = np.array([fixtures._knmi_time(moment)])
    return folder


@pytest.fixture(scope="module")
def sevir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Events of 49 x 384 x 384 as SEVIR has them, of which every fifth is the same."""
    root = tmp_path_factory.mktemp("sevir")
    storms = [np.clip(fields(49, (384, 384), seed) * 200, 0, 249).astype(np.uint8) for seed in range(5)]
    images = np.stack([np.moveaxis(storms[number % len(storms)], 0, -1) for number in range(EVENTS)])
    ids = [f"S{number:06}" for number in range(EVENTS)]
    fixtures.sevir_file(root / "data" / SEVIR, "vil", images, ids, compression="gzip", chunks=(1, 384, 384, 49))
    fixtures.sevir_catalog(root, [fixtures.sevir_row(event, SEVIR, number) for number, event in enumerate(ids)])
    return root


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """Workers as ``ingest`` starts them, which have imported everything."""
    start = time.perf_counter()
    with ingest._cluster(WORKERS, None) as client:
        client.run(__import__, "nowcast.ingest")
        print(f"\n{WORKERS} workers are up after {time.perf_counter() - start:.1f} s")
        yield client.scheduler.address


# --- rates ----------------------------------------------------------------------------------------


def unpack_and_pack(files: list[Path]) -> int:
    codec = Zstd(3)
    for path in files:
        with h5py.File(path) as file:
            codec.encode(file["image1/image_data"][()])
    return len(files)


def test_knmi_rate(knmi: Path, tmp_path: Path, cluster: str) -> None:
    files = sorted(knmi.glob("*.h5"))
    parts = [files[start : start + 20] for start in range(0, FILES, 20)]
    rates: dict[str, list[float]] = {name: [] for name in ("by hand", "ours", "by hand, 2", "ours, 2")}
    with multiprocessing.get_context("spawn").Pool(WORKERS) as pool:
        jobs: dict[str, Callable[[Path], object]] = {
            "by hand": lambda _: unpack_and_pack(files),
            "ours": lambda path: ingest.ingest("knmi", [knmi], path),
            "by hand, 2": lambda _: pool.map(unpack_and_pack, parts, chunksize=1),
            "ours, 2": lambda path: ingest.ingest("knmi", [knmi], path, scheduler=cluster),
        }
        for turn in range(-1, ROUNDS):  # the first one only warms up
            for name, job in jobs.items():
                took = seconds(lambda job=job, name=name, turn=turn: job(tmp_path / f"{name}{turn}"))  # type: ignore[misc]
                if turn >= 0:
                    rates[name].append(FILES / took)
    for count, end in ((1, ""), (WORKERS, ", 2")):
        ours, hand = np.array(rates["ours" + end]), np.array(rates["by hand" + end])
        print(f"\nKNMI, {FILES} files of 765 x 700, {count} processes: {np.median(ours):.0f} files/s, by hand "
              f"{np.median(hand):.0f}, ratio {np.median(ours / hand):.2f} (target 0.6)")  # fmt: skip
    assert len(store.labels(tmp_path / "ours, 20", "time")["time"]) == FILES
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


def test_sevir_rate(sevir: Path, tmp_path: Path, cluster: str) -> None:
    size = 49 * 384 * 384
    for workers, options in ((0, {}), (WORKERS, {"scheduler": cluster})):
        paths = [tmp_path / f"{workers} {turn}" for turn in range(ROUNDS)]
        took = float(np.median([seconds(lambda path=path: ingest.ingest("sevir", [sevir], path, **options))
                                for path in paths]))  # fmt: skip
        rate, held = EVENTS / took, store.size(paths[0]) / EVENTS
        print(f"\nSEVIR-like, {EVENTS} events of 49 x 384 x 384, {workers} workers: {rate:.1f} events/s, "
              f"{rate * size / 1e6:.0f} MB/s, {held / 1e6:.2f} MB per event (a factor of {size / held:.1f}); "
              f"{SEVIR_EVENTS:,} events: {SEVIR_EVENTS / rate / 3600:.2f} h, "
              f"{SEVIR_EVENTS * held / 1e9:.0f} GB")  # fmt: skip


# --- sizes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["knmi", "fmi-pgm", "sevir"])
def test_size(request: pytest.FixtureRequest, tmp_path: Path, name: str) -> None:
    if name == "fmi-pgm":
        real = fixtures.SHARED / "fmi" / "pgm"
        source = real if real.is_dir() else fixtures.SOURCES[name](tmp_path / "fmi")
    else:
        source = request.getfixturevalue(name)
    sources = sorted(source.glob("*.h5"))[:92] if name == "knmi" else [source]
    ingest.ingest(name, sources, tmp_path / "store")
    session = store._repository(tmp_path / "store").readonly_session(store.BRANCH)
    array = next(one for _, one in zarr.open_group(session.store, mode="r").arrays() if one.ndim == 3)
    frames = array[:98]
    held = array.nbytes_stored() * len(frames) / array.shape[0]
    sizes = {level: sum(len(Zstd(level).encode(frame)) for frame in frames) for level in LEVELS}
    best = min(sizes, key=lambda level: sizes[level])
    print(f"\n{name}: {held / len(frames) / 1e3:.1f} kB per frame of {frames[0].nbytes / 1e3:.0f}, zstd at level {best} "
          f"{sizes[best] / len(frames) / 1e3:.1f}, ratio {held / sizes[best]:.2f} (target at most 1.3)")  # fmt: skip
