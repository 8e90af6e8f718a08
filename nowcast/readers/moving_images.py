"""Moving MNIST made on the fly, from digits or any other small pictures.

Each clip shows a few pictures that drift over a black canvas, turn at its borders and cover one
another by the larger grey level. Every clip follows from its number and the seed alone, whichever
process asks for it and in whatever order.

Start, direction and picture are uniform. As in the generators of Srivastava et al. (2015,
arXiv:1502.04681) and OpenSTL, whose fixed test sets these clips are to resemble, a picture that would
cross a border stops there for a frame and turns; ``elastic`` reflects the rest of its step instead.
"""

from __future__ import annotations

import gzip
import math
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image

from nowcast.core.errors import BadInput
from nowcast.readers import arrays
from nowcast.readers.decoding import decoding
from nowcast.readers.items import files

IDX_IMAGES = 0x803
"""Magic number of an idx file of bytes in three dimensions."""
LARGEST = 2**28
"""Bytes of the pictures that are held in memory."""
PICTURES = ("*.png", "*.jpg", "*.jpeg", "*.bmp")
DRAWS = 4
"""Random numbers of an object: picture, row, column, direction."""
MOST = 3
"""Objects in a clip."""
TOGETHER = 16
"""Clips painted at a time: as many as the cache of a processor holds."""


