"""Sequences that are kept as one picture a frame, PNG or JPEG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from nowcast.core.errors import BadInput
from nowcast.readers.decoding import decoding
from nowcast.readers.items import ITEM_BYTES

COLOUR, GREY, RED = "colour", "grey", "red"
"""All three channels; the level that they share; the first of them, whatever the others are."""
MODES = {COLOUR: ("RGB",), GREY: ("L", "P", "RGB"), RED: ("L", "RGB")}


def stack(paths: Sequence[Path], form: str, *, take: str) -> np.ndarray:
    """Read the pictures of one item.

    Args:
        paths: In order.
        form: ``PNG`` or ``JPEG``.
        take: What of their colours, see above.

    Returns:
        (frame, row, column) uint8, or (frame, row, column, colour).

    Raises:
        BadInput: If one is missing, damaged, of another kind or of another size than the first.
    """
    depth = (3,) if take == COLOUR else ()
    frames: np.ndarray = np.empty(0, np.uint8)
    for index, path in enumerate(paths):
        with decoding(path, f"a {form} picture"), Image.open(path, formats=[form]) as image:
            columns, rows = image.size
            if not index:
                _check_size(path, (rows, columns), len(paths) * (3 if depth else 1))
                frames = np.empty((len(paths), rows, columns, *depth), np.uint8)
            if (rows, columns) != frames.shape[1:3]:
                raise BadInput(
                    path,
                    f"has {rows}x{columns} pixels, {paths[0].name} {frames.shape[1]}x{frames.shape[2]}",
                    "make all pictures of one size",
                )
            if image.mode not in MODES[take]:
                raise BadInput(
                    path,
                    f"is a {form} of mode {image.mode}, not {' or '.join(MODES[take])}",
                    "give the pictures of the source",
                )
            pixels = np.asarray(image.convert("RGB") if image.mode == "P" else image)
        if pixels.ndim == 3 and not depth:
            if take == GREY and (pixels != pixels[..., :1]).any():
                raise BadInput(path, "is a coloured picture, not grey levels", "give the pictures of the source")
            pixels = pixels[..., 0]
        frames[index] = pixels
    return frames


def _check_size(path: Path, shape: tuple[int, int], count: int) -> None:
    """Check the size before anything is decoded: what the header of a damaged picture states may fill any memory."""
    if min(shape) < 2 or 4 * count * shape[0] * shape[1] > ITEM_BYTES:
        raise BadInput(
            path, f"has {shape[0]}x{shape[1]} pixels, more than its data set allows", "make the pictures smaller"
        )
