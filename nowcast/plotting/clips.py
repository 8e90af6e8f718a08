"""Pictures of single clips: frames as PNG, truth beside forecast as GIF, truth over forecast as a strip.

Frames are (T, C, H, W) uint8, with one channel (grey) or three (red, green, blue).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

GAP = 2
"""Pixels between frames."""
FRAME_MS = 200


def levels(frames: np.ndarray) -> np.ndarray:
    """Truncate frames on [0, 1] to 8 bits, as published code does; no data is black."""
    scaled = np.clip(np.nan_to_num(frames), 0, 1).astype(np.float32) * np.float32(255)
    return np.asarray(scaled.astype(np.uint8))


def write_frames(folder: Path, past: np.ndarray, seen: np.ndarray, made: np.ndarray) -> None:
    """Write ``gt1.png`` and so on, inputs and truth, and the forecast from ``pd11.png`` on if there are ten inputs."""
    folder.mkdir(parents=True)
    for number, frame in enumerate((*past, *seen), start=1):
        _picture(frame).save(folder / f"gt{number}.png")
    for number, frame in enumerate(made, start=len(past) + 1):
        _picture(frame).save(folder / f"pd{number}.png")


def write_gif(path: Path, past: np.ndarray, seen: np.ndarray, made: np.ndarray) -> None:
    """Write the clip as an endless GIF: what happened on the left, inputs and then the forecast on the right."""
    pairs = zip((*past, *seen), (*past, *made), strict=True)
    first, *others = [_picture(_joined(pair, axis=2)) for pair in pairs]
    first.save(path, save_all=True, append_images=others, duration=FRAME_MS, loop=0)


def write_strip(path: Path, past: np.ndarray, seen: np.ndarray, made: np.ndarray) -> None:
    """Write one picture: inputs and what happened in the upper row, below it the forecast under its valid times."""
    blank = [np.full_like(frame, 255) for frame in past]
    rows = [_joined(tuple(row), axis=2) for row in ((*past, *seen), (*blank, *made))]
    _picture(_joined(tuple(rows), axis=1)).save(path)


def _joined(frames: tuple[np.ndarray, ...], *, axis: int) -> np.ndarray:
    """Put frames (C, H, W) beside or below each other, with white gaps."""
    shape = list(frames[0].shape)
    shape[axis] = GAP
    gap = np.full(shape, 255, np.uint8)
    parts = [part for frame in frames for part in (gap, frame)][1:]
    return np.concatenate(parts, axis=axis)


def _picture(frame: np.ndarray) -> Image.Image:
    return Image.fromarray(frame[0] if len(frame) == 1 else np.moveaxis(frame, 0, 2))
