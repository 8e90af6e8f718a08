"""Every readable frame once; everything else refused by name, and the rest goes on."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import h5py
import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import given
from hypothesis import strategies as st

from nowcast.core import cube
from nowcast.core.errors import StoreError
from nowcast.ingestion import cluster as dask_cluster
from nowcast.ingestion import decode
from nowcast.ingestion import run as ingestion
from nowcast.readers import READERS, get
from nowcast.store import ForecastStore, FrameStore, Store, open_store, schema
from tests import fixtures
from tests.paths import SAMPLE
from tests.sources import SOURCES
from tests.sources_video import coloured, records, trajectory

FRAMES = sorted(SAMPLE.glob("*.h5"))


@pytest.fixture
def feed(tmp_path: Path) -> Path:
    folder = tmp_path / "feed"
    folder.mkdir()
    return folder


def land(feed: Path, index: int, name: str | None = None) -> Path:
    path = feed / (name or FRAMES[index].name)
    shutil.copy(FRAMES[index], path)
    return path


def edit(path: Path, change: object, *, later: bool = True) -> Path:
    """Rewrites the pixels of a KNMI file, as a corrected file that arrives afterwards."""
    with h5py.File(path, "r+") as file:
        data = file["image1/image_data"]
        data[...] = change(data[...])  # type: ignore[operator]
    if later:
        stat = path.stat()
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 10**9))
    return path


def take(feed: Path, **options: object) -> ingestion.Summary:
    return ingestion.ingest("knmi", [feed], feed.parent / "frames", **options)  # type: ignore[arg-type]


def counts(summary: ingestion.Summary) -> tuple[int, int, int, int]:
    return summary.taken, summary.known, summary.revised, len(summary.refused)


def content(path: Path) -> dict[str, tuple[dict, np.ndarray]]:
    """Every array of a store as it lies on disk: layout, attributes and numbers."""
    session = FrameStore(path)._session()
    arrays = dict(zarr.open_group(session.store, mode="r").arrays())
    return {name: (array.metadata.to_dict(), array[...]) for name, array in arrays.items()}


def same(path: Path, other: Path) -> None:
    here, there = content(path), content(other)
    assert here.keys() == there.keys()
    for name, (metadata, numbers) in here.items():
        np.testing.assert_equal(metadata, there[name][0])
        np.testing.assert_array_equal(numbers, there[name][1], name)


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """Address of two workers that run already."""
    import distributed

    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as running:
        yield running.scheduler_address


@pytest.fixture(params=["alone", "cluster"])
def how(request: pytest.FixtureRequest) -> dict[str, object]:
    """Ways to do the same."""
    return {} if request.param == "alone" else {"scheduler": request.getfixturevalue("cluster")}


def test_twice_is_once(feed: Path, how: dict) -> None:
    for index in range(3):
        land(feed, index)
    assert counts(take(feed, **how)) == (3, 0, 0, 0)
    before = Store(feed.parent / "frames").snapshot()
    assert counts(take(feed, **how)) == (0, 3, 0, 0)
    assert Store(feed.parent / "frames").snapshot() == before


def test_known_files_are_not_opened_again(feed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    land(feed, 0)
    take(feed)
    monkeypatch.setattr("nowcast.readers.knmi.read", lambda item: pytest.fail("opened"))
    assert counts(take(feed)) == (0, 1, 0, 0)


def test_the_same_frame_under_another_name_is_known(feed: Path) -> None:
    land(feed, 0)
    take(feed)
    land(feed, 0, FRAMES[0].name.replace(".h5", "_copy.h5"))
    assert counts(take(feed)) == (0, 2, 0, 0)


def test_the_same_frame_twice_at_once(feed: Path, how: dict) -> None:
    for index in range(3):
        land(feed, index)
        land(feed, index, FRAMES[index].name.replace(".h5", "_copy.h5"))
    assert counts(take(feed, **how)) == (3, 3, 0, 0)


def test_a_corrected_frame_is_a_new_version(feed: Path, how: dict) -> None:
    path = land(feed, 0)
    take(feed, **how)
    before = Store(feed.parent / "frames").snapshot()
    edit(path, lambda pixels: np.where(pixels == 65535, pixels, 7))
    assert counts(take(feed, **how)) == (0, 0, 1, 0)
    after, old = (open_store(feed.parent / "frames", version=version) for version in (None, before))
    assert np.nanmax(after["rainfall_rate"][0]) == pytest.approx(0.84)
    assert np.nanmax(old["rainfall_rate"][0]) > 1
    assert next(Store(feed.parent / "frames").history()).message.startswith("Revise ")
    assert counts(take(feed, **how)) == (0, 1, 0, 0)


def test_two_versions_in_one_folder_do_not_replace_each_other_for_ever(feed: Path, how: dict) -> None:
    land(feed, 0, "a_" + FRAMES[0].name)
    edit(land(feed, 0, "b_" + FRAMES[0].name), lambda pixels: np.where(pixels == 65535, pixels, 7))
    take(feed, **how)
    before = Store(feed.parent / "frames").snapshot()
    take(feed, **how)
    assert Store(feed.parent / "frames").snapshot() == before
    assert np.nanmax(open_store(feed.parent / "frames")["rainfall_rate"][0]) == pytest.approx(0.84)


def test_a_late_frame_takes_its_place(feed: Path, how: dict) -> None:
    for index in (0, 2):
        land(feed, index)
        take(feed, **how)
    land(feed, 1)
    take(feed, **how)
    times = open_store(feed.parent / "frames")["time"].values
    assert (np.diff(times) == np.timedelta64(300, "s")).all()


def test_bad_files_are_refused_and_the_rest_is_taken(feed: Path, how: dict) -> None:
    land(feed, 0)
    truncated = land(feed, 1)
    truncated.write_bytes(truncated.read_bytes()[:2000])
    edit(land(feed, 2), lambda pixels: np.full_like(pixels, 65535))
    (feed / FRAMES[3].name).write_text("not a radar file")
    land(feed, 4)
    dry = edit(land(feed, 5), lambda pixels: np.where(pixels == 65535, pixels, 0))
    summary = take(feed, **how)
    assert counts(summary) == (3, 0, 0, 3)
    for index, fault in ((1, FRAMES[1].name), (2, "no measured pixel"), (3, FRAMES[3].name)):
        assert sum(fault in sentence and "\n" not in sentence for sentence in summary.refused) == 1, index
    frames = open_store(feed.parent / "frames")
    assert frames.sizes["time"] == 3
    assert np.nanmax(frames["rainfall_rate"].sel(time="2010-08-26T04:30")) == 0, dry


def test_a_frame_on_another_grid_is_refused(feed: Path, how: dict) -> None:
    land(feed, 0)
    for index in (1, 3):
        with h5py.File(land(feed, index), "r+") as file:
            pixels = file["image1/image_data"][:-5]
            del file["image1/image_data"]
            file["image1/image_data"] = pixels
            file["geographic"].attrs["geo_number_rows"] = np.int32(760)
            del file["geographic"].attrs["geo_product_corners"]
    for index in (2, 4, 5, 6, 7):
        land(feed, index)
    summary = take(feed, **how)
    assert counts(summary) == (6, 0, 0, 2)
    for index, sentence in zip((1, 3), summary.refused, strict=True):
        assert sentence.startswith(f"{FRAMES[index].name}: ")
        assert "is on another y ((765,) there, (760,) here)" in sentence


def test_a_frame_from_the_future_is_refused(feed: Path) -> None:
    land(feed, 0)
    summary = take(feed, now=datetime(2010, 8, 26, 3, 0, tzinfo=UTC))
    assert counts(summary) == (0, 0, 0, 1)
    assert "from the future" in summary.refused[0]


def test_an_unreadable_file_is_refused(feed: Path) -> None:
    (feed / FRAMES[0].name).symlink_to(feed / "gone.h5")
    land(feed, 1)
    assert take(feed).taken == 1


@pytest.mark.parametrize("source", ["empty", "missing"])
def test_nothing_to_read_says_so(tmp_path: Path, source: str) -> None:
    (tmp_path / "empty").mkdir()
    summary = ingestion.ingest("knmi", [tmp_path / source], tmp_path / "frames")
    assert summary.refused
    assert source in summary.refused[0]
    assert not Store(tmp_path / "frames").exists()


def test_a_glob_is_a_source(feed: Path) -> None:
    for index in range(3):
        land(feed, index)
    assert ingestion.ingest("knmi", [str(feed / "*0405.h5")], feed.parent / "frames").taken == 1


def test_a_store_of_another_making_is_left_alone(feed: Path) -> None:
    land(feed, 0)
    ForecastStore(feed.parent / "frames").append(xr.Dataset({"model": ("run", ["persistence"])}), message="m")
    with pytest.raises(StoreError, match="holds no sequence or time or digest or source, so it was not made by"):
        take(feed)


def test_an_unknown_reader_lists_the_known_ones(feed: Path) -> None:
    with pytest.raises(ValueError, match="Unknown reader 'foo'; known: hko7"):
        ingestion.ingest("foo", [feed], feed.parent / "frames")


@pytest.mark.parametrize("reader", READERS)
def test_every_source_goes_into_a_store_and_comes_out_whole(tmp_path: Path, reader: str) -> None:
    source = SOURCES[reader](tmp_path / "source")
    first = ingestion.ingest(reader, [source], tmp_path / "frames")
    assert first.taken > 0
    again = ingestion.ingest(reader, [source], tmp_path / "frames")
    assert (again.taken, again.revised, again.refused) == (0, 0, first.refused)
    stored = cube.check(open_store(tmp_path / "frames"))
    module, name = get(reader), cube.channels(stored)[0]
    read = module.read(next(module.find(source)))
    label = str(read["sequence"].values[0])
    same = stored.sel(time=read["time"].values[0])
    if label:
        same = stored.isel(time=np.flatnonzero(stored["sequence"].values == label)[0])
    quantum = read[name].encoding.get("quantum", 1e-6)
    np.testing.assert_allclose(same[name], read[name][0], atol=0.5001 * quantum)


# --- however the work is divided ------------------------------------------------------------------


def feed_of_all_sorts(root: Path) -> tuple[str, Path]:
    """Files that arrive out of order, one of them twice, one of another period and so of other steps, one of half the
    pixels and late, two that are bad."""
    root.mkdir()
    order = [*range(8), 12, 11, 10, *range(14, 30), 9]
    for number, index in enumerate(order):
        land(root, index, f"{number:02}.h5")
    land(root, 3, "17_copy.h5")
    with h5py.File(land(root, 30, "05_long.h5"), "r+") as file:
        file["overview"].attrs["product_datetime_start"] = np.array([b"26-AUG-2010;06:25:00.000"])
    edit(root / "09.h5", lambda pixels: np.where(np.arange(765)[:, None] < 383, pixels, 65535))
    edit(land(root, 13, "20_nothing.h5"), lambda pixels: np.full_like(pixels, 65535))
    (root / "21_bad.h5").write_text("not a radar file")
    return "knmi", root


def events(root: Path) -> tuple[str, Path]:
    """Nine events of 49 frames."""
    return "sevir", fixtures.sevir(root, ids=[f"S{number}" for number in range(9)])


def clips(root: Path) -> tuple[str, Path]:
    """Eleven films of one to three clips of one to seven frames, in colour."""
    rng = random.Random(3)
    for number in range(11):
        films = [trajectory(coloured(rng.randint(1, 7))) for _ in range(rng.randint(1, 3))]
        records(root / "softmotion30_44k" / "train" / f"traj_{number}_to_x.tfrecords", films)
    return "bair", root


MAKERS = {"feed": feed_of_all_sorts, "events": events, "clips": clips}
Source = tuple[str, Path, Path]


@pytest.fixture(scope="module", params=MAKERS)
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Source]:
    """Reader, folder, and the store that one process makes of it in one go."""
    folder = tmp_path_factory.mktemp(request.param)
    reader, root = MAKERS[request.param](folder / "source")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(schema, "SHARD_BYTES", 2**16)  # four clips, five events
        ingestion.ingest(reader, [root], folder / "store")
        yield reader, root, folder / "store"


def test_events_share_objects(source: Source) -> None:
    """Or the tests below would not show what happens at their borders."""
    arrays = content(source[2])
    pixels = [metadata for metadata, numbers in arrays.values() if numbers.ndim == 3]
    codecs = {metadata["codecs"][0]["name"] for metadata in pixels}
    assert codecs == ({"bytes"} if source[0] == "knmi" else {"sharding_indexed"})


@pytest.mark.parametrize("together", [1, 2, 5])
def test_batches_of_one_process_do_not_show(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, together: int
) -> None:
    monkeypatch.setattr(ingestion, "BATCH_ITEMS", together)
    ingestion.ingest(source[0], [source[1]], tmp_path / "store")
    same(tmp_path / "store", source[2])


@pytest.mark.parametrize("together", [1, 2, 16])
def test_workers_do_not_show(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cluster: str, together: int
) -> None:
    monkeypatch.setattr(decode, "TASK_ITEMS", together)
    names: list[tuple[int, int, str]] = []
    found = ingestion.ingest(
        source[0], [source[1]], tmp_path / "store", scheduler=cluster, progress=lambda *step: names.append(step)
    )
    same(tmp_path / "store", source[2])
    assert [done for done, _, _ in names] == list(range(1, names[0][1] + 1))
    assert len({name for _, _, name in names}) == len(names)
    assert len(found.refused) == (3 if source[0] == "knmi" else 0)


class Cut(Exception):
    pass


@pytest.mark.parametrize("items", [1, 4, 7])
def test_what_was_cut_off_goes_on(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: dict, items: int
) -> None:
    monkeypatch.setattr(ingestion, "BATCH_ITEMS", 3)
    monkeypatch.setattr(decode, "TASK_ITEMS", 2)

    def stop(done: int, *_: object) -> None:
        if done == items:
            raise Cut

    with pytest.raises(Cut):
        ingestion.ingest(source[0], [source[1]], tmp_path / "store", progress=stop, **how)
    ingestion.ingest(source[0], [source[1]], tmp_path / "store", **how)
    same(tmp_path / "store", source[2])


def test_one_process_may_convert_two_kinds(tmp_path: Path) -> None:
    """Of the same grid: five minutes in steps of 0.12 mm/h, then an hour in steps of 0.01 mm/h."""
    for minutes in (5, 60):
        path = fixtures.knmi(tmp_path / f"{minutes}" / "a.h5", minutes=minutes)
        ingestion.ingest("knmi", [path], tmp_path / f"store{minutes}")
        array, _ = content(tmp_path / f"store{minutes}")["rainfall_rate"]
        assert array["attributes"]["scale_factor"] == pytest.approx(0.6 / minutes)
        assert open_store(tmp_path / f"store{minutes}").attrs["cadence_seconds"] == 60 * minutes


def test_items_of_other_labels_are_refused(tmp_path: Path, how: dict) -> None:
    """Clips of the challenges say less than events do: neither fits into a store of the other."""
    event, clip = tmp_path / "events", tmp_path / "clips" / "nowcast_testing.h5"
    fixtures.sevir(event)
    clip.parent.mkdir()
    with h5py.File(clip, "w") as file:
        for name, frames in (("IN", 13), ("OUT", 12)):
            file[name] = np.ones((2, 16, 16, frames), np.uint8)
    first = ingestion.ingest("sevir", [event, clip], tmp_path / "one", **how)
    assert (first.taken, len(first.refused)) == (98, 1)
    assert "nowcast_testing.h5[0:2]: has no" in first.refused[0] or "holds" in first.refused[0]
    second = ingestion.ingest("sevir", [clip, event], tmp_path / "two", **how)
    assert (second.taken, len(second.refused)) == (50, 2)
    assert all("has no origin_x, origin_y, pct_missing" in sentence for sentence in second.refused)


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(1, 9)), min_size=1, max_size=12),
    st.integers(0, 20),
    st.integers(1, 7),
)
def test_every_object_has_one_writer(items: list[tuple[int, int]], start: int, steps: int) -> None:
    pieces = [(group, number, list(range(count))) for number, (group, count) in enumerate(sorted(items))]
    spans = dask_cluster._spans(pieces, start, steps)
    written = [
        (at + offset, number, frame)
        for span in spans
        for cuts in span.values()
        for number, frames, at in cuts
        for offset, frame in enumerate(frames)
    ]
    wanted = [(number, frame) for _, number, frames in pieces for frame in frames]
    assert [place for place, _, _ in written] == list(range(start, start + len(wanted)))
    assert [frame for _, *frame in written] == [list(frame) for frame in wanted]
    objects = [
        {(at + offset) // steps for cuts in span.values() for _, frames, at in cuts for offset in range(len(frames))}
        for span in spans
    ]
    assert sum(map(len, objects)) == len(set.union(*objects))
    assert len(spans) <= len({group for group, _ in items})


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:9", "nowhere", "tcp://127.0.0.1"])
def test_an_address_where_nobody_answers(feed: Path, address: str) -> None:
    land(feed, 0)
    with pytest.raises(ConnectionError, match=f"No Dask scheduler answers at {address}; give") as error:
        take(feed, scheduler=address)
    assert "\n" not in str(error.value)
    assert not Store(feed.parent / "frames").exists()


@pytest.mark.slow
def test_workers_of_its_own(feed: Path) -> None:
    for index in range(20):
        land(feed, index)
    assert counts(take(feed, workers=2)) == (20, 0, 0, 0)
    take_alone = ingestion.ingest("knmi", [feed], feed.parent / "other")
    assert take_alone.taken == 20
    same(feed.parent / "frames", feed.parent / "other")


CONVERT = """
import sys
from nowcast.ingestion import run as ingestion
from nowcast.store import schema
from nowcast.ingestion import decode
ingestion.BATCH_ITEMS, decode.TASK_ITEMS, schema.SHARD_BYTES = 2, 1, 2**16
if __name__ == "__main__":
    reader, source, target, workers = sys.argv[1:]
    print("ready", flush=True)
    ingestion.ingest(reader, [source], target, workers=int(workers))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "workers", "kills"), [("feed", 0, 2), ("clips", 0, 1), ("events", 2, 2)], indirect=["source"]
)
def test_what_was_killed_goes_on(source: Source, tmp_path: Path, workers: int, kills: int) -> None:
    """kill -9 at random moments, then the same command to its end."""
    (tmp_path / "convert.py").write_text(CONVERT)
    command = [sys.executable, tmp_path / "convert.py", source[0], source[1], tmp_path / "store", str(workers)]

    def run(kill_after: float | None) -> float:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": "."})
        assert process.stdout.readline() == "ready\n"  # type: ignore[union-attr]
        started = time.perf_counter()
        if kill_after is not None:
            time.sleep(kill_after)
            process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode in (0, -signal.SIGKILL)
        return time.perf_counter() - started

    whole, rng = run(None), random.Random(5)
    for turn in range(kills):
        shutil.rmtree(tmp_path / "store")
        run(rng.uniform(0.1, 0.95) * whole)
        if not turn % 2:  # and what was half mended is killed once more
            run(rng.uniform(0.1, 0.95) * whole)
        run(None)
        same(tmp_path / "store", source[2])


