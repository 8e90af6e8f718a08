"""MeteoSwiss: five-minute precipitation of the Swiss composite as palette pictures (GIF).

One file, ``AQCyyjjjHHMMq_00005.801.gif``, is one frame; the name holds the day of the year and the end
of the five minutes. The palette's index stands for mm in five minutes,
``(10 ** ((index - 71.5) / 20) / 316) ** (1 / 1.5)``, a table that reaches absurd rates at its top; it is
kept as it is.

CombiPrecip (``CPC``) is drawn alike until 28 June 2018. ``RZC`` and ``AZC`` are coloured by tables that
the files do not hold: get those products in HDF5, which the reader odim takes.

Source: the files, whose comment names product and scale; pysteps and MeteoSwiss's Py-ART for the scale.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
import xarray as xr
from PIL import Image

from nowcast.core.cube import check, make
from nowcast.core.errors import BadInput
from nowcast.core.grid import Grid
from nowcast.readers import stamps
from nowcast.readers.decoding import decoding
from nowcast.readers.items import Item, files

TITLE = "MeteoSwiss radar precipitation of Switzerland, palette pictures"
LICENCE = "MeteoSwiss; ask for the terms of the old pictures"
CADENCE = 300
PATTERNS = ("AQC*_00005.801.gif", "CPC*_00005.801.gif")

FORM = "a MeteoSwiss precipitation picture in GIF"
NAME = re.compile(r"([A-Za-z]{3})(\d\d)(\d{3})(\d\d)(\d\d)\w_(\d{5})\.801\.(?i:gif)")
SHAPE = (640, 710)
UPPER_LEFT, PIXEL = (255_000.0, 480_000.0), (1000.0, 1000.0)
"""Swiss grid LV03, metres."""
MINUTES = 5
ZR_A, ZR_B = 316.0, 1.5
"""Of the index, which counts half dBZ from -35.75."""
MISSING = 255
COLOURS = bytes(value for index in range(MISSING) for value in (255, 255 - index, 255 - index)) + bytes(3)
"""The reddish palette, in which index and amount go together."""
CPC_CHANGES = np.datetime64("2018-06-28", "s")
"""From then on CombiPrecip counts its levels differently."""


def _rates() -> np.ndarray:
    index = np.arange(256)
    amounts = (10 ** ((index - 71.5) / 20) / ZR_A) ** (1 / ZR_B)
    amounts[(index < 2) | (index > 250)] = 0.0
    amounts[MISSING] = np.nan
    return (amounts * 60 / MINUTES).astype(np.float32)


RATES = _rates()
"""mm/h of every index."""
LEVELS = np.unique(RATES[:MISSING])


def recognises(path: Path) -> bool:
    """Whether this is a GIF of such a name and of the size of a composite."""
    with path.open("rb") as stream:
        head = stream.read(10)
    size = int.from_bytes(head[6:8], "little"), int.from_bytes(head[8:10], "little")
    return bool(NAME.fullmatch(path.name)) and head[:4] == b"GIF8" and size == SHAPE[::-1]


def find(source: Path) -> Iterator[Item]:
    """Find the five-minute pictures of a file or folder, in time order."""
    yield from map(Item, files(source, *PATTERNS))


def read(item: Item) -> xr.Dataset:
    """Read one picture: ``rainfall_rate`` at the end of its five minutes; 0 is measured and dry.

    Raises:
        BadInput: If the file is another product, or its palette is not the one that goes with the scale.
    """
    with decoding(item.path, FORM):
        product, time = _label(item.path)
        values = RATES[_levels(item.path)]
    attrs = {
        "title": TITLE,
        "source": item.path.name,
        "licence": LICENCE,
        "institution": "MeteoSwiss",
        "zr_a": ZR_A,
        "zr_b": ZR_B,
    }
    cube = make(
        {"rainfall_rate": values[None]},
        [time],
        _grid(),
        cadence=CADENCE,
        levels=LEVELS,
        product=product,
        accumulation=60 * MINUTES,
        attrs=attrs,
    )
    return check(cube, item.path)


def _label(path: Path) -> tuple[str, np.datetime64]:
    """Product and time, which only the name holds."""
    match = NAME.fullmatch(path.name)
    if not match:
        raise BadInput(path, "is not named like AQC151351545F_00005.801.gif", "keep the name, which holds the time")
    product, year, day, hour, minute, minutes = match.groups()
    if product not in ("AQC", "CPC"):
        raise BadInput(path, f"is coloured by a table of {product} that it does not hold", "get the product in HDF5")
    if int(minutes) != MINUTES:
        raise BadInput(path, f"is an accumulation over {int(minutes)} minutes", "give that of 5 minutes (_00005)")
    date = np.datetime64(f"20{year}-01-01") + np.timedelta64(int(day) - 1, "D")
    if str(date)[2:4] != year:
        raise BadInput(path, f"names day {day} of the year 20{year}", "fetch it again")
    _, month, of_month = map(int, str(date).split("-"))
    time = stamps.moment(2000 + int(year), month, of_month, int(hour), int(minute))
    if product == "CPC" and time >= CPC_CHANGES:
        raise BadInput(
            path, "is later than 28 June 2018, when CombiPrecip changed its levels", "get the product in HDF5"
        )
    return product, time


def _levels(path: Path) -> np.ndarray:
    """(row, column) uint8 indices, row 0 north."""
    with Image.open(path, formats=["GIF"]) as image:
        if image.size != SHAPE[::-1]:
            raise BadInput(
                path,
                f"has {image.size[1]}x{image.size[0]} pixels, not {SHAPE[0]}x{SHAPE[1]}",
                "give the composite of Switzerland",
            )
        if image.mode != "P" or bytes(image.getpalette() or ()) != COLOURS:
            raise BadInput(path, "has another palette than the reddish one", "get the original picture, not a copy")
        return np.asarray(image)


@lru_cache(maxsize=1)
def _grid() -> Grid:
    return Grid.regular("EPSG:21781", SHAPE, upper_left=UPPER_LEFT, pixel=PIXEL)
