"""Frames of a video as a Cube: grey or colour, 8 bits, numbered instead of dated."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache

import numpy as np
import xarray as xr

from nowcast.core.cube import check, make
from nowcast.core.errors import BadInput
from nowcast.core.grid import Grid
from nowcast.core.units import COLOURS

LEVELS = (np.arange(256) / 255).astype(np.float32)
ROUNDING = 1e-5
"""What float32 arithmetic may add to a level."""
TOGETHER = 16
"""Frames looked at at a time: as many as the cache of a processor holds."""


def video(
    where: object, clips: Iterable[tuple[str, int, np.ndarray]], *, split: str | None, attrs: Mapping[str, object]
) -> xr.Dataset:
    """Make a Cube of ``intensity``, or of ``red``, ``green`` and ``blue``.

    Args:
        where: They are from, for the sentence that refuses them.
        clips: Label, number of the first frame, and frames of each: (time, y, x) or (time, y, x, colour) uint8
            levels, or floats in [0, 1]. Floats that are 8-bit levels after all are taken as such; others
            stay as they are. A number is seconds from 1970.
        split: See ``cube.make``.
        attrs: Likewise.

    Raises:
        BadInput: If a value is no shade between black and white.
    """
    labels, firsts, pieces = zip(*clips, strict=True)
    lengths, frames = [len(piece) for piece in pieces], np.concatenate(pieces)
    numbers = np.concatenate([first + np.arange(length) for first, length in zip(firsts, lengths, strict=True)])
    sequence = np.repeat(np.asarray(labels, object), lengths).tolist()
    levels = _levels(where, frames)
    values = frames.astype(np.float32, copy=False) if levels is None else levels
    planes = dict(zip(COLOURS, np.moveaxis(values, -1, 0), strict=True)) if values.ndim == 4 else {"intensity": values}
    if levels is not None:
        planes = {name: np.divide(plane, np.float32(255), dtype=np.float32) for name, plane in planes.items()}
    cube = make(
        planes,
        np.datetime64(0, "s") + numbers,
        picture(frames.shape[1:3]),
        sequence=sequence,
        split=split,
        levels=None if levels is None else LEVELS,
        attrs=attrs,
    )
    return check(cube, where)


@lru_cache(maxsize=16)
def picture(shape: tuple[int, int]) -> Grid:
    """Make the grid of a video."""
    return Grid.picture(shape)


def _levels(where: object, frames: np.ndarray) -> np.ndarray | None:
    """uint8 levels, or None where the values are no such levels."""
    if frames.dtype == np.uint8:
        return frames
    if frames.dtype.kind != "f":
        raise BadInput(where, f"holds frames as {frames.dtype}", "give levels of 8 bits or floats in [0, 1]")
    low, high = float(frames.min(initial=0)), float(frames.max(initial=1))  # NaN if any is
    if not (low >= -ROUNDING and high <= 1 + ROUNDING):
        raise BadInput(where, f"holds values from {low:g} to {high:g}", "give levels of 8 bits or floats in [0, 1]")
    levels = np.empty(frames.shape, np.uint8)
    for first in range(0, len(frames), TOGETHER):
        now = slice(first, first + TOGETHER)
        steps = frames[now] * np.float32(255)
        whole = np.rint(steps)
        if np.abs(steps - whole).max() > 255 * ROUNDING:
            return None
        levels[now] = whole
    return levels
