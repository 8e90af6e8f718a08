"""TaxiBJ: taxis that enter and leave the 32 x 32 cells of Beijing in half an hour.

``dataset.npz`` of the video prediction benchmarks: ``X_train``, ``Y_train``, ``X_test`` and ``Y_test``, float32
(sequence, 4, 2, 32, 32), scaled to [-1, 1] by the largest flow. The four frames of ``X`` and the four of ``Y``
that follow them are one sequence here. The file does not date them: time counts half hours from 1970.

Source: Zhang et al. (2017), Deep spatio-temporal residual networks for citywide crowd flows prediction
(arXiv:1610.00081); Tan et al. (2023), OpenSTL (arXiv:2306.11249).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import xarray as xr

from nowcast.core.cube import check, make
from nowcast.core.errors import BadInput
from nowcast.readers import arrays, pixels
from nowcast.readers.decoding import decoding
from nowcast.readers.items import ITEM_BYTES, Item, files, part, parts

TITLE = "TaxiBJ crowd flows of Beijing"
LICENCE = "research use, Microsoft Research (arXiv:1610.00081)"
CADENCE = None
FILE_BY_FILE = False
PATTERNS = ("dataset.npz",)

FORM = "TaxiBJ's dataset.npz"
SPLITS = ("train", "test")
CHANNELS = ("inflow", "outflow")
STEP = np.timedelta64(30, "m")


def recognises(path: Path) -> bool:
    """Whether an archive holds inputs and outputs of all splits."""
    return {f"{half}_{split}" for half in "XY" for split in SPLITS} <= arrays.names(path)


def find(source: Path) -> Iterator[Item]:
    """Find the sequences of a file or folder, training first, some hundred in an item."""
    for path in files(source, *PATTERNS):
        try:
            with decoding(path, FORM):
                halves = {split: _halves(path, split) for split in SPLITS}
            shapes = {split: (x.shape[0], (x.shape[1] + y.shape[1], *x.shape[2:])) for split, (x, y) in halves.items()}
            keys = [f"{split} {key}" for split, extent in shapes.items() for key in parts(*extent)]
        except BadInput:
            keys = [""]  # so that a damaged file is refused by itself, when it is read
        yield from (Item(path, key) for key in keys)


def read(item: Item) -> xr.Dataset:
    """Read some sequences: ``inflow`` and ``outflow``.

    Raises:
        BadInput: If the file is not this data set.
    """
    split, _, key = item.key.partition(" ")
    with decoding(item.path, FORM):
        halves = _halves(item.path, split if split in SPLITS else SPLITS[0])
        taken = part(Item(item.path, key))
        if split not in SPLITS or not 0 <= taken.start < taken.stop <= halves[0].shape[0]:
            raise BadInput(item.path, f"has no part {item.key}", "take items from find")
        values = np.concatenate([_taken(half, taken) for half in halves], axis=1)
        if np.isinf(values).any():
            raise BadInput(item.path, "holds infinite flows", "fetch it again")
    count, length = values.shape[:2]
    flows = values.reshape(count * length, *values.shape[2:])
    time = np.datetime64(0, "s") + np.tile(np.arange(length), count) * STEP
    labels = [f"{split}/{number}" for number in range(taken.start, taken.stop) for _ in range(length)]
    attrs = {"title": TITLE, "source": item.path.name, "licence": LICENCE, "institution": "Microsoft Research"}
    cube = make(
        {name: flows[:, place] for place, name in enumerate(CHANNELS)},
        time,
        pixels.picture(flows.shape[2:]),
        sequence=labels,
        split=split,
        attrs=attrs,
    )
    return check(cube, item)


def _halves(path: Path, split: str) -> list[arrays.Array]:
    """Read the inputs and outputs of a split, whose shapes agree."""
    halves = x, y = arrays.npz(path, [f"X_{split}", f"Y_{split}"])
    if len(x.shape) != 5 or x.shape[0] != y.shape[0] or x.shape[2:] != y.shape[2:] or x.shape[2] != len(CHANNELS):
        raise BadInput(path, f"holds {x.shape} and {y.shape}", "give (sequence, frame, 2, row, column) twice")
    if any(half.dtype.kind != "f" or not math.prod(half.shape) for half in halves):
        raise BadInput(path, "holds no floats", "get the file scaled to [-1, 1]")
    if 4 * math.prod(x.shape[1:]) + 4 * math.prod(y.shape[1:]) > ITEM_BYTES:
        raise BadInput(path, f"has sequences of {x.shape[1:]}", "cut them into shorter ones")
    return halves


def _taken(half: arrays.Array, taken: slice) -> np.ndarray:
    size, count = math.prod(half.shape[1:]), taken.stop - taken.start
    values = arrays.read(half, taken.start * size, count * size)
    return values.astype(np.float32, copy=False).reshape(count, *half.shape[1:])
