"""Archives of frames: what lies in them, and what of it is kept where they are damaged."""

import gzip
import io
import re
import tarfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from nowcast.core.errors import BadInput
from nowcast.readers import Item, detect, get
from nowcast.readers.archives import archived, content
from tests import sources_services
from tests.sources_services import archive

PATTERN = re.compile(r"(?:.*/)?frame\d\.bin(?:\.gz)?")
FRAMES = {f"frame{number}.bin.gz": bytes([number]) + np.random.default_rng(number).bytes(4999) for number in range(4)}

READERS = {
    "nimrod": (
        sources_services.NIMROD_NAME,
        sources_services.nimrod_bytes,
        "metoffice-c-band-rain-radar_uk_2019_1km-composite.tar",
    ),
    "jma": (sources_services.JMA_NAME, sources_services.jma_bytes, "Z__C_RJTD_20210703_RDR_JMAGPV__grib2.tar"),
    "radolan-ascii": ("RW_{}.asc", sources_services.grid_text, "RW-202207.tar"),
    "kma": ("RDR_CMP_HSR_PUB_{}.bin.gz", sources_services.kma_bytes, "RDR_CMP_2024.tar"),
}
"""Reader -> name of a member by its stamp, its contents, and the name of an archive."""
STAMPS = {
    "nimrod": ("201906100005", "201906100010"),
    "jma": ("20210703001000", "20210703002000"),
    "radolan-ascii": ("20220703-0050", "20220703-0150"),
    "kma": ("202407180300", "202407180305"),
}


def read(path: Path, most: int = 5000) -> list[bytes | str]:
    """What every item holds, or why it does not."""
    found: list[bytes | str] = []
    for item in archived(path, PATTERN):
        try:
            found.append(content(item, most)[:1])
        except BadInput as refusal:
            found.append(str(refusal))
    return found


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.tgz", "a.dat.gz (1).tar"])
def test_members_plain_and_packed(tmp_path, name):
    path = archive(tmp_path / name, {"readme.txt": b"no frame", **FRAMES, "./day/frame4.bin": b"\4"})
    assert read(path) == [b"\0", b"\1", b"\2", b"\3", b"\4"]


def inner() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in FRAMES.items():
            member = tarfile.TarInfo(name)
            member.size = len(packed := gzip.compress(data))
            tar.addfile(member, io.BytesIO(packed))
    return buffer.getvalue()


def test_archives_within_an_archive(tmp_path):
    path = archive(tmp_path / "month.tar", {"day1.tar.gz": inner(), "day2.tar": inner(), "frame9.bin": b"\t"})
    assert read(path) == [*[b"\0", b"\1", b"\2", b"\3"] * 2, b"\t"]
    assert [item.key for item in archived(path, PATTERN)][3:5] == [
        "day1.tar.gz!/frame3.bin.gz",
        "day2.tar!/frame0.bin.gz",
    ]


def test_a_damaged_archive_within_does_not_hide_the_others(tmp_path):
    path = archive(tmp_path / "month.tar", {"day1.tar": inner()[:7000], "day2.tar": inner()})
    first, *others = read(path)
    assert others == [b"\0", b"\1", b"\2", b"\3"]
    assert next(archived(path, PATTERN)).key == "day1.tar" and "holds more than 5000 bytes in day1.tar" in str(first)


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz"])
def test_what_lies_before_the_damage_is_kept(tmp_path, name):
    path = archive(tmp_path / name, dict(FRAMES))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    *kept, refusal = read(path)
    assert kept[:1] == [b"\0"] and len(kept) < 4
    assert "is damaged or not" in str(refusal)


@pytest.mark.parametrize("name", READERS)
def test_a_damaged_archive_is_nobodys_unless_a_frame_comes_first(tmp_path, name):
    member, _, outer = READERS[name]
    path = archive(tmp_path / outer, {"readme.txt": b"x", member.format(STAMPS[name][0]): bytes(30_000)})
    data = path.read_bytes()
    path.write_bytes(data[:5000])  # within the frame
    assert detect(path) == name
    path.write_bytes(b"x" * 5000)
    with pytest.raises(BadInput, match="is of no known source"):
        detect(path)


def test_a_member_of_too_much_is_refused(tmp_path):
    path = archive(tmp_path / "a.tar", {"frame0.bin": bytes(2**22), "frame1.bin.gz": bytes(2**26), "frame2.bin": b"\2"})
    tracemalloc.start()
    *large, small = read(path)
    assert tracemalloc.get_traced_memory()[1] < 2**22
    tracemalloc.stop()
    assert small == b"\2" and all("holds more than 5000 bytes" in str(refusal) for refusal in large)


def test_an_archive_of_other_things(tmp_path):
    path = archive(tmp_path / "a.tar", {"readme.txt": b"no frame"})
    assert read(path) == [f"{path}: holds no frame of this source; take items from find."]


@pytest.mark.parametrize("name", READERS)
def test_every_reader_of_archives_takes_plain_packed_and_nested_ones(tmp_path, name):
    member, contents, outer = READERS[name]
    data = contents()
    members = {
        member.format(stamp): gzip.compress(data, 1) if member.endswith(".gz") else data for stamp in STAMPS[name]
    }
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for label, part in members.items():
            head = tarfile.TarInfo(label)
            head.size = len(part)
            tar.addfile(head, io.BytesIO(part))
    plain, nested = tmp_path / "plain" / outer, tmp_path / "nested" / outer
    plain.parent.mkdir()
    plain.write_bytes(buffer.getvalue())
    archive(nested, {"day.tar.gz": buffer.getvalue()})
    for path in (plain, nested):
        assert detect(path) == name
        items = list(get(name).find(path))
        assert len(items) == 2
        cube = get(name).read(items[1])
        assert cube.attrs["source"] == member.format(STAMPS[name][1])
    assert isinstance(items[0], Item)
