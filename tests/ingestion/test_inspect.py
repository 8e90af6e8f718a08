"""What a file is: over the registry of readers, in words and in a picture."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from PIL import Image

from nowcast.core import cube as cubes
from nowcast.core.cube import channels
from nowcast.core.errors import BadInput
from nowcast.core.grid import Grid
from nowcast.core.units import COLOURS
from nowcast.ingestion import inspect as inspection
from nowcast.ingestion.inspect import GAP, SIDE, Inspection, inspect, quick_look
from nowcast.readers import Item
from tests import sources_gridded as gridded
from tests import synthetic
from tests.sources import SOURCES

names = pytest.mark.parametrize("name", SOURCES)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Inspection]:
    return {name: inspect(make(tmp_path_factory.mktemp(name))) for name, make in SOURCES.items()}


def picture(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)))


# --- over the registry --------------------------------------------------------------------------------


@names
def test_the_reader_is_found_and_the_facts_are_complete(name: str, found: dict[str, Inspection]) -> None:
    one = found[name]
    assert one.reader == name
    assert {
        "reader",
        "title",
        "items",
        "frames",
        "sequences",
        "grid",
        "quality",
        "licence",
        *channels(one.cube),
    } <= set(one.facts)
    assert ("corners" in one.facts) == Grid.of(one.cube).on_earth
    assert ("split" in one.facts) == ("split" in one.cube.coords)
    assert all(words and "\n" not in words and "unknown" not in words for words in one.facts.values())


@names
def test_the_cost_of_a_frame_is_never_nothing(name: str, found: dict[str, Inspection]) -> None:
    for channel in channels(found[name].cube):
        cost = re.search(r", stored as .*, (\S+) KiB a frame$", found[name].facts[channel])
        assert cost and float(cost[1]) > 0
        assert ("." in cost[1]) == (float(cost[1]) <= 10)


@names
def test_the_quick_look_is_a_picture(name: str, found: dict[str, Inspection]) -> None:
    look = picture(quick_look(found[name]))
    assert look.size > 10_000
    assert look.std() > 1
    if not Grid.of(found[name].cube).on_earth:
        coloured = set(COLOURS) <= set(channels(found[name].cube))
        assert look.ndim == (3 if coloured else 2), "grey frames stay grey"


def test_facts_in_words(found: dict[str, Inspection]) -> None:
    assert found["knmi"].facts["sequences"] == "live feed, a frame every 300 s"
    assert found["knmi"].facts["corners"] == "upper left 55.952 N 0.039 E, lower right 48.919 N 8.983 E"
    assert found["bair"].facts["red"].startswith("0 to 0.9765, 0.0% without data, stored as uint8 by a table of 256 ")
    assert found["sevir"].facts["corners"].startswith("upper left 41.346 N 97.856 W"), "the rows begin in the south"
    assert found["sevir"].facts["grid"].endswith("south-up, Lambert Azimuthal Equal Area (Spherical)")
    assert found["mch-gif"].facts["grid"] == "640 x 710 pixels of 1000 m, north-up, oblique_mercator"
    assert found["taxibj"].facts["inflow"].startswith("-1 to 0.9583, 0.0% without data, stored as float32, ")


# --- by hand ------------------------------------------------------------------------------------------


class Hand:
    """A reader of one Cube."""

    TITLE, LICENCE = "by hand", "none"

    def __init__(self, cube: xr.Dataset | None) -> None:
        self.cube = cube

    def find(self, source: Path) -> Iterator[Item]:
        return iter([Item(source)] if self.cube is not None else [])

    def read(self, item: Item) -> xr.Dataset:
        assert self.cube is not None
        return self.cube


def by_hand(monkeypatch: pytest.MonkeyPatch, cube: xr.Dataset | None) -> Inspection:
    monkeypatch.setattr(inspection, "get", lambda name: Hand(cube))
    return inspect(Path("hand"), reader="hand")


def test_the_map_shows_the_wettest_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a frame without data, one with little rain, one with much and a dry one."""
    cube = synthetic.cube(range(4))
    cube["rainfall_rate"][0] = np.nan
    cube["rainfall_rate"][1, 20:] = 0
    cube["rainfall_rate"][3] = 0
    one = by_hand(monkeypatch, cube)
    assert one.wettest == 2
    painted = []
    monkeypatch.setattr(inspection.MapPainter, "png", lambda self, field, caption: painted.append((field, caption)))
    quick_look(one)
    ((field, caption),) = painted
    np.testing.assert_array_equal(field, cube["rainfall_rate"][2])
    assert caption.valid == cube["time"].values[2]


