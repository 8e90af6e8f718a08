"""Stores: one commit is one frame, a correction is a version, nothing reads as zero rain."""

from __future__ import annotations

import pickle
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from urllib.request import Request, urlopen

import numpy as np
import pytest
import xarray as xr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nowcast.core import cube as cubes
from nowcast.core.errors import BadInput, StoreError
from nowcast.core.grid import Grid
from nowcast.ingestion import run as ingestion
from nowcast.store import ForecastStore, FrameStore, ScoreStore, Store, open_store, repository
from tests import paths

SAMPLE = sorted(paths.SAMPLE.glob("*.h5"))
START = np.datetime64("2010-08-26T00:00")
GRID = Grid.regular("EPSG:28992", (4, 5), upper_left=(0, 400_000), pixel=(1000, 1000))


def frame(
    index: int,
    value: float = 1.2,
    *,
    grid: Grid = GRID,
    sequence: str = "",
    cadence: int | None = 300,
    quantum: float | None = 0.12,
) -> xr.Dataset:
    field = np.full((1, *grid.shape), value, np.float32)
    field[0, 0, 0] = np.nan
    cube = cubes.make(
        {"rainfall_rate": field},
        [START + np.timedelta64(index * 300, "s")],
        grid,
        sequence=sequence,
        cadence=cadence,
        quantum=quantum,
        attrs={"title": "test"},
    )
    return cube.assign_coords(digest=("time", np.asarray([cubes.digest(field)], object)))


def test_frames_come_back_as_they_went_in(tmp_path: Path) -> None:
    for index in range(3):
        FrameStore(tmp_path / "s").append(frame(index, 0.12 * index), message=f"frame {index}")
    cube = cubes.check(open_store(tmp_path / "s"))
    assert cube["rainfall_rate"].dtype == np.float32
    assert cube["rainfall_rate"][:, 1, 1].values == pytest.approx([0, 0.12, 0.24])
    assert np.isnan(cube["rainfall_rate"][:, 0, 0]).all()
    assert (cube["time"].values == START + np.arange(3) * np.timedelta64(300, "s")).all()
    assert Grid.of(cube).digest == GRID.digest
    assert cube.attrs["title"] == "test"
    assert [commit.message for commit in Store(tmp_path / "s").history(limit=3)] == ["frame 2", "frame 1", "frame 0"]


def test_a_late_frame_is_sorted_in_and_joins_two_runs(tmp_path: Path) -> None:
    for index in (0, 1, 3):
        FrameStore(tmp_path / "s").append(frame(index, index), message="m")
    assert len(set(open_store(tmp_path / "s")["sequence"].values)) == 2
    FrameStore(tmp_path / "s").append(frame(2, 2), message="late")
    cube = open_store(tmp_path / "s")
    assert len(set(cube["sequence"].values)) == 1
    assert cube["rainfall_rate"][:, 1, 1].values == pytest.approx([0, 1.0, 2.0, 3.0], abs=0.06)


def test_sequences_stay_together_in_order_of_arrival(tmp_path: Path) -> None:
    for label, index in (("b", 5), ("a", 0), ("b", 4)):
        FrameStore(tmp_path / "s").append(frame(index, sequence=label, cadence=None), message="m")
    assert open_store(tmp_path / "s")["sequence"].values.tolist() == ["b", "b", "a"]


def test_a_correction_is_a_version_and_the_old_one_can_be_read(tmp_path: Path) -> None:
    before = FrameStore(tmp_path / "s").append(frame(0, 1.2), message="first")
    FrameStore(tmp_path / "s").replace(frame(0, 2.4), at=0, message="corrected")
    assert open_store(tmp_path / "s")["rainfall_rate"][0, 1, 1].item() == pytest.approx(2.4)
    assert open_store(tmp_path / "s", version=before)["rainfall_rate"][0, 1, 1].item() == pytest.approx(1.2)


def test_old_versions_are_forgotten_on_demand(tmp_path: Path) -> None:
    before = FrameStore(tmp_path / "s").append(frame(0), message="first")
    FrameStore(tmp_path / "s").replace(frame(0, 2.4), at=0, message="corrected")
    assert Store(tmp_path / "s").expire(older_than=timedelta(0)) > 0
    with pytest.raises(StoreError, match="cannot read version"):
        open_store(tmp_path / "s", version=before)
    assert open_store(tmp_path / "s")["rainfall_rate"][0, 1, 1].item() == pytest.approx(2.4)


