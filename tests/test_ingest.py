"""Every readable frame once; everything else refused by name, and the rest goes on."""

from __future__ import annotations

import os
import shutil
from datetime import UTC, datetime
from pathlib import Path

import h5py
import numpy as np
import pytest

from nowcast import cube, ingest, store
from nowcast.readers import READERS, get
from tests.sources import SOURCES

SAMPLE = Path(ingest.__file__).parent / "sample"
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


def take(feed: Path, **options: object) -> ingest.Summary:
    return ingest.ingest("knmi", [feed], feed.parent / "frames", **options)  # type: ignore[arg-type]


def counts(summary: ingest.Summary) -> tuple[int, int, int, int]:
    return summary.taken, summary.known, summary.revised, len(summary.refused)


def test_twice_is_once(feed: Path) -> None:
    for index in range(3):
        land(feed, index)
    assert counts(take(feed)) == (3, 0, 0, 0)
    before = store.snapshot(feed.parent / "frames")
    assert counts(take(feed)) == (0, 3, 0, 0)
    assert store.snapshot(feed.parent / "frames") == before


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


def test_a_corrected_frame_is_a_new_version(feed: Path) -> None:
    path = land(feed, 0)
    take(feed)
    before = store.snapshot(feed.parent / "frames")
    edit(path, lambda pixels: np.where(pixels == 65535, pixels, 7))
    assert counts(take(feed)) == (0, 0, 1, 0)
    after, old = (store.open_store(feed.parent / "frames", version=version) for version in (None, before))
    assert np.nanmax(after["rainfall_rate"][0]) == pytest.approx(0.84)
    assert np.nanmax(old["rainfall_rate"][0]) > 1
    assert next(store.history(feed.parent / "frames")).message.startswith("Revise ")
    assert counts(take(feed)) == (0, 1, 0, 0)


def test_two_versions_in_one_folder_do_not_replace_each_other_for_ever(feed: Path) -> None:
    land(feed, 0, "a_" + FRAMES[0].name)
    edit(land(feed, 0, "b_" + FRAMES[0].name), lambda pixels: np.where(pixels == 65535, pixels, 7))
    take(feed)
    before = store.snapshot(feed.parent / "frames")
    take(feed)
    assert store.snapshot(feed.parent / "frames") == before
    assert np.nanmax(store.open_store(feed.parent / "frames")["rainfall_rate"][0]) == pytest.approx(0.84)


def test_a_late_frame_takes_its_place(feed: Path) -> None:
    for index in (0, 2):
        land(feed, index)
        take(feed)
    land(feed, 1)
    take(feed)
    times = store.open_store(feed.parent / "frames")["time"].values
    assert (np.diff(times) == np.timedelta64(300, "s")).all()


def test_bad_files_are_refused_and_the_rest_is_taken(feed: Path) -> None:
    land(feed, 0)
    truncated = land(feed, 1)
    truncated.write_bytes(truncated.read_bytes()[:2000])
    edit(land(feed, 2), lambda pixels: np.full_like(pixels, 65535))
    (feed / FRAMES[3].name).write_text("not a radar file")
    land(feed, 4)
    dry = edit(land(feed, 5), lambda pixels: np.where(pixels == 65535, pixels, 0))
    summary = take(feed)
    assert counts(summary) == (3, 0, 0, 3)
    for index, fault in ((1, FRAMES[1].name), (2, "no measured pixel"), (3, FRAMES[3].name)):
        assert sum(fault in sentence and "\n" not in sentence for sentence in summary.refused) == 1, index
    frames = store.open_store(feed.parent / "frames")
    assert frames.sizes["time"] == 3
    assert np.nanmax(frames["rainfall_rate"].sel(time="2010-08-26T04:30")) == 0, dry


def test_a_frame_on_another_grid_is_refused(feed: Path) -> None:
    land(feed, 0)
    path = land(feed, 1)
    with h5py.File(path, "r+") as file:
        pixels = file["image1/image_data"][:-5]
        del file["image1/image_data"]
        file["image1/image_data"] = pixels
        file["geographic"].attrs["geo_number_rows"] = np.int32(760)
    land(feed, 2)
    summary = take(feed)
    assert (summary.taken, len(summary.refused)) == (2, 1), summary.refused


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
    summary = ingest.ingest("knmi", [tmp_path / source], tmp_path / "frames")
    assert summary.refused
    assert source in summary.refused[0]
    assert not store.exists(tmp_path / "frames")


def test_a_glob_is_a_source(feed: Path) -> None:
    for index in range(3):
        land(feed, index)
    assert ingest.ingest("knmi", [str(feed / "*0405.h5")], feed.parent / "frames").taken == 1


def test_an_unknown_reader_lists_the_known_ones(feed: Path) -> None:
    with pytest.raises(ValueError, match="Unknown reader 'foo'; known: hko7"):
        ingest.ingest("foo", [feed], feed.parent / "frames")


@pytest.mark.parametrize("reader", READERS)
def test_every_source_goes_into_a_store_and_comes_out_whole(tmp_path: Path, reader: str) -> None:
    source = SOURCES[reader](tmp_path / "source")
    first = ingest.ingest(reader, [source], tmp_path / "frames")
    assert first.taken > 0
    again = ingest.ingest(reader, [source], tmp_path / "frames")
    assert (again.taken, again.revised, again.refused) == (0, 0, first.refused)
    stored = cube.check(store.open_store(tmp_path / "frames"))
    module, name = get(reader), cube.channels(stored)[0]
    read = module.read(next(module.find(source)))
    label = str(read["sequence"].values[0])
    same = stored.sel(time=read["time"].values[0])
    if label:
        same = stored.isel(time=np.flatnonzero(stored["sequence"].values == label)[0])
    quantum = read[name].encoding.get("quantum", 1e-6)
    np.testing.assert_allclose(same[name], read[name][0], atol=0.5001 * quantum)