def test_many_sequences_are_named_in_the_order_of_the_source(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = [f"clip/{number}" for number in (2, 10, 1, 3, 4)]
    cube = synthetic.cube(range(5), cadence=None).assign_coords(sequence=("time", np.array(labels, object)))
    assert by_hand(monkeypatch, cube).facts["sequences"] == "clip/2, clip/10, clip/1 and 2 more"


def film(values: np.ndarray, *, sequences: list[str], names: tuple[str, ...] = ("intensity",)) -> Inspection:
    """(time, row, column, channel)."""
    stamps = [synthetic.START + number * synthetic.STEP for number in range(len(values))]
    fields = {name: values[..., place] for place, name in enumerate(names)}
    cube = cubes.make(fields, stamps, Grid.picture(values.shape[1:3]), sequence=sequences)
    return Inspection("hand", {}, cube)


def test_a_contact_sheet_has_the_colours_of_its_video() -> None:
    """Seven frames of 2 x 4 pixels, 64 times enlarged, five in a row; of another sequence there is none."""
    values = np.random.default_rng(0).integers(0, 256, (9, 2, 4, 3)) / 255
    values[1, 0, 0] = np.nan
    sheet = picture(quick_look(film(values, sequences=["a"] * 7 + ["b"] * 2, names=COLOURS)))
    assert sheet.shape == (2 * 128 + GAP, 5 * SIDE + 4 * GAP, 3)
    for number in range(7):
        row, column = divmod(number, 5)
        tile = sheet[row * (128 + GAP) :, column * (SIDE + GAP) :][:128, :SIDE]
        want = np.rint(255 * np.nan_to_num(values[number], nan=1)).repeat(64, axis=0).repeat(64, axis=1)
        np.testing.assert_array_equal(tile, want)
    assert (sheet[:, SIDE : SIDE + GAP] == 255).all()
    assert (sheet[128:, 2 * (SIDE + GAP) :] == 255).all(), "paper where there is no frame"


def test_large_frames_are_reduced_and_small_sheets_are_narrow() -> None:
    values = np.full((2, 300, 600, 1), 0.2)
    sheet = picture(quick_look(film(values, sequences=["a", "a"])))
    assert sheet.shape == (128, 2 * SIDE + GAP)
    assert np.unique(sheet).tolist() == [51, 255]


# --- refusals -----------------------------------------------------------------------------------------


def sentence(source: Path, **options: str) -> str:
    with pytest.raises(BadInput) as refusal:
        inspect(source, **options)
    words = str(refusal.value)
    assert words.startswith(str(source)) and words.endswith(".") and "\n" not in words
    return words


def test_what_is_no_source_is_refused_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "empty.h5").touch()
    (tmp_path / "notes.txt").write_text("rain")
    (tmp_path / "folder").mkdir()
    assert "does not exist; check the path" in sentence(tmp_path / "nowhere.h5")
    for name in ("empty.h5", "notes.txt", "folder"):
        assert "is of no known source; name a reader (hko7, sevir" in sentence(tmp_path / name)
    assert "holds no file named" in sentence(tmp_path / "folder", reader="knmi")
    assert "is not an HDF5 file" in sentence(tmp_path / "empty.h5", reader="odim")
    with pytest.raises(ValueError, match="Unknown reader 'radar'; known: hko7"):
        inspect(tmp_path / "empty.h5", reader="radar")


def test_what_a_convention_misses_in_a_sound_file_is_said_with_the_remedy(tmp_path: Path) -> None:
    two = gridded.tiff(tmp_path / "202406011200.tif", np.ones((2, 20, 24), np.float32))
    words = sentence(two)
    assert "is of no known source: for the reader geotiff it has 2 bands of 20x24 pixels" in words
    assert "gdal_translate -b 1" in words
    units = gridded.mosaic() | {"rain": (*gridded.mosaic()["rain"][:2], {"standard_name": "air_temperature"})}
    assert "for the reader netcdf it holds no rain or reflectivity" in sentence(
        gridded.netcdf(tmp_path / "a.nc", units)
    )


def test_the_product_is_named(tmp_path: Path) -> None:
    path = gridded.tiff(tmp_path / "OPERA@20240601T1200@0@ACRR.tif", np.ones((2, 20, 24), np.float32))
    facts = inspect(path).facts
    assert facts["product"] == "acrr, rainfall_rate, sum of 60 min"
    assert facts["sequences"] == "live feed, whose step two frames will tell"


def test_impossible_values_are_told(tmp_path: Path) -> None:
    values = np.ones((20, 24), np.float32)
    values[3, :5] = -9999
    path = gridded.tiff(tmp_path / "rr_202406011200.tif", values)
    assert inspect(path).facts["quality"].endswith("5 values cannot be, such as negative rain, and are no data")


def test_a_source_without_items_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadInput, match="hand: holds nothing that this reader knows"):
        by_hand(monkeypatch, None)
