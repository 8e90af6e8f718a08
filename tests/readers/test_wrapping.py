"""Files in archives and compressed files: over the registry, and what must not be unpacked."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from nowcast.core.errors import BadInput
from nowcast.ingestion.inspect import inspect
from nowcast.ingestion.run import ingest
from nowcast.readers import READERS, Item, detect, get, wrapping
from nowcast.readers.items import fits, walk
from nowcast.store import open_store
from tests import fixtures
from tests.sources import SOURCES

names = pytest.mark.parametrize("name", READERS)


def packed_tar(source: Path, path: Path, mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:
        archive.add(source, "data")
    return path


def packed_zip(source: Path, path: Path) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(source.rglob("*")):
            archive.write(file, file.relative_to(source.parent))
    return path


ARCHIVES: dict[str, Callable[[Path, Path], Path]] = {
    "all.tar": packed_tar,
    "all.tar.gz": lambda source, path: packed_tar(source, path, "w:gz"),
    "all.TGZ": lambda source, path: packed_tar(source, path, "w:gz"),
    "all.tar.bz2": lambda source, path: packed_tar(source, path, "w:bz2"),
    "all.zip": packed_zip,
}
COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {".gz": gzip.compress, ".bz2": bz2.compress, ".XZ": lzma.compress}


def contents(name: str, source: Path) -> list[dict[str, np.ndarray]]:
    cubes = [get(name).read(item) for item in get(name).find(source)]
    return [{str(key): variable.values for key, variable in cube.data_vars.items()} for cube in cubes]


def same(found: list[dict[str, np.ndarray]], wanted: list[dict[str, np.ndarray]]) -> None:
    assert len(found) == len(wanted) > 0
    for one, other in zip(found, wanted, strict=True):
        assert one.keys() == other.keys()
        for key, values in one.items():
            np.testing.assert_array_equal(values, other[key])


BY_ROOT = ("sevir", "human", "gs2pm")
"""Readers that want the very folder of the data set."""

# --- over the registry ----------------------------------------------------------------------------


@names
@pytest.mark.parametrize("archive", ["all.tar.gz", "all.zip"])
def test_every_source_is_read_out_of_an_archive(name: str, archive: str, tmp_path: Path) -> None:
    source = SOURCES[name](tmp_path / "plain")
    feed = tmp_path / "feed"
    feed.mkdir()
    path = ARCHIVES[archive](source, feed / archive)
    assert detect(path) == detect(feed) == name
    wanted = contents(name, source)
    same(contents(name, path), wanted)
    if name not in BY_ROOT:
        same(contents(name, feed), wanted)
    items = list(get(name).find(path))
    assert len({item.signature for item in items}) == len(items)
    assert all(item.path == path and item.member for item in items)


@pytest.mark.parametrize("name", ["odim", "knmi", "fmi-geotiff", "mch-gif", "bom", "mrms", "netcdf", "radolan"])
def test_compressed_files_are_read(name: str, tmp_path: Path) -> None:
    source = SOURCES[name](tmp_path / "plain")
    plain = [item.path for item in get(name).find(source)]
    for ending, compress in COMPRESSORS.items():
        feed = tmp_path / ending
        feed.mkdir()
        for path in dict.fromkeys(plain):
            (feed / f"{path.name}{ending}").write_bytes(compress(path.read_bytes()))
        assert detect(feed) == name
        same(contents(name, feed), contents(name, source))


@names
def test_links_to_folders_are_followed_once(name: str, tmp_path: Path) -> None:
    source = SOURCES[name](tmp_path / "plain")
    feed = tmp_path / "feed"
    feed.mkdir()
    (feed / "link").symlink_to(source, target_is_directory=True)
    (feed / "loop").symlink_to(feed, target_is_directory=True)
    (feed / "twice").symlink_to(source, target_is_directory=True)
    assert detect(feed) == name
    root = feed / "link" if name in BY_ROOT else feed
    same(contents(name, root), contents(name, source))


CAPITALS = {"odim": ".H5", "knmi": ".H5", "fmi-geotiff": ".TIF", "geotiff": ".TIF", "netcdf": ".NC", "bom": ".NC"} | {
    "fmi-pgm": ".PGM",
    "mrms": ".GRIB2.GZ",
    "mch-gif": ".801.GIF",
    "kth": ".AVI",
    "meteonet": ".NPZ",
}


@pytest.mark.parametrize("name", CAPITALS)
def test_suffixes_may_be_in_capitals(name: str, tmp_path: Path) -> None:
    source = SOURCES[name](tmp_path / "plain")
    wanted = contents(name, source)
    for path in [
        path for path in source.rglob("*") if path.is_file() and path.name.lower().endswith(CAPITALS[name].lower())
    ]:
        path.rename(path.with_name(path.name[: -len(CAPITALS[name])] + CAPITALS[name]))
    assert detect(source) == name
    same(contents(name, source), wanted)


@pytest.mark.parametrize("folder", ["radar[1]", "a*b", "what?", "[!x]"])
def test_a_folder_with_magic_in_its_name_is_no_pattern(folder: str, tmp_path: Path) -> None:
    fixtures.knmi(tmp_path / folder / "in" / "RAD_NL25_RAP_5min_201008260005.h5")
    for number, tail in enumerate(("", "*/*.h5", "**/*.h5")):
        taken = ingest("knmi", [tmp_path / folder / tail], tmp_path / f"frames{number}")
        assert (taken.taken, taken.refused) == (1, []), tail
    assert ingest("knmi", [str(tmp_path / "[ar]*" / "nothing*.h5")], tmp_path / "none").taken == 0


# --- DWD's archives of forecasts ------------------------------------------------------------------


def rv(path: Path, leads: range = range(0, 15, 5)) -> Path:
    """DWD's RV as it is since December 2025: analysis and forecasts, a file each."""
    path.parent.mkdir(parents=True, exist_ok=True)
    stem = path.name.partition(".")[0]
    with tarfile.open(path, "w") as archive, tempfile.TemporaryDirectory() as folder:
        for lead in leads:
            file = fixtures.odyssey(Path(folder) / f"{stem}_{lead:03}-hd5", time=f"{stem[-4:]}00")
            archive.add(file, file.name)
    return path