def test_a_chunk_that_was_never_written_is_no_data(tmp_path: Path) -> None:
    FrameStore(tmp_path / "s").append(frame(0), message="m")
    session = FrameStore(tmp_path / "s")._writable()
    import zarr

    zarr.open_group(session.store, mode="a")["rainfall_rate"].resize((2, 4, 5))
    session.commit("half a frame")
    raw = zarr.open_group(FrameStore(tmp_path / "s")._session().store, mode="r")
    assert (raw["rainfall_rate"][1] == -32768).all()


@pytest.mark.parametrize(
    ("other", "fault"),
    [
        (frame(1, grid=Grid(GRID.crs, GRID.y[:-1], GRID.x)), "another y"),
        (frame(1, grid=Grid(GRID.crs, GRID.y, GRID.x + 500)), "another x"),
        (frame(1, grid=Grid.regular("EPSG:3035", (4, 5), upper_left=(0, 400_000), pixel=(1000, 1000))), "projection"),
        (frame(1).rename(rainfall_rate="reflectivity"), "has no reflectivity"),
        (frame(1, 5000.0), "beyond what this store can hold, -3932"),
    ],
)
def test_what_does_not_fit_is_refused_and_leaves_nothing(tmp_path: Path, other: xr.Dataset, fault: str) -> None:
    FrameStore(tmp_path / "s").append(frame(0), message="m")
    before = Store(tmp_path / "s").snapshot()
    with pytest.raises(BadInput, match=fault):
        FrameStore(tmp_path / "s").append(other, message="m")
    assert Store(tmp_path / "s").snapshot() == before


def test_a_writer_killed_before_its_first_commit_left_nothing(tmp_path: Path) -> None:
    FrameStore(tmp_path / "s")._writable()
    assert not Store(tmp_path / "s").exists()
    with pytest.raises(StoreError, match="no store here"):
        open_store(tmp_path / "s")
    FrameStore(tmp_path / "s").append(frame(0), message="m")
    assert open_store(tmp_path / "s").sizes["time"] == 1


def test_no_store_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no store here; make one with `nowcast ingest`"):
        open_store(tmp_path / "nothing")
    with pytest.raises(StoreError, match="s3://bucket/prefix"):
        open_store("ftp://host/x")


def test_describe_names_the_gap(tmp_path: Path) -> None:
    for index in (0, 1, 4):
        FrameStore(tmp_path / "s").append(frame(index), message="m")
    facts = Store(tmp_path / "s").describe()
    assert facts["frames"] == 3
    assert facts["gaps"] == ["2010-08-26T00:05:00Z to 2010-08-26T00:20:00Z (2 frames)"]
    assert facts["grid"] == "4 x 5 pixels of 1000 m, north-up, Amersfoort / RD New"


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.permutations(range(5)), quantum=st.sampled_from([0.12, 0.01, None]))
def test_any_order_of_arrival_gives_the_same_cube(
    tmp_path_factory: pytest.TempPathFactory, order: list[int], quantum: float | None
) -> None:
    path = tmp_path_factory.mktemp("any") / "s"
    for index in order:
        FrameStore(path).append(frame(index, 0.12 * index, quantum=quantum), message="m")
    cube = cubes.check(open_store(path))
    assert cube["rainfall_rate"][:, 2, 2].values == pytest.approx(0.12 * np.arange(5), abs=1e-6)
    assert len(set(cube["sequence"].values)) == 1


ELSEWHERE = """
import pickle, sys
store, dataset = pickle.load(sys.stdin.buffer)
store.append(dataset, message="from another process")
"""


def append_elsewhere(store: Store, dataset: xr.Dataset) -> None:
    """Another process writes to the store that it was sent."""
    subprocess.run([sys.executable, "-c", ELSEWHERE], input=pickle.dumps((store, dataset)), check=True)


def test_a_store_shows_what_others_committed_meanwhile(tmp_path: Path) -> None:
    store = FrameStore(tmp_path / "s")
    append_elsewhere(store, frame(0))
    assert store.read().sizes["time"] == 1
    FrameStore(tmp_path / "s").append(frame(1), message="from another object")
    append_elsewhere(store, frame(2))
    assert (store.times() == START + np.arange(3) * np.timedelta64(300, "s")).all()
    assert store.snapshot() == FrameStore(tmp_path / "s").snapshot()
    store.append(frame(3), message="own")
    assert store.read().sizes["time"] == 4


def test_a_store_may_be_made_later_and_to_look_for_it_leaves_nothing(tmp_path: Path) -> None:
    store = FrameStore(tmp_path / "s")
    assert not store.exists()
    with pytest.raises(StoreError, match="no store here"):
        store.read()
    assert list(tmp_path.iterdir()) == []
    FrameStore(tmp_path / "s").append(frame(0), message="m")
    assert store.exists()


