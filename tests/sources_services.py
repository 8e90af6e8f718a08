"""Small files in the exact formats of the binary composites of the weather services, written byte by byte.

``SOURCES`` makes a readable folder for each reader; the functions before it make single files whose contents a
test chooses.
"""

from __future__ import annotations

import gzip
import io
import struct
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path

import h5py
import numpy as np

from tests.fixtures import blob


def write(path: Path, data: bytes) -> Path:
    """A file with ``data``, gzipped if its name says so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(data, 1, mtime=0) if path.suffix == ".gz" else data)
    return path


def archive(path: Path, members: Mapping[str, bytes]) -> Path:
    """A tar archive, compressed as its name says; members whose names end in .gz are, too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz" if path.suffix in (".gz", ".tgz") else "w") as tar:
        for name, data in members.items():
            data = gzip.compress(data, 1, mtime=0) if name.endswith(".gz") else data
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def _clock(time: str) -> list[int]:
    """``2020-01-01T15:05`` -> year, month, day, hour, minute, second."""
    day, clock = time.split("T")
    return [int(part) for part in (*day.split("-"), *clock.split(":"), "0")][:6]


# --- Nimrod ---------------------------------------------------------------------------------------

NIMROD_NAME = "metoffice-c-band-rain-radar_uk_{}_1km-composite.dat"


def nimrod_codes() -> np.ndarray:
    """(row, column) int16 from the north, in 32nds of mm/h; the uppermost rows are not covered."""
    codes = blob((40, 30), 640).astype(np.int16)
    codes[:3] = -1
    return codes


def nimrod_bytes(
    *,
    codes: np.ndarray | None = None,
    time: str = "2019-06-10T00:05",
    of: str | None = None,
    unit: bytes = b"mm/h*32",
    field: int = 213,
    kind: tuple[int, int] = (1, 2),
    grid: int = 0,
    origin: int = 0,
    minutes: int = 0,
    missing: int = -1,
    upper_left: tuple[float, float] = (-404500.0, 1549500.0),
    pixel: float = 1000.0,
) -> bytes:
    """A field as the Met Office writes it: two Fortran records, of the header and of the pixels."""
    codes = nimrod_codes() if codes is None else np.asarray(codes)
    rows, columns = codes.shape
    whole = [
        *_clock(time),
        *_clock(of or time)[:5],
        *kind,
        -32767,  # experiment
        grid,
        rows,
        columns,
        2,  # release of the format
        field,
        *(9999 - 1, -32767),  # vertical coordinates
        *(45, 51),
        origin,
        missing,
        minutes,
        *(0, 0, -32767, 2, 0),
    ]
    real = [-32767.0, -32767.0, upper_left[1], pixel, upper_left[0], pixel, -32767.0, 1.0, 0.0, *[-32767.0] * 19]
    words = unit.ljust(8, b"\0") + b"Calibrated radar".ljust(24) + b"Rainrate Composite".ljust(24)
    head = struct.pack(">31h28f45f", *whole, *real, *[-32767.0] * 45) + words + struct.pack(">51h", *[-32767] * 51)
    pixels = codes.astype(">i2").tobytes()
    return b"".join(struct.pack(">i", len(part)) + part + struct.pack(">i", len(part)) for part in (head, pixels))


def nimrod(path: Path, **what: object) -> Path:
    """A file with one field, gzipped if its name says so."""
    return write(path, nimrod_bytes(**what))


def nimrod_day(path: Path, minutes: tuple[int, ...] = (0, 5, 10)) -> Path:
    """The archive of a day."""
    times = {
        f"20190610{minute // 60:02}{minute % 60:02}": f"2019-06-10T{minute // 60:02}:{minute % 60:02}"
        for minute in minutes
    }
    return archive(path, {NIMROD_NAME.format(stamp) + ".gz": nimrod_bytes(time=time) for stamp, time in times.items()})


def _nimrod_source(root: Path) -> Path:
    for minute, end in (("05", ".gz"), ("10", ""), ("15", ".gz")):
        nimrod(root / (NIMROD_NAME.format(f"2019060923{minute}") + end), time=f"2019-06-09T23:{minute}")
    nimrod_day(root / (NIMROD_NAME.format("20190610") + ".gz.tar"))
    return root


