"""Every reader, over the registry: good sources become Cubes, bad ones one sentence."""

import struct
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from nowcast import readers
from nowcast.core.cube import channels, check, identity
from nowcast.core.errors import BadInput
from nowcast.readers import READERS, Item, detect, get
from nowcast.readers.decoding import decoding, grey_png
from nowcast.readers.hdf5 import attribute, member, numbers, open_hdf5
from nowcast.readers.items import ITEM_BYTES, files, natural
from nowcast.readers.rasters import metric_crs
from nowcast.store.packing import Packing
from tests.fixtures import knmi, png
from tests.sources import SOURCES

names = pytest.mark.parametrize("name", READERS)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: SOURCES[name](tmp_path_factory.mktemp(name)) for name in READERS}


def test_every_reader_has_a_fixture():
    assert set(SOURCES) == set(READERS)


@names
def test_says_what_it_is(name: str):
    reader = get(name)
    assert reader.TITLE and reader.LICENCE and "\n" not in reader.TITLE + reader.LICENCE
    assert reader.CADENCE is None or reader.CADENCE > 0


@names
def test_reads_its_source(name: str, sources: dict[str, Path]):
    reader = get(name)
    items = list(reader.find(sources[name]))
    cubes = [reader.read(item) for item in items]
    assert cubes and all(cube is check(cube) for cube in cubes)
    if not any(cube["sequence"].values[0] for cube in cubes):  # of a live feed
        first = [cube["time"].values[0] for cube in cubes]
        assert first == sorted(first)
    for cube in cubes:
        assert {"title", "source", "licence"} <= set(cube.attrs)
        for channel in channels(cube):
            assert cube[channel].dtype == np.float32
            assert cube[channel].notnull().any()
        assert sum(cube[channel].nbytes for channel in channels(cube)) <= 2 * ITEM_BYTES


COMPOSITES = (
    "odim",
    "knmi",
    "fmi-pgm",
    "fmi-geotiff",
    "radolan",
    "mch-gif",
    "bom",
    "mrms",
    "nimrod",
    "jma",
    "kma",
    "rydl",
    "radolan-ascii",
    "netcdf",
    "zarr",
    "geotiff",
)
"""Readers of services that publish several products on one grid."""


@names
def test_every_frame_says_which_product_it_is_of(name: str, sources: dict[str, Path]):
    reader = get(name)
    found = {identity(reader.read(item)) for item in reader.find(sources[name])}
    assert all("accumulation_seconds" in reader.read(item).attrs for item in reader.find(sources[name]))
    if name in COMPOSITES:
        assert len(found) == 1 and next(iter(found)).product
    one = next(iter(found))
    assert one.fits(str(one)) and one.fits(one.product)


@names
def test_a_choice_that_no_file_offers_is_left_to_whoever_made_it(name: str, sources: dict[str, Path]):
    item = next(get(name).find(sources[name]))
    assert replace(item, product="nothing of the kind").signature == item.signature
    chosen = get(name).read(replace(item, product="nothing of the kind"))
    assert chosen.identical(get(name).read(item))


@names
def test_is_found_by_its_files(name: str, sources: dict[str, Path]):
    assert detect(sources[name]) == name
    item = next(get(name).find(sources[name]))
    assert detect(_file(item)) == name