def test_of_a_tar_with_forecasts_the_analysis_is_taken(tmp_path: Path) -> None:
    for minute in ("00", "05"):
        rv(tmp_path / "feed" / f"composite_rv_20180824_18{minute}.tar")
    items = list(get("odim").find(tmp_path / "feed"))
    assert [item.member for item in items] == [f"composite_rv_20180824_18{minute}_000-hd5" for minute in ("00", "05")]
    assert str(items[0]) == "composite_rv_20180824_1800.tar/composite_rv_20180824_1800_000-hd5"
    summary = ingest("auto", [tmp_path / "feed"], tmp_path / "frames")
    assert (summary.taken, summary.refused) == (2, [])
    assert ingest("auto", [tmp_path / "feed"], tmp_path / "frames").known == 2
    assert open_store(tmp_path / "frames").sizes["time"] == 2
    assert inspect(tmp_path / "feed" / "composite_rv_20180824_1800.tar").reader == "odim"
    with pytest.raises(BadInput, match="a forecast for 5 minutes ahead"):
        get("odim").read(Item(items[0].path, member=items[0].member.replace("_000", "_005")))


# --- what is wrong with them ----------------------------------------------------------------------


def refusal(path: Path, name: str = "odim") -> str:
    with pytest.raises(BadInput) as refused:
        [get(name).read(item) for item in get(name).find(path)]
    sentence = str(refused.value)
    assert path.name in sentence and "\n" not in sentence and wrapping.FOLDER not in sentence
    assert refused.value.remedy
    return sentence


@pytest.mark.parametrize("archive", ARCHIVES)
@pytest.mark.parametrize("share", [0.0, 0.5, 0.8])
def test_a_damaged_archive_gets_a_sentence(archive: str, share: float, tmp_path: Path) -> None:
    path = ARCHIVES[archive](SOURCES["odim"](tmp_path / "plain"), tmp_path / archive)
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    refusal(path)


def test_damage_inside_is_named_by_the_archive(tmp_path: Path) -> None:
    file = fixtures.odyssey(tmp_path / "plain" / "a.h5")
    file.write_bytes(file.read_bytes()[:3000])
    sentence = refusal(packed_tar(tmp_path / "plain", tmp_path / "all.tar"))
    assert sentence.startswith(f"{tmp_path / 'all.tar'}/data/a.h5: ")


