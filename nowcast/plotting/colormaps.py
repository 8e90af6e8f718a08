"""Colour tables: the same classes on maps and on the page."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np

from nowcast.core.units import UNIT_SIGNS, get_quantity, vil_from_level


@dataclass(frozen=True)
class ColourTable:
    """Classes of a quantity: ``colours[i]`` from ``breaks[i]`` up to the next break; transparent below the first."""

    name: str
    quantity: str
    unit: str
    breaks: tuple[float, ...]
    colours: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.breaks) != len(self.colours) or any(high <= low for low, high in pairwise(self.breaks)):
            raise ValueError(f"Colour table {self.name} needs one colour per break, and breaks that increase.")

    @cached_property
    def palette(self) -> np.ndarray:
        """RGB colour of each class, uint8 (classes + 1, 3); class 0, which has no colour, is black."""
        return np.stack([rgb(colour) for colour in ("#000000", *self.colours)])

    def classes(self, field: np.ndarray) -> np.ndarray:
        """Classify each pixel as uint8: 0 below the first break and where there is no data, else i + 1."""
        reached = np.zeros(field.shape, np.uint8)
        for limit in np.asarray(self.breaks, np.float32):
            reached += field >= limit
        return reached


def rgb(colour: str) -> np.ndarray:
    """Convert ``#rrggbb`` to uint8 (3,)."""
    return np.frombuffer(bytes.fromhex(colour.removeprefix("#")), np.uint8)


def _safe_colours(count: int) -> tuple[str, ...]:
    """Choose colours of evenly falling lightness: readable in any colour vision, and in grey.

    Steps along matplotlib's magma (CC0), from bright to dark.
    """
    anchors = np.stack([rgb(c) for c in ("#fde2a3", "#fe9f6d", "#ef5d5e", "#bf3a77", "#842681", "#4c117a", "#0e0b2b")])
    places = np.linspace(0, len(anchors) - 1, count)
    parts = [np.interp(places, range(len(anchors)), part).round().astype(int) for part in anchors.T]
    return tuple(f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue in zip(*parts, strict=True))


_RATES = (0.08, 0.16, 0.25, 0.4, 0.63, 1, 1.6, 2.5, 4, 6.3, 10, 16, 25, 40, 63, 100, 160)
_DECIBELS = tuple(range(5, 80, 5))
_LIQUID = tuple(vil_from_level(np.asarray([16, 31, 59, 74, 100, 133, 160, 181, 219])).tolist())

COLOUR_TABLES = {
    table.name: table
    for table in (
        # The breaks of pysteps, each 1.6 times the one before, which researchers know.
        ColourTable(
            "rainfall_rate",
            "rainfall_rate",
            "mm/h",
            _RATES,
            (
                "#b9d0ea",
                "#9cc0e6",
                "#7aabdf",
                "#5593d6",
                "#3379c8",
                "#1f5fae",
                "#13808a",
                "#1f9c5b",
                "#5cb83a",
                "#a8d02f",
                "#f2e51d",
                "#f9c012",
                "#f79410",
                "#ef5a14",
                "#d81e1e",
                "#a80f4d",
                "#7a1c9c",
            ),
        ),
        # The classes of the US National Weather Service.
        ColourTable(
            "reflectivity",
            "reflectivity",
            "dBZ",
            _DECIBELS,
            (
                "#04e9e7",
                "#019ff4",
                "#0300f4",
                "#02fd02",
                "#01c501",
                "#008e00",
                "#fdf802",
                "#e5bc00",
                "#fd9500",
                "#fd0000",
                "#d40000",
                "#bc0000",
                "#f800fd",
                "#9854c6",
                "#fdfdfd",
            ),
        ),
        # The levels at which SEVIR is drawn and scored.
        ColourTable(
            "vil",
            "vil",
            "kg/m²",
            _LIQUID,
            ("#9cc0e6", "#5593d6", "#1f5fae", "#1f9c5b", "#5cb83a", "#f2e51d", "#f79410", "#d81e1e", "#7a1c9c"),
        ),
        ColourTable("rainfall_rate-safe", "rainfall_rate", "mm/h", _RATES, _safe_colours(len(_RATES))),
        ColourTable("reflectivity-safe", "reflectivity", "dBZ", _DECIBELS, _safe_colours(len(_DECIBELS))),
        ColourTable("vil-safe", "vil", "kg/m²", _LIQUID, _safe_colours(len(_LIQUID))),
    )
}


def table_for(name: str, *, safe: bool = False) -> ColourTable:
    """Return the colour table of a quantity; twelve evenly spaced classes where none is listed.

    Args:
        name: Cube variable name.
        safe: Choose a table that is readable in any colour vision.

    Raises:
        OptionError: If the quantity is unknown.
    """
    if name in COLOUR_TABLES:
        return COLOUR_TABLES[f"{name}-safe" if safe else name]
    meta = get_quantity(name)
    spread = np.geomspace if meta.scaling.kind == "decibel" else np.linspace
    breaks = spread(meta.scaling.low, meta.scaling.high, 13)[:-1]
    return ColourTable(
        name, name, UNIT_SIGNS.get(meta.unit, meta.unit), tuple(breaks.tolist()), _safe_colours(breaks.size)
    )
