"""Moving MNIST and its relatives: two digits that drift over a black square, 20 frames a clip.

Three forms are read:

- fixed test sets ``mnist_test_seq.npy``, ``fmnist_test_seq.npy`` and ``mnist_cifar_test_seq.npy``: uint8
  (20, clip, 64, 64), time first; the last one in colour, (20, clip, 64, 64, 3);
- ``moving-mnist-{train,valid,test}.npz`` of E3D-LSTM and PredRNN: one long run of frames, and in
  ``clips`` the first frame and the length of the input and of the output of every clip;
- the digits themselves, ``train-images-idx3-ubyte.gz`` and ``t10k-...``: the nominal 10,000 clips are
  made from them, the same ones every time, see ``nowcast.readers.moving_images``.

In a folder that holds grey and coloured sets the grey ones are taken; name the file of the coloured one.

Source: Srivastava et al. (2015), Unsupervised learning of video representations using LSTMs
(arXiv:1502.04681); Tan et al. (2023), OpenSTL (arXiv:2306.11249).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from functools import lru_cache
from itertools import repeat
from pathlib import Path

import numpy as np
import xarray as xr

from nowcast.core.errors import BadInput
from nowcast.readers import arrays, moving_images, pixels
from nowcast.readers.decoding import decoding
from nowcast.readers.items import ITEM_BYTES, Item, files, part, parts

TITLE = "Moving MNIST"
LICENCE = "MNIST digits: CC BY-SA 3.0, Y. LeCun and C. Cortes; clips: see arXiv:1502.04681"
CADENCE = None
FILE_BY_FILE = False
PATTERNS = ("*mnist*_test_seq.npy", "moving-mnist-*.npz", "*-images?idx3-ubyte", "*-images?idx3-ubyte.gz")

FORM = "a set of Moving MNIST"
KEYS = ("clips", "dims", "input_raw_data")
MADE, FRAMES, CANVAS = 10_000, 20, 64
"""Clips made from digits, and their shape."""
SEED = 0
MOST_CLIPS = 1_000_000


def recognises(path: Path) -> bool:
    """Whether this is an archive, a test set or a file of digits, by keys and shapes."""
    if path.suffix.lower() == ".npz":
        return set(KEYS) <= arrays.names(path)
    if path.suffix.lower() == ".npy":
        return len(_test_set(path).shape) in (4, 5)
    return moving_images.idx_shape(path)[0] > 0


def find(source: Path) -> Iterator[Item]:
    """Find the clips of a file or folder, some hundred in an item."""
    paths = files(source, *PATTERNS)
    grey = [path for path in paths if "cifar" not in path.name]
    for path in grey or paths:
        try:
            with decoding(path, FORM):
                keys = list(parts(*_extent(path)))
        except BadInput:
            keys = [""]  # so that a damaged file is refused by itself, when it is read
        yield from (Item(path, key) for key in keys)


def read(item: Item) -> xr.Dataset:
    """Read some clips: ``intensity``, or ``red``, ``green`` and ``blue``, from 0 to 1.

    Raises:
        BadInput: If the file is not such a set.
    """
    path = item.path
    with decoding(path, FORM):
        count, _ = _extent(path)
        taken = part(item)
        if not 0 <= taken.start < taken.stop <= count:
            raise BadInput(path, f"has no clips {item.key} of {count}", "take items from find")
        clips = {".npz": _listed, ".npy": _stacked}.get(path.suffix.lower(), _made)(path, taken)
    attrs = {"title": TITLE, "source": path.name, "licence": LICENCE}
    labels = (f"{_name(path)}/{number}" for number in range(taken.start, taken.stop))
    return pixels.video(item, zip(labels, repeat(0), clips), split=_split(path), attrs=attrs)


def _extent(path: Path) -> tuple[int, tuple[int, ...]]:
    """Clips of a file, and the shape of one."""
    if path.suffix.lower() == ".npz":
        table, inputs, _ = _archive(path)
        return table.shape[1], (_longest(table), *inputs.shape[2:])
    if path.suffix.lower() == ".npy":
        shape = _test_set(path).shape
        return shape[1], (shape[0], *shape[2:])
    moving_images.idx_shape(path)
    return MADE, (FRAMES, CANVAS, CANVAS)


def _name(path: Path) -> str:
    """Name the clips of a file, differently for all files of the family."""
    stem = re.split(r"\.npy|\.npz|.idx3", path.name)[0]
    if path.suffix.lower() in (".npy", ".npz"):
        return "test" if stem == "mnist_test_seq" else stem.removesuffix("_seq")
    fashion = re.search("fmnist|fashion", path.absolute().parent.name, re.IGNORECASE)
    return f"fashion-{stem}" if fashion else stem


def _split(path: Path) -> str:
    return next((split for split in ("train", "valid") if split in path.name), "test")


# --- the three forms ------------------------------------------------------------------------------


def _test_set(path: Path) -> arrays.Array:
    array = arrays.npy(path)
    shape = array.shape
    if array.dtype != np.uint8 or len(shape) not in (4, 5) or shape[4:] not in ((), (3,)) or not math.prod(shape):
        raise BadInput(path, f"holds {shape} of {array.dtype}", "give (frame, clip, row, column) of uint8")
    _check_clip(path, shape[0], shape[2:])
    return array


def _stacked(path: Path, taken: slice) -> list[np.ndarray]:
    """Clips of a set with time first."""
    array = _test_set(path)
    length, clips, *frame = array.shape
    size, count = math.prod(frame), taken.stop - taken.start
    rows = [arrays.read(array, (time * clips + taken.start) * size, count * size) for time in range(length)]
    return list(np.stack([row.reshape(count, *frame) for row in rows], axis=1))


def _archive(path: Path) -> tuple[np.ndarray, arrays.Array, arrays.Array]:
    """(2, clip, 2) first frame and length of inputs and outputs, and the runs of frames that both are cut from."""
    clips, dims, inputs = arrays.npz(path, KEYS)
    if len(clips.shape) != 3 or (clips.shape[0], clips.shape[2]) != (2, 2) or clips.shape[1] > MOST_CLIPS:
        raise BadInput(path, f"has clips of shape {clips.shape}, not (2, n, 2)", "choose the reader for this file")
    outputs = arrays.npz(path, ["output_raw_data"])[0] if dims.shape == (2, 3) else inputs
    if clips.dtype.kind not in "iu":
        raise BadInput(path, f"lists clips as {clips.dtype}", "fetch it again")
    table = arrays.read(clips, 0, math.prod(clips.shape)).reshape(clips.shape).astype(np.int64)
    table = table.clip(-1, 2**40)  # whatever is beyond is refused, and must not overflow
    for run, first, length in zip((inputs, outputs), table[..., 0], table[..., 1], strict=True):
        if len(run.shape) != 4 or run.shape[1:] != (1, *inputs.shape[2:]) or not math.prod(run.shape):
            raise BadInput(path, f"holds frames of shape {run.shape}, not (n, 1, rows, columns)", "fetch it again")
        if min(first.min(), length.min(), *(run.shape[0] - first - length)) < 0:
            raise BadInput(path, f"lists clips beyond its {run.shape[0]} frames", "fetch it again")
    _check_clip(path, _longest(table), inputs.shape[2:])
    return table, inputs, outputs


def _longest(table: np.ndarray) -> int:
    return int(table[..., 1].sum(axis=0).max())


def _check_clip(path: Path, length: int, frame: tuple[int, ...]) -> None:
    if 4 * length * math.prod(frame) > ITEM_BYTES:
        raise BadInput(path, f"has clips of {length} frames of {frame}", "cut them into shorter ones")


def _listed(path: Path, taken: slice) -> list[np.ndarray]:
    """Clips of an archive: inputs, then outputs."""
    table, inputs, outputs = _archive(path)
    first, second = table[:, taken].tolist()
    frames = _cut(inputs, first + second) if inputs is outputs else _cut(inputs, first) + _cut(outputs, second)
    return [np.concatenate(pair) for pair in zip(frames[: len(first)], frames[len(first) :], strict=True)]


def _cut(run: arrays.Array, pieces: list[list[int]]) -> list[np.ndarray]:
    """Read the frames of each (first, length), in one go where little lies between them."""
    frame, count = run.shape[2:], sum(length for _, length in pieces)
    low, high = min(first for first, _ in pieces), max(first + length for first, length in pieces)
    if high - low > 2 * count:
        return [piece for first, length in pieces for piece in _cut(run, [[first, length]])]
    block = arrays.read(run, low * math.prod(frame), (high - low) * math.prod(frame)).reshape(-1, *frame)
    return [block[first - low : first - low + length] for first, length in pieces]


def _made(path: Path, taken: slice) -> list[np.ndarray]:
    """Clips made from digits."""
    stat = path.stat()
    digits = _digits(path, stat.st_size, stat.st_mtime_ns)
    made = moving_images.MovingImages(digits, canvas=CANVAS, frames=FRAMES, seed=SEED)
    return list(made.clips(np.arange(taken.start, taken.stop)))


@lru_cache(maxsize=1)
def _digits(path: Path, size: int, modified: int) -> np.ndarray:
    """Pictures of one version of a file: all of them, for any may be in the next clip."""
    return moving_images.load_images(path)