PEAK = """
import re, sys
from pathlib import Path
from nowcast.ingestion import run as ingestion
taken = ingestion.ingest("knmi", [sys.argv[1]], sys.argv[2]).taken
# getrusage would count the process that started this one
print(taken, int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_count(tmp_path: Path) -> None:
    """A batch is 64 MiB of 16-bit frames; in the next to it are a few decoded ones, the program and its libraries."""
    peaks = []
    for count in (200, 700):
        folder = tmp_path / f"{count}"
        folder.mkdir()
        for number in range(count):
            moment = np.datetime64("2011-01-01T00:00:00") + number * np.timedelta64(300, "s")
            copy = folder / f"{number:03}.h5"
            shutil.copy(FRAMES[number % len(FRAMES)], copy)
            with h5py.File(copy, "r+") as file:
                for edge, time_ in (("start", moment), ("end", moment + np.timedelta64(300, "s"))):
                    file["overview"].attrs[f"product_datetime_{edge}"] = np.array([fixtures._knmi_time(time_)])
        done = subprocess.run(
            [sys.executable, "-c", PEAK, str(folder), str(tmp_path / f"store{count}")],
            check=True,
            capture_output=True,
            text=True,
        )
        taken, peak = done.stdout.split()
        assert int(taken) == count
        peaks.append(float(peak))
    print(f"\npeak {peaks[0]:.0f} MiB for 200 frames, {peaks[1]:.0f} MiB for 700")
    assert peaks[1] < 600
    assert peaks[1] - peaks[0] < 100