@names
def test_finds_without_decoding(name: str, sources: dict[str, Path], monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("decoded an image")

    for decoder in ("PIL.ImageFile.ImageFile.load", "cv2.imread", "cv2.imdecode", "h5py.Dataset.__getitem__"):
        monkeypatch.setattr(decoder, refuse)
    assert list(get(name).find(sources[name]))


@names
def test_reading_twice_gives_the_same(name: str, sources: dict[str, Path]):
    reader = get(name)
    item = next(reader.find(sources[name]))
    assert reader.read(item).identical(reader.read(item))


@names
def test_packing_loses_nothing(name: str, sources: dict[str, Path]):
    reader = get(name)
    cube = reader.read(next(reader.find(sources[name])))
    for channel in channels(cube):
        packing, values = Packing.wanted(cube[channel]), cube[channel].values
        if packing:
            back = packing.unpack(packing.pack(values))
            # half a step of the source's own at most; rounding of float32 apart
            np.testing.assert_allclose(back, values, rtol=1e-5, atol=1e-4)


@names
def test_an_empty_folder_is_refused(name: str, tmp_path: Path):
    with pytest.raises(BadInput, match=str(tmp_path)):
        list(get(name).find(tmp_path))


@names
def test_a_missing_source_is_refused(name: str, tmp_path: Path):
    with pytest.raises(BadInput, match="does not exist"):
        list(get(name).find(tmp_path / "nowhere"))


@names
@pytest.mark.parametrize("content", [b"", b"radar", b"\x89HDF\r\n\x1a\n", b"\x89PNG\r\n\x1a\n", b"P5\n", b"\x1f\x8b"])
def test_another_format_is_refused_in_one_sentence(name: str, content: bytes, sources: dict[str, Path], tmp_path: Path):
    reader = get(name)
    item = next(reader.find(sources[name]))
    with _replaced(_file(item), content), pytest.raises(BadInput) as refusal:
        reader.read(item)
    sentence = str(refusal.value)
    assert _file(item).name in sentence and sentence.endswith(".") and "\n" not in sentence
    assert refusal.value.remedy


@names
def test_a_vanished_file_is_refused(name: str, sources: dict[str, Path]):
    reader = get(name)
    item = next(reader.find(sources[name]))
    path = _file(item)
    content = path.read_bytes()
    path.unlink()
    try:
        with pytest.raises(BadInput, match="does not exist"):
            reader.read(item)
    finally:
        path.write_bytes(content)


@names
@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_bytes_give_a_cube_or_a_refusal(name: str, sources: dict[str, Path], data: st.DataObject):
    reader = get(name)
    item = next(reader.find(sources[name]))
    good = _file(item).read_bytes()
    if data.draw(st.booleans(), label="truncate"):
        bad = good[: data.draw(st.integers(0, len(good) - 1), label="length")]
    else:
        changed = bytearray(good)
        for _ in range(data.draw(st.integers(1, 20), label="changes")):
            changed[data.draw(st.integers(0, len(good) - 1), label="at")] = data.draw(st.integers(0, 255), label="byte")
        bad = bytes(changed)
    with _replaced(_file(item), bad):
        try:
            check(reader.read(item))
        except BadInput as refusal:
            assert "\n" not in str(refusal)


class _replaced:
    """Other bytes in a file for the length of a block."""

    def __init__(self, path: Path, content: bytes) -> None:
        self.path, self.content = path, content

    def __enter__(self) -> None:
        self.good = self.path.read_bytes()
        self.path.write_bytes(self.content)

    def __exit__(self, *_: object) -> None:
        self.path.write_bytes(self.good)


def _file(item: Item) -> Path:
    """The file of an item; of a folder of lists, the first picture it names."""
    return item.path if item.path.is_file() else sorted((item.path.parent.parent / "data").iterdir())[0]


# --- the shared pieces ----------------------------------------------------------------------------


def test_an_unknown_reader_lists_the_known():
    with pytest.raises(ValueError, match=r"Unknown reader 'nexrad'; known: hko7, .*geotiff"):
        get("nexrad")


def test_natural_order():
    assert sorted(["s10.png", "s2.png", "s1.png"], key=natural) == ["s1.png", "s2.png", "s10.png"]
    assert sorted(["x²", "x2"], key=natural)  # a digit that is no number


def test_files_sorts_by_name_and_skips_transfers(tmp_path: Path):
    for name in ("b/f1.h5", "a/f2.h5", "a/.f3.h5", "a/f4.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [path.name for path in files(tmp_path, "*.h5")] == ["f1.h5", "f2.h5"]
    assert files(tmp_path / "a" / "f4.txt", "*.h5") == [tmp_path / "a" / "f4.txt"]


def test_signature_changes_with_the_file(tmp_path: Path):
    path = tmp_path / "x"
    path.write_text("a")
    before = Item(path, "part").signature
    path.write_text("ab")
    assert Item(path, "part").signature != before
    assert str(Item(path, "part")) == "x[part]"


def test_hdf5_pieces_name_what_is_missing(tmp_path: Path):
    path = knmi(tmp_path / "good.h5")
    with pytest.raises(BadInput, match="has no image2"), open_hdf5(path, "x") as file:
        member(file, "image2")
    with pytest.raises(BadInput, match="has no attribute /overview/colour"), open_hdf5(path, "x") as file:
        attribute(file["overview"], "colour")
    with open_hdf5(path, "x") as file:
        assert attribute(file["image1"], "image_geo_parameter") == "ACCUMULATED_PRECIPITATION_[MM]"
        assert attribute(file["overview"], "number_image_groups") == 1
        assert len(attribute(file, "geographic/geo_product_corners")) == 8
    for name, absent in (("overview/colour", "attribute /overview/colour"), ("image2/colour", "image2")):
        with pytest.raises(BadInput, match=f"has no {absent};"), open_hdf5(path, "x") as file:
            attribute(file, name)


@pytest.mark.parametrize("dtype", ["u1", "<u2", ">i2", "<f4", ">f8"])
@pytest.mark.parametrize(
    "layout",
    [
        {},
        {"chunks": (1, 8, 9)},
        {"chunks": (1, 8, 9), "compression": "lzf"},
        {"chunks": (1, 4, 9), "compression": "gzip"},
        {"chunks": (3, 8, 9), "compression": "gzip"},
        {"chunks": (1, 8, 9), "compression": "gzip"},
        {"chunks": (1, 8, 9), "compression": "gzip", "shuffle": True},
        {"chunks": (1, 8, 9), "compression": "gzip", "fletcher32": True},
    ],
)
def test_numbers_are_those_of_the_file(tmp_path: Path, layout: dict, dtype: str):
    """Whatever filters made its chunks; row 2 was never written."""
    with h5py.File(tmp_path / "a.h5", "w") as file:
        data = file.create_dataset("a", (3, 8, 9), dtype, fillvalue=7, **layout)
        data[:2] = np.arange(144).reshape(2, 8, 9)
        np.testing.assert_array_equal(numbers(data), data[()])
        for row in range(3):
            np.testing.assert_array_equal(numbers(data, row), data[row], strict=True)


def test_a_chunk_of_another_length_is_damage(tmp_path: Path):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        data = file.create_dataset("a", (8, 9), "u1", chunks=(8, 9), compression="gzip")
        data.id.write_direct_chunk((0, 0), zlib.compress(bytes(71)))
    with pytest.raises(BadInput, match="is damaged or not a picture"), open_hdf5(path, "a picture") as file:
        numbers(file["a"])


@pytest.mark.parametrize("mode", ["L", "P", "RGB"])
def test_grey_png_reads_all_grey_modes_alike(mode: str, tmp_path: Path):
    levels = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
    np.testing.assert_array_equal(grey_png(png(tmp_path / "a.png", levels, mode), (3, 4)), levels)


@pytest.mark.parametrize(("mode", "fault"), [("RGBA", "mode RGBA"), ("1", "mode 1")])
def test_grey_png_refuses_other_modes(mode: str, fault: str, tmp_path: Path):
    with pytest.raises(BadInput, match=fault):
        grey_png(png(tmp_path / "a.png", np.zeros((3, 4)), mode), (3, 4))


def test_grey_png_refuses_colour_and_size(tmp_path: Path):
    Image.new("RGB", (4, 3), (255, 0, 0)).save(tmp_path / "red.png")
    with pytest.raises(BadInput, match="coloured"):
        grey_png(tmp_path / "red.png", (3, 4))
    with pytest.raises(BadInput, match="has 3x4 pixels, not 4x3"):
        grey_png(png(tmp_path / "a.png", np.zeros((3, 4))), (4, 3))


def test_metric_crs_turns_kilometres_into_metres():
    km = metric_crs("+proj=stere +lat_0=90 +lon_0=0 +lat_ts=60 +a=6378.14 +b=6356.75 +x_0=1 y_0=2")
    assert km.ellipsoid.semi_major_metre == 6_378_140
    assert (km.to_cf()["false_easting"], km.to_cf()["false_northing"]) == (1000, 2000)
    assert metric_crs("+proj=laea +lat_0=38 +lon_0=-98 +a=6370997.0 +units=m").ellipsoid.semi_major_metre == 6_370_997
    assert metric_crs("EPSG:2056").to_epsg() == 2056


class Buggy:
    """A reader with a mistake of its own."""

    PATTERNS = ("*.bug",)

    def __init__(self, error: Exception) -> None:
        self.error = error

    def recognises(self, path: Path) -> bool:
        raise self.error

    def find(self, source: Path) -> Iterator[Item]:
        yield Item(source)

    def read(self, path: Path) -> None:
        with decoding(path, "a test file"):
            raise self.error


BUGS = (AttributeError("a"), TypeError("t"), NameError("n"), KeyError("k"), IndexError("i"), AssertionError("x"))


@pytest.mark.parametrize("bug", BUGS, ids=repr)
def test_a_bug_in_a_reader_is_not_a_damaged_file(tmp_path, monkeypatch, bug):
    (tmp_path / "a.bug").write_bytes(b"good")
    with pytest.raises(type(bug)) as raised:
        Buggy(bug).read(tmp_path / "a.bug")
    assert raised.value is bug and raised.traceback[-1].name == "read"
    monkeypatch.setattr(readers, "get", lambda _: Buggy(bug))
    with pytest.raises(type(bug)):
        readers.detect(tmp_path / "a.bug")


@pytest.mark.parametrize("error", [OSError("o"), ValueError("v"), zlib.error("z"), struct.error("s"), EOFError("e")])
def test_a_damaged_file_is_nobodys_and_the_reason_is_logged(tmp_path, monkeypatch, caplog, error):
    path = tmp_path / "a.bug"
    path.write_bytes(b"bad")
    with pytest.raises(BadInput, match=r"a\.bug: is damaged or not a test file"):
        Buggy(error).read(path)
    monkeypatch.setattr(readers, "get", lambda _: Buggy(error))
    with caplog.at_level("DEBUG", "nowcast.readers"), pytest.raises(BadInput, match="is of no known source"):
        readers.detect(path)
    assert caplog.records[0].exc_info and caplog.records[0].exc_info[1] is error
