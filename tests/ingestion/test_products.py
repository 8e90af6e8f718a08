"""A store holds one product: another one is refused by name, left out by choice, and never replaces a frame."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import zarr

from nowcast.core import cube
from nowcast.ingestion import run as ingestion
from nowcast.readers import Item, knmi
from nowcast.store import FrameStore, open_store
from tests.synthetic import GRID, START, STEP

FRAMES = 5
ONE = {"product": "RY"}
OTHERS = [
    {"product": "SF"},
    {"accumulation": 3600},
    {"level": "2 km"},
    {"quantity": "reflectivity"},
    {"product": "RW", "accumulation": 3600},
]


class Feed(NamedTuple):
    folder: Path
    put: Callable[[str, dict], None]

    @property
    def store(self) -> Path:
        return self.folder.parent / "frames"


@pytest.fixture
def feed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Feed:
    """Files whose names say what the reader makes of them."""
    made: dict[str, dict] = {}

    def read(item: Item) -> object:
        about = dict(made[item.path.name.partition("_")[0]])
        index = int(item.path.stem.rpartition("_")[2])
        values = np.full((1, *GRID.shape), index + len(about), np.float32)
        quantity = about.pop("quantity", "rainfall_rate")
        return cube.make({quantity: values}, [START + index * STEP], GRID, cadence=0, **about)

    monkeypatch.setattr(knmi, "read", read)
    folder = tmp_path / "feed"
    folder.mkdir()

    def put(name: str, about: dict) -> None:
        made[name] = about
        for index in range(FRAMES):
            (folder / f"{name}_{index}.h5").write_text(name)

    put("a", ONE)
    return Feed(folder, put)


def _forget_product(path: Path) -> None:
    """Make a store as it was before stores knew their product."""
    session = FrameStore(path)._writable()
    group = zarr.open_group(session.store, mode="a")
    for name in ("product", "accumulation_seconds", "level"):
        del group.attrs[name]
    session.commit("old")


def take(feed: Feed, **options: object) -> ingestion.Summary:
    return ingestion.ingest("knmi", [feed.folder], feed.store, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("other", OTHERS, ids=str)
@pytest.mark.parametrize("together", [True, False])
def test_another_product_replaces_nothing(feed: Feed, other: dict, together: bool) -> None:
    first = None if together else take(feed)
    feed.put("b", other)
    summary = take(feed)
    assert (summary.taken, summary.revised) == ((FRAMES, 0) if together else (0, 0))
    assert first is None or first.taken == FRAMES
    assert len(summary.refused) == FRAMES
    assert all("and the store holds RY, rainfall_rate" in sentence for sentence in summary.refused)
    assert "feed.product or --product" in summary.refused[0]
    assert open_store(feed.store).sizes["time"] == FRAMES
    assert bool(summary.failure) is not together


@pytest.mark.parametrize("other", OTHERS, ids=str)
def test_a_choice_leaves_the_others_out(feed: Feed, other: dict) -> None:
    feed.put("b", other)
    summary = take(feed, product="ry")
    assert (summary.taken, summary.left_out, summary.refused, summary.failure) == (FRAMES, FRAMES, [], "")
    again = take(feed, product="ry")
    assert (again.taken, again.revised, again.refused, again.failure) == (0, 0, [], "")


def test_the_choice_decides_which_comes_first(feed: Feed) -> None:
    feed.put("b", {"product": "RW", "accumulation": 3600})
    assert take(feed, product="sum of 60 min").taken == FRAMES
    assert str(FrameStore(feed.store).identity()) == "RW, rainfall_rate, sum of 60 min"


def test_a_store_without_a_product_adopts_the_first(feed: Feed) -> None:
    take(feed)
    _forget_product(feed.store)
    store = FrameStore(feed.store)
    assert store.identity() is None
    (feed.folder / "a_9.h5").write_text("a")
    assert take(feed).taken == 1
    assert str(store.identity()) == "RY, rainfall_rate"


def test_items_carry_the_choice(feed: Feed, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    read = knmi.read
    monkeypatch.setattr(knmi, "read", lambda item: (seen.append(item.product), read(item))[1])
    take(feed, product="RY")
    assert set(seen) == {"RY"}