def test_what_unpacks_to_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.h5.gz"
    path.write_bytes(gzip.compress(bytes(2**23)))
    monkeypatch.setattr(wrapping, "MOST_BYTES", 2**22)
    assert "unpacks to more than 4 MiB" in refusal(path)
    monkeypatch.undo()
    monkeypatch.setattr(wrapping, "FREE_BYTES", 2**20)
    path = tmp_path / "b.h5.bz2"
    path.write_bytes(bz2.compress(bytes(2**26)))
    assert "unpacks to more than" in refusal(path)


def test_too_many_members_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wrapping, "MOST_MEMBERS", 2)
    assert "more than 2 files" in refusal(packed_tar(SOURCES["odim"](tmp_path / "plain"), tmp_path / "a.tar"))


def test_a_member_outside_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        member = tarfile.TarInfo("../../out.h5")
        archive.addfile(member, io.BytesIO())
    assert "outside" in refusal(tmp_path / "a.tar")


def test_links_in_archives_are_left_out(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        member = tarfile.TarInfo("passwd.h5")
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(member)
    with pytest.raises(BadInput, match="holds no file named"):
        list(get("odim").find(tmp_path / "a.tar"))


def test_wrappings_in_wrappings(tmp_path: Path) -> None:
    source = SOURCES["odim"](tmp_path / "plain")
    for path in [path for path in source.rglob("*") if path.is_file()]:
        path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
    wanted = contents("odim", source)[::2]
    for path in [path for path in source.rglob("*") if path.is_file() and path.suffix != ".gz"]:
        path.unlink()
    twice = packed_tar(source, tmp_path / "inner.tar")
    thrice = packed_zip(_alone(twice), tmp_path / "outer.zip")
    same(contents("odim", thrice), wanted)
    four = packed_tar(_alone(thrice), tmp_path / "all.tar.gz", "w:gz")
    assert "more than 3 deep" in refusal(four)


def _alone(path: Path) -> Path:
    folder = path.parent / f"with-{path.name}"
    folder.mkdir()
    shutil.copy(path, folder)
    return folder


def test_a_compressed_file_that_is_not_named_so(tmp_path: Path) -> None:
    file = fixtures.knmi(tmp_path / "RAD_NL25_RAP_5min_201008260005.h5")
    wanted = contents("knmi", file)
    file.write_bytes(gzip.compress(file.read_bytes()))
    assert detect(file) == "knmi"
    same(contents("knmi", file), wanted)


def test_foreign_archives_of_a_folder_are_left_alone(tmp_path: Path) -> None:
    fixtures.knmi(tmp_path / "feed" / "RAD_NL25_RAP_5min_201008260005.h5")
    (tmp_path / "papers").mkdir()
    (tmp_path / "papers" / "a.pdf").write_bytes(b"%PDF")
    packed_zip(tmp_path / "papers", tmp_path / "feed" / "papers.zip")
    assert [item.member for item in get("knmi").find(tmp_path / "feed")] == [""]


def test_folders_go_with_those_who_hold_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    wrapping._unpacked.cache_clear()
    for number in range(3 * wrapping.KEPT):
        path = tmp_path / f"{number}.h5.gz"
        path.write_bytes(gzip.compress(b"radar"))
        with wrapping.unwrapped(path, lambda name: False) as folder:
            assert [one.name for one in folder.iterdir()] == [f"{number}.h5"]
    assert len(list(tmp_path.glob(f"{wrapping.FOLDER}*"))) == wrapping.KEPT
    wrapping._unpacked.cache_clear()
    assert not list(tmp_path.glob(f"{wrapping.FOLDER}*"))


@pytest.mark.parametrize(
    ("name", "pattern", "fit"),
    [
        ("a.h5", "*.h5", True),
        ("A.H5", "*.h5", True),
        ("a_000-HD5", "*-hd5", True),
        ("x.GRIB2.GZ", "*.grib2.gz", True),
        ("RAD150510.PNG", "RAD*.png", True),
        ("rad150510.png", "RAD*.png", False),
        ("a.h5x", "*.h5", False),
    ],
)
def test_names_fit_patterns(name: str, pattern: str, fit: bool) -> None:
    assert fits(name, (pattern,)) is fit


def test_walk_sees_folders_once(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    assert [place.name for place, _, _ in walk(tmp_path)] == [tmp_path.name, "a", "b"]