# --- JMA ------------------------------------------------------------------------------------------

JMA_NAME = "Z__C_RJTD_{}_RDR_JMAGPV_Ggis1km_Prr10lv_ANAL_grib2.bin"
JMA_LEVELS = (0, 10, 25, 50, *range(100, 24100, 100))
"""In hundredths of mm/h."""


def jma_levels() -> np.ndarray:
    """(row, column) uint8 from the north: a shower, and nothing measured in the uppermost rows."""
    levels = 1 + blob((84, 64), 150).astype(np.uint8)
    levels[:6] = 0
    return levels


def runs(levels: np.ndarray, used: int) -> bytes:
    """Levels as runs of them: how many more follow has digits to the base of what a byte has left."""
    flat, packed, base = np.ravel(levels), bytearray(), 255 - used
    starts = np.flatnonzero(np.append(True, flat[1:] != flat[:-1]))
    for start, end in zip(starts, [*starts[1:], flat.size], strict=True):
        packed.append(flat[start])
        more = end - start - 1
        while more:
            more, digit = divmod(more, base)
            packed.append(used + 1 + digit)
    return bytes(packed)


def jma_bytes(
    *,
    levels: np.ndarray | None = None,
    values: tuple[int, ...] = JMA_LEVELS,
    used: int | None = None,
    scale: int = 2,
    time: str = "2021-07-03T00:10",
    of: str | None = None,
    product: tuple[int, int] = (1, 201),
    template: int = 50008,
    centre: int = 34,
    discipline: int = 0,
    edges: tuple[float, float, float, float] = (118.0, 48.0, 150.0, 20.0),
    scanning: int = 0,
    packing: int = 200,
    bits: int = 8,
    bitmap: int = 255,
    data: bytes | None = None,
) -> bytes:
    """A message as JMA writes it; ``edges`` are those in the west, north, east and south."""
    levels = jma_levels() if levels is None else levels
    rows, columns = levels.shape
    used = int(levels.max()) if used is None else used
    west, north, east, south = edges
    width, height = (east - west) / columns, (north - south) / rows
    first, last = (north - height / 2, west + width / 2), (south + height / 2, east - width / 2)
    stamp = struct.pack(">H5B", *_clock(of or time))
    microdegrees = [round(angle * 1e6) for angle in (*first, *last, width, height)]
    fixed = struct.pack(">H5BHBBIBBIBBI", template, *product, 0, 150, 0, 0, 0, 0, 0, 1, 0, 0, 255, 0, 0)
    bodies = {
        1: struct.pack(">H", centre) + b"\0\0\x02\x01\0" + stamp + b"\0\0",
        3: struct.pack(">BIBBH", 0, rows * columns, 0, 0, 0)
        + struct.pack(">BBIBIBI", 4, 255, 2**32 - 1, 1, 63781370, 1, 63567523)
        + struct.pack(">IIII", columns, rows, 0, 2**32 - 1)
        + struct.pack(">IIBIIIIB", *microdegrees[:2], 0x30, *microdegrees[2:], scanning),
        4: struct.pack(">H", 0)
        + fixed
        + struct.pack(">H5B", *_clock(time))
        + struct.pack(">BIBBBIBI", 1, 0, 1, 2, 0, 10, 0, 0)
        + bytes(24 if template == 50008 else 0),
        5: struct.pack(">IHBHHB", rows * columns, packing, bits, used, len(values), scale)
        + struct.pack(f">{len(values)}H", *values),
        6: bytes([bitmap]),
        7: runs(levels, used) if data is None else data,
    }
    message = b"".join(struct.pack(">IB", len(body) + 5, number) + body for number, body in bodies.items())
    return b"GRIB\0\0" + bytes([discipline, 2]) + struct.pack(">Q", 16 + len(message) + 4) + message + b"7777"


def jma(path: Path, **what: object) -> Path:
    """A file with one message, gzipped if its name says so."""
    return write(path, jma_bytes(**what))