@pytest.mark.parametrize("first", ["read", "append"])
def test_a_store_that_was_removed_is_made_anew(tmp_path: Path, first: str) -> None:
    store = FrameStore(tmp_path / "s")
    store.append(frame(0), message="old")
    shutil.rmtree(tmp_path / "s")
    if first == "read":
        assert not store.exists()
    store.append(frame(1, 2.4), message="new")
    assert [commit.message for commit in store.history(limit=1)] == ["new"]
    assert store.read()["rainfall_rate"][:, 1, 1].values == pytest.approx([2.4])


def test_a_pickled_store_is_the_same_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = FrameStore("s")
    store.append(frame(0), message="m")
    sent = pickle.dumps(store)
    monkeypatch.chdir("/")
    came = pickle.loads(sent)
    assert type(came) is FrameStore
    assert came.place == store.place
    assert came.snapshot() == store.snapshot()


def test_threads_share_a_store(tmp_path: Path) -> None:
    store = FrameStore(tmp_path / "s")
    store.append(frame(0), message="m")
    with ThreadPoolExecutor(4) as pool:
        written = [pool.submit(store.append, frame(index), message="m") for index in range(1, 9)]
        seen = [pool.submit(lambda: store.read()["rainfall_rate"].load().sizes["time"]) for _ in range(16)]
    assert all(1 <= future.result() <= 9 for future in seen)
    assert len({future.result() for future in written}) == 8
    assert store.times().size == 9


def test_one_writer_at_a_time_and_its_lock_may_be_nested(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repository, "LOCK_SECONDS", 0)
    store = FrameStore(tmp_path / "s")
    with store.writing(), ThreadPoolExecutor(1) as pool:
        FrameStore(tmp_path / "s").append(frame(0), message="nested")
        with pytest.raises(StoreError, match="another process is writing"):
            pool.submit(store.append, frame(1), message="beside").result()
    assert store.times().size == 1


def test_a_view_holds_to_the_dimension_of_its_kind(tmp_path: Path) -> None:
    runs = xr.Dataset({"model": ("run", ["persistence"])})
    with pytest.raises(BadInput, match="grows along time, and this has none"):
        FrameStore(tmp_path / "s").append(runs, message="m")
    assert not Store(tmp_path / "s").exists()
    ForecastStore(tmp_path / "s").append(runs, message="m")
    Store(tmp_path / "s").append(runs, message="m")
    assert ScoreStore(tmp_path / "s").read().sizes["run"] == 2


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """A place in a bucket on a local S3 server, whose contents outlive it in this process."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    for name, value in {
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "y",
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": endpoint,
    }.items():
        monkeypatch.setenv(name, value)
    with urlopen(Request(f"{endpoint}/radar", method="PUT")):
        yield f"s3://radar/{tmp_path.name}"
    server.stop()


def test_an_object_store_is_a_store(bucket: str) -> None:
    for index in range(2):
        FrameStore(bucket).append(frame(index), message=f"frame {index}")
    assert cubes.check(open_store(bucket)).sizes["time"] == 2
    assert [commit.message for commit in Store(bucket).history(limit=2)] == ["frame 1", "frame 0"]


def test_channels_come_in_the_order_of_the_quantities(tmp_path: Path) -> None:
    """A listing of a store comes in any order; the first channel is the one that is forecast."""
    one = frame(0)
    names = ("outflow", "inflow", "blue", "red", "green")
    fields = {name: one["rainfall_rate"].rename(name).assign_attrs(units="1") for name in names}
    FrameStore(tmp_path / "s").append(one.drop_vars("rainfall_rate").assign(fields), message="m")
    assert list(open_store(tmp_path / "s").data_vars) == ["red", "green", "blue", "inflow", "outflow"]


@pytest.mark.parametrize("workers", [0, 2])
def test_files_go_into_an_object_store(bucket: str, tmp_path: Path, workers: int) -> None:
    """A conversion, and one that goes on: alone, and by processes that each write to the bucket."""
    feed = tmp_path / "feed"
    feed.mkdir()
    for some in (slice(0, 3), slice(3, 9)):
        for path in SAMPLE[some]:
            shutil.copy(path, feed)
        summary = ingestion.ingest("knmi", [feed], bucket, workers=workers)
        ingestion.ingest("knmi", [feed], tmp_path / "local")
    assert (summary.taken, summary.known, summary.refused) == (6, 3, [])
    there, here = (open_store(path).drop_attrs() for path in (bucket, tmp_path / "local"))
    xr.testing.assert_identical(there.load(), here.load())
