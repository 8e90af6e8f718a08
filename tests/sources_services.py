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


SOURCES: dict[str, Callable[[Path], Path]] = {
    "nimrod": _nimrod_source,
}
"""Reader -> maker of a folder that it can read."""