def _jma_source(root: Path) -> Path:
    for minute, end in (("10", ""), ("20", ".gz")):
        jma(root / (JMA_NAME.format(f"2021070300{minute}00") + end), time=f"2021-07-03T00:{minute}")
    stamp = "20210703003000"
    tops = f"Z__C_RJTD_{stamp}_RDR_JMAGPV_Gll2p5km_Phhlv_ANAL_grib2.bin"
    members = {tops: b"GRIB", JMA_NAME.format(stamp): jma_bytes(time="2021-07-03T00:30")}
    archive(root / f"Z__C_RJTD_{stamp}_RDR_JMAGPV__grib2.tar", members)
    return root


# --- DWD ------------------------------------------------------------------------------------------


def grid_text(
    values: np.ndarray | None = None,
    *,
    lower_left: tuple[int, int] = (-523462, -4658645),
    missing: str = "-1",
    cell: str = "1000",
) -> bytes:
    """A grid as DWD writes it, from the north; by default tenths of mm of the recent RW."""
    if values is None:
        values = blob((900, 900), 150).astype(int)
        values[:40] = -1
    rows, columns = values.shape
    word = "NODATA_value" if missing == "-1" else "nodata_value"
    head = f"ncols {columns}\nnrows {rows}\nxllcorner {lower_left[0]}\nyllcorner {lower_left[1]}\n"
    lines = (" ".join(f"{value}" for value in row) + " \n" for row in values.tolist())
    return (head + f"cellsize {cell}\n{word} {missing}\n" + "".join(lines)).encode()


def _ascii_source(root: Path) -> Path:
    text = grid_text()
    write(root / "RW_20221014-2250.asc", text)
    write(root / "RW_20221014-2350.asc.gz", text)
    archive(root / "RW-20221015.tar.gz", {f"RW_20221015-{hour}50.asc": text for hour in ("00", "01")})
    return root


def rydl(path: Path, frames: Mapping[str, np.ndarray] | None = None) -> Path:
    """A data set per time, in mm within five minutes, from the south."""
    if frames is None:
        shower = blob((900, 900), 2.0)[::-1].astype(np.float32)
        shower[-40:] = np.nan
        frames = dict.fromkeys(("200605010055", "200605010100", "200605010105"), shower)
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, values in frames.items():
            file.create_dataset(name, data=values, chunks=values.shape, compression="gzip")
    return path


def _rydl_source(root: Path) -> Path:
    rydl(root / "RYDL.hdf5")
    return root


# --- KMA ------------------------------------------------------------------------------------------

KMA_NAME = "RDR_CMP_{}_PUB_{}.bin"


def kma_codes() -> np.ndarray:
    """(row, column) int16 from the north, in hundredths: a shower within the range of the radars."""
    codes = np.full((2881, 2305), -30000, np.int16)
    codes[400:2400, 300:2000] = -25000
    codes[1000:1200, 1000:1200] = blob((200, 200), 4500)
    return codes


def kma_bytes(
    *,
    codes: np.ndarray | None = None,
    time: str = "2024-07-18T03:00",
    kind: int = 5,
    area: int = 1,
    shape: tuple[int, int] = (2881, 2305),
    heights: int = 1,
    metres: int = 500,
) -> bytes:
    """A composite as KMA writes it; ``time`` is Korean, ``shape`` is what the header states."""
    codes = kma_codes() if codes is None else codes
    clock = struct.pack("<h5B", *_clock(time))
    lists = bytes([3, 1, 2, 3, *[0] * 13])
    grid = struct.pack("<6h", *shape[::-1], heights, metres, 0, 0)
    head = struct.pack("<Bh", 1, kind) + clock + clock + bytes([10, area, 0]) + grid + lists
    station = struct.pack("<6s", b"KWK") + bytes(14)
    return head.ljust(64, b"\0") + station * 48 + codes[::-1].astype("<i2").tobytes()


def kma(path: Path, **what: object) -> Path:
    """A file with one composite, gzipped if its name says so."""
    return write(path, kma_bytes(**what))


def _kma_source(root: Path) -> Path:
    for minute in ("00", "05"):
        kma(root / (KMA_NAME.format("HSP", f"2024071803{minute}") + ".gz"), time=f"2024-07-18T03:{minute}")
    return root


SOURCES: dict[str, Callable[[Path], Path]] = {
    "nimrod": _nimrod_source,
    "jma": _jma_source,
    "kma": _kma_source,
    "radolan-ascii": _ascii_source,
    "rydl": _rydl_source,
}
"""Reader -> maker of a folder that it can read."""
