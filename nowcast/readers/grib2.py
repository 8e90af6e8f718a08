"""GRIB, edition 2: the sections of a message of one field, and what all of its templates have in common.

Source: WMO, Manual on Codes, GRIB edition 2. Places are counted from 0, one less than its octets.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

from nowcast.core.errors import BadInput
from nowcast.readers import stamps

HEAD_BYTES = 16
NEEDED = {1, 3, 4, 5, 6, 7}
"""Sections: 2, of local use, may be missing."""
MICRODEGREES = 1e-6


def sections(data: bytes, path: Path) -> dict[int, memoryview]:
    """Find the sections of a whole message by number; a field has each once.

    Raises:
        BadInput: If one is damaged, missing or there twice.
    """
    view, found, place = memoryview(data), dict[int, memoryview](), HEAD_BYTES
    while place < len(data) - 4:
        length, number = struct.unpack_from(">IB", data, place)
        if length < 5 or place + length > len(data) - 4:
            raise BadInput(path, f"has a damaged section {number}", "fetch it again")
        if number in found:
            raise BadInput(path, f"holds section {number} twice", "give files of one field")
        found[number] = view[place : place + length]
        place += length
    if missing := NEEDED - set(found):
        raise BadInput(path, f"has no section {min(missing)}", "fetch it again")
    return found


def time(section: memoryview, place: int, path: Path) -> np.datetime64:
    """Read year, month, day, hour, minute and second, 7 bytes at ``place``.

    Raises:
        BadInput: If the year is none of radar's.
    """
    year, month, day, hour, minute, second = struct.unpack_from(">H5B", section, place)
    if not 1980 <= year <= 2200:  # beyond that nanoseconds would end
        raise BadInput(path, f"is of the year {year}", "fetch it again")
    return stamps.moment(year, month, day, hour, minute, second)


def degrees(section: memoryview, place: int) -> tuple[float, float]:
    """Read latitude, whose sign is a bit, and longitude from -180 to 180."""
    lat, lon = struct.unpack_from(">II", section, place)
    lat = -(lat & 0x7FFFFFFF) if lat & 0x80000000 else lat
    return lat * MICRODEGREES, lon * MICRODEGREES - (360 if lon > 180_000_000 else 0)
