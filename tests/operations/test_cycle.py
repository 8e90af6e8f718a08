"""One frame through everything, again and again, whatever happens in between."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import h5py
import icechunk
import numpy as np
import pytest

from nowcast.config import Operations
from nowcast.core.errors import BusyError, DiskError
from nowcast.operations import cycle, issuing
from nowcast.readers import knmi
from nowcast.store import Store
from tests.paths import SAMPLE

FRAMES = sorted(SAMPLE.glob("*.h5"))


@pytest.fixture
def chain(tmp_path: Path) -> Operations:
    (tmp_path / "feed").mkdir()
    return Operations.model_validate(
        {
            "title": "test",
            "feed": {"reader": "knmi", "source": tmp_path / "feed"},
            "store": str(tmp_path / "frames"),
            "forecasts": str(tmp_path / "forecasts"),
            "scores": str(tmp_path / "scores"),
            "site": tmp_path / "site",
            "products": [{"name": "persistence", "model": "persistence"}],
            "leads": 2,
            "map_leads": (),
            "replay": True,
            "netcdf": tmp_path / "netcdf",
        }
    )


def land(chain: Operations, *indices: int) -> None:
    for index in indices:
        shutil.copy(FRAMES[index], chain.feed.source)


def manifest(chain: Operations) -> dict:
    return json.loads((chain.site / "latest.json").read_text())


def test_an_empty_feed_is_an_idle_cycle(chain: Operations) -> None:
    report = cycle.cycle(chain)
    assert report.idle
    assert report.newest is None
    assert not (chain.site / "latest.json").exists()


def test_a_new_frame_goes_through_everything(chain: Operations) -> None:
    land(chain, 0, 1)
    first = cycle.cycle(chain)
    assert (first.taken, first.scored) == (2, 0)
    assert first.newest == datetime(2010, 8, 26, 4, 10, tzinfo=UTC)
    assert first.issued == ["persistence 2010-08-26T04:10Z ok"]
    land(chain, 2)
    second = cycle.cycle(chain)
    assert (second.taken, second.scored) == (1, 1)
    assert [run["reference_time"][11:16] for run in manifest(chain)["runs"]] == ["04:15", "04:10"]
    assert len(list(chain.netcdf.rglob("*.nc"))) == 2  # type: ignore[union-attr]


def test_a_cycle_without_news_changes_nothing(chain: Operations) -> None:
    land(chain, 0)
    cycle.cycle(chain)
    before = [Store(path).snapshot() for path in (chain.store, chain.forecasts, chain.scores)]
    assert cycle.cycle(chain).idle
    assert [Store(path).snapshot() for path in (chain.store, chain.forecasts, chain.scores)] == before


def test_a_bad_file_does_not_stop_the_chain(chain: Operations) -> None:
    (chain.feed.source / FRAMES[1].name).write_bytes(b"torn")
    land(chain, 0)
    report = cycle.cycle(chain)
    assert (report.taken, len(report.refused), len(report.issued)) == (1, 1, 1)


def test_forecasts_are_issued_only_when_due(chain: Operations) -> None:
    sparse = chain.model_copy(update={"issue_every_minutes": 30})
    land(chain, 4)
    assert not cycle.cycle(sparse).issued
    land(chain, 5)
    assert cycle.cycle(sparse).issued == ["persistence 2010-08-26T04:30Z ok"]


def test_the_newest_due_frame_is_forecast_if_several_land_at_once(chain: Operations) -> None:
    land(chain, 4, 5, 6)
    sparse = chain.model_copy(update={"issue_every_minutes": 30})
    assert cycle.cycle(sparse).issued == ["persistence 2010-08-26T04:30Z ok"]


def test_old_versions_are_forgotten_once_a_day(chain: Operations, monkeypatch: pytest.MonkeyPatch) -> None:
    forgotten: list[str] = []
    monkeypatch.setattr(Store, "expire", lambda store, older_than: forgotten.append(store.path))
    land(chain, 0)
    cycle.cycle(chain)
    cycle.cycle(chain)
    assert forgotten == [chain.store, chain.forecasts, chain.scores][: len(forgotten)]
    assert len(forgotten) >= 2


def test_backfill_makes_what_an_outage_left_out(chain: Operations) -> None:
    land(chain, *range(5))
    span = {"start": datetime(2010, 8, 26, 4, 0, tzinfo=UTC), "end": datetime(2010, 8, 26, 4, 20, tzinfo=UTC)}
    cycle.cycle(chain)
    assert cycle.backfill(chain, dry_run=True, **span).issued == [
        "2010-08-26T04:05Z",
        "2010-08-26T04:10Z",
        "2010-08-26T04:15Z",
    ]
    report = cycle.backfill(chain, **span)
    assert (len(report.issued), report.scored) == (3, 6)
    assert cycle.backfill(chain, **span).issued == []


def test_a_cycle_opens_each_store_once(chain: Operations, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    for name in ("open", "open_or_create", "create"):
        real = getattr(icechunk.Repository, name)

        def counted(storage: icechunk.Storage, *, real: Callable = real, **options: object) -> icechunk.Repository:
            opened.append(str(storage))
            return real(storage, **options)

        monkeypatch.setattr(icechunk.Repository, name, counted)
    for index in range(3):
        opened.clear()
        land(chain, index)
        cycle.cycle(chain)
        assert len(opened) == len(set(opened)) == 3


def test_two_cycles_do_not_overlap(chain: Operations) -> None:
    with (
        cycle._one_at_a_time(chain),
        pytest.raises(BusyError, match="another cycle is running"),
        cycle._one_at_a_time(chain),
    ):
        pass


# --- nothing done, nothing to do, nothing possible -------------------------------------------------


def other_grid(path: Path) -> None:
    """Make a KNMI file one of another grid, as after a change upstream."""
    with h5py.File(path, "r+") as file:
        pixels = file["image1/image_data"][:-5]
        del file["image1/image_data"]
        file["image1/image_data"] = pixels
        file["geographic"].attrs["geo_number_rows"] = np.int32(760)
        del file["geographic"].attrs["geo_product_corners"]


def test_a_chain_that_refuses_everything_fails_and_goes_on(chain: Operations) -> None:
    land(chain, 0, 1)
    cycle.cycle(chain)
    shutil.rmtree(chain.forecasts)
    land(chain, 2)
    other_grid(chain.feed.source / FRAMES[2].name)
    report = cycle.cycle(chain)
    (failure,) = report.failures
    assert "feed: One item landed and none was taken: " in failure
    assert "is on another y" in failure
    assert not report.idle
    assert report.issued == ["persistence 2010-08-26T04:10Z ok"]
    assert report.published
    after = cycle.cycle(chain)
    assert (after.failures, after.idle, after.refused, after.remembered) == ([], True, [], 1)
    land(chain, 3)
    assert not cycle.cycle(chain).failures


def test_a_feed_that_is_gone_is_a_failure(chain: Operations) -> None:
    land(chain, 0)
    cycle.cycle(chain)
    shutil.rmtree(chain.feed.source)
    for _ in range(2):
        report = cycle.cycle(chain)
        assert "does not exist" in report.failures[0]
        assert not report.idle
    chain.feed.source.mkdir()
    assert cycle.cycle(chain).idle


def test_the_chain_takes_the_product_and_the_step_that_it_names(chain: Operations) -> None:
    land(chain, 0, 1)
    feed = chain.feed.model_copy(update={"product": "no such one", "cadence_seconds": 600})
    report = cycle.cycle(chain.model_copy(update={"feed": feed}))
    assert (report.taken, report.left_out, report.failures) == (0, 2, [])
    report = cycle.cycle(chain.model_copy(update={"feed": feed.model_copy(update={"product": "rainfall_rate"})}))
    assert (report.taken, report.left_out) == (2, 0)
    assert Store(chain.store).read().attrs["cadence_seconds"] == 600
    assert not cycle.cycle(chain).failures
    assert Store(chain.store).read().attrs["cadence_seconds"] == 300


BROKEN = {
    "NetCDF": (issuing, "export"),
    "scores": (cycle, "verify"),
    "page": (cycle, "publish"),
    "maps": (cycle, "publish_maps"),
    "old versions": (cycle.shadow, "first_today"),
}
"""Step, as the report names it -> what fails in it."""


@pytest.mark.parametrize("step", BROKEN)
def test_a_step_that_fails_stops_no_other_and_is_named(
    chain: Operations, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise DiskError("x.nc: cannot be written: No space left on device.")

    chain = chain.model_copy(update={"map_leads": (1,)})
    land(chain, 0, 1)
    made: list[str] = []
    for name, (module, function) in BROKEN.items():
        monkeypatch.setattr(module, function, fail if name == step else _noted(name, getattr(module, function), made))
    report = cycle.cycle(chain)
    assert report.failures == [f"{step}: x.nc: cannot be written: No space left on device."]
    assert not report.idle
    assert set(made) == set(BROKEN) - {step}
    assert len(report.issued) == 1
    monkeypatch.undo()
    land(chain, 2)
    assert not cycle.cycle(chain).failures


def _noted(name: str, function: Callable[..., object], made: list[str]) -> Callable[..., object]:
    def call(*args: object, **more: object) -> object:
        made.append(name)
        return function(*args, **more)

    return call


def test_a_netcdf_folder_that_is_a_file_leaves_the_page_alone(chain: Operations) -> None:
    chain.netcdf.write_text("")
    land(chain, 0, 1)
    report = cycle.cycle(chain)
    assert report.published == chain.site / "latest.json"
    assert len(report.failures) == 1
    assert "NetCDF" in report.failures[0]
    assert "cannot be written" in report.failures[0]


def test_the_first_frame_of_a_feed_without_a_stated_step_waits_for_the_second(
    chain: Operations, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = knmi.read
    monkeypatch.setattr(knmi, "read", lambda item: read(item).assign_attrs(cadence_seconds=0))
    land(chain, 0)
    first = cycle.cycle(chain)
    assert (first.taken, first.issued) == (1, [])
    assert "the step of the feed is unknown" in first.contradictions[0]
    land(chain, 1)
    assert cycle.cycle(chain).issued == ["persistence 2010-08-26T04:10Z ok"]