class MovingImages:
    """Clips of moving pictures, see the module.

    Args:
        images: (image, row, column) uint8 grey levels, no larger than the canvas.
        canvas: Rows and columns of a frame.
        frames: Of a clip.
        count: Pictures in a clip, 1 to 3; or several such numbers, one of which is drawn for each clip.
        step: Way of a frame, in units of the range that a picture is free to move in.
        seed: Other clips for another one.
        elastic: How a picture turns at a border, see the module.

    Raises:
        ValueError: If there are no such pictures or they do not fit.
    """

    def __init__(
        self,
        images: np.ndarray,
        *,
        canvas: int = 64,
        frames: int = 20,
        count: int | Sequence[int] = 2,
        step: float = 0.1,
        seed: int,
        elastic: bool = False,
    ) -> None:
        if images.ndim != 3 or images.dtype != np.uint8 or not images.size:
            raise ValueError(f"Pictures are {images.shape} of {images.dtype}; give (image, row, column) of uint8.")
        if max(images.shape[1:]) > canvas:
            raise ValueError(f"Pictures of {images.shape[1]}x{images.shape[2]} pixels do not fit a canvas of {canvas}.")
        counts = np.atleast_1d(np.asarray(count))
        if not counts.size or counts.min() < 1 or counts.max() > MOST or frames < 1 or not 0 <= step <= 1:
            raise ValueError(f"A clip needs 1 to {MOST} objects, a frame and a step of 0 to 1.")
        self.images, self.canvas, self.frames, self.counts = images, canvas, frames, counts
        self.step, self.elastic = step, elastic
        self.free = canvas - np.array(images.shape[1:])
        self.key = _mixed(np.array([seed % 2**64], np.uint64))

    def clip(self, index: int) -> np.ndarray:
        """(frame, row, column) uint8 of one clip."""
        clip: np.ndarray = self.clips([index])[0]
        return clip

    def clips(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """(clip, frame, row, column) uint8; the clips of ``indices`` in their order."""
        numbers = np.asarray(indices, np.uint64)
        (picked, paths), shown = self._drawn(numbers), self.shown(numbers)
        corners = (paths * self.free).astype(np.int64)
        shift, most = corners @ [self.canvas, 1], int(self.free @ [self.canvas, 1])
        # Rows after one another, the canvas is one run of pixels in which a picture is only shifted: every frame is
        # a window on a run that holds the picture once, with black before and behind it.
        rows, columns = self.images.shape[1:]
        runs = np.zeros((TOGETHER, most + self.canvas**2), np.uint8)
        places = runs[:, most : most + rows * self.canvas].reshape(TOGETHER, rows, self.canvas)[..., :columns]
        windows, which = sliding_window_view(runs, self.canvas**2, axis=1), np.arange(TOGETHER)[:, None]
        clips = np.zeros((len(picked), self.frames, self.canvas**2), np.uint8)
        for first in range(0, len(picked), TOGETHER):
            now = slice(first, min(first + TOGETHER, len(picked)))
            number = now.stop - first
            for thing in range(picked.shape[1]):
                places[:number] = self.images[picked[now, thing]]
                places[:number][shown[now] <= thing] = 0
                np.maximum(clips[now], windows[which[:number], most - shift[now, thing]], out=clips[now])
        return clips.reshape(-1, self.frames, self.canvas, self.canvas)

    def shown(self, indices: np.ndarray) -> np.ndarray:
        """Return the number of objects of each clip."""
        bits = _mixed(_mixed(np.asarray(indices, np.uint64)) ^ ~self.key)
        chosen: np.ndarray = self.counts[(bits % np.uint64(self.counts.size)).astype(np.int64)]
        return chosen

    def paths(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """(clip, object, frame, 2) rows and columns of the upper left corners, in units of the free range.

        Where the number of objects differs between clips, a clip with fewer has paths of others that it does not show.
        """
        return self._drawn(np.asarray(indices, np.uint64))[1]

    def _drawn(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(clip, object) pictures and their paths."""
        most = int(self.counts.max())
        counter = indices[:, None] * np.uint64(DRAWS * MOST) + np.arange(DRAWS * most, dtype=np.uint64)
        bits = _mixed(_mixed(counter) ^ self.key)
        drawn = ((bits >> np.uint64(11)) * 2.0**-53).reshape(-1, most, DRAWS)
        angle = 2 * np.pi * drawn[..., 3]
        velocity = self.step * np.stack([np.sin(angle), np.cos(angle)], axis=-1)
        travel = _reflected if self.elastic else _stopping
        return (drawn[..., 0] * len(self.images)).astype(np.int64), travel(drawn[..., 1:3], velocity, self.frames)


def load_images(path: Path) -> np.ndarray:
    """(image, row, column) uint8 grey levels of an idx file, plain or gzipped, of an ``.npy``, or of a folder.

    Pictures in a folder come in natural order of their names, as they are: all of one size.

    Raises:
        BadInput: If they are not there or are something else.
    """
    with decoding(path, "a set of pictures"):
        if path.is_dir():
            return _folder(path)
        if path.suffix.lower() == ".npy":
            array = arrays.npy(path)
            if array.dtype != np.uint8 or len(array.shape) != 3:
                raise BadInput(path, f"holds {array.shape} of {array.dtype}", "give (image, row, column) of uint8")
            _check_size(path, array.shape)
            return arrays.read(array, 0, math.prod(array.shape)).reshape(array.shape)
        with _opened(path) as stream:
            shape = _idx_head(path, stream)
            _check_size(path, shape)
            pixels = stream.read(math.prod(shape) + 1)  # the end of a gzip file holds its checksum
    if len(pixels) != math.prod(shape):
        raise BadInput(path, f"does not hold {shape[0]} pictures of {shape[1]}x{shape[2]} pixels", "fetch it again")
    return np.frombuffer(pixels, np.uint8).reshape(shape)


def idx_shape(path: Path) -> tuple[int, int, int]:
    """Images, rows and columns of an idx file, from its head.

    Raises:
        BadInput: If it has no such head.
    """
    with decoding(path, "pictures in idx format"), _opened(path) as stream:
        return _idx_head(path, stream)


def _idx_head(path: Path, stream: BinaryIO) -> tuple[int, int, int]:
    magic, images, rows, columns = struct.unpack(">4I", stream.read(16))
    if magic != IDX_IMAGES:
        raise BadInput(path, f"begins with {magic:#x}, not like pictures in idx format", "give a file of images")
    return images, rows, columns


def _opened(path: Path) -> BinaryIO:
    return gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb")  # type: ignore[return-value]


def _folder(path: Path) -> np.ndarray:
    pictures = files(path, *PICTURES)
    with Image.open(pictures[0]) as image:
        shape = (len(pictures), image.size[1], image.size[0])
    _check_size(path, shape)
    images = np.empty(shape, np.uint8)
    for place, picture in enumerate(pictures):
        with decoding(picture, "a picture"), Image.open(picture) as image:
            if image.size != shape[:0:-1]:
                raise BadInput(
                    picture,
                    f"has {image.size[1]}x{image.size[0]} pixels, not {shape[1]}x{shape[2]}",
                    "give pictures of one size",
                )
            images[place] = np.asarray(image.convert("L"))
    return images


def _check_size(path: Path, shape: tuple[int, ...]) -> None:
    if not 0 < math.prod(shape) <= LARGEST:
        raise BadInput(path, f"holds {' x '.join(map(str, shape))} pixels", f"give 1 to {LARGEST:,}")


# --- motion ---------------------------------------------------------------------------------------


def _mixed(counter: np.ndarray) -> np.ndarray:
    """Random 64 bits for every number: SplitMix64 (Steele et al., 2014, doi:10.1145/2714064.2660195)."""
    state = (counter + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def _stopping(place: np.ndarray, velocity: np.ndarray, frames: int) -> np.ndarray:
    """(..., frame, 2) places in [0, 1] after each step, which a border cuts short."""
    path = np.empty((*place.shape[:-1], frames, 2))
    for frame in range(frames):
        place = np.clip(place + velocity, 0, 1)
        velocity = np.where((place == 0) | (place == 1), -velocity, velocity)
        path[..., frame, :] = place
    return path


def _reflected(place: np.ndarray, velocity: np.ndarray, frames: int) -> np.ndarray:
    """(..., frame, 2) places in [0, 1] after each step, of which the borders reflect what lies beyond."""
    steps = np.arange(1, frames + 1)[:, None]
    unfolded = (place[..., None, :] + velocity[..., None, :] * steps) % 2
    return np.minimum(unfolded, 2 - unfolded)
