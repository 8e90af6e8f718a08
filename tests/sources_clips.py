"""Clips of pictures, videos and simulated radars in the forms that their readers take: see ``fixtures``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from tests.fixtures import blob, png


def jpeg(path: Path, levels: np.ndarray, **options: object) -> Path:
    """A JPEG of (row, column) grey or (row, column, colour) levels, nearly without loss."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(levels, np.uint8)).save(path, quality=100, subsampling=0, **options)
    return path


# --- KTH ------------------------------------------------------------------------------------------


def kth_frame(number: int, shape: tuple[int, int] = (120, 160)) -> np.ndarray:
    """A grey level of its own for every number, and a cell: (row, column) uint8."""
    return (blob(shape, 60) + 40 + number % 150).astype(np.uint8)


def kth_folder(
    root: Path, numbers: Iterable[int], *, clip: str = "person01_boxing_d1_uncomp", shape: tuple[int, int] = (120, 160)
) -> Path:
    """Pictures ``image_0001.jpg`` of one clip, red, green and blue alike."""
    folder = root / clip.split("_")[1] / clip
    for number in numbers:
        jpeg(folder / f"image_{number:04}.jpg", np.repeat(kth_frame(number, shape)[..., None], 3, axis=-1))
    return folder


def kth_video(path: Path, frames: int = 12, *, shape: tuple[int, int] = (120, 160)) -> Path:
    """A video in MPEG-4 like the original ones; frame n, from 1, is ``kth_frame(n)``."""
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", format="avi") as file:
        stream = file.add_stream("mpeg4", rate=25)
        stream.height, stream.width = shape
        stream.pix_fmt, stream.bit_rate = "yuv420p", 4_000_000
        for number in range(1, frames + 1):
            levels = np.repeat(kth_frame(number, shape)[..., None], 3, axis=-1)
            for packet in stream.encode(av.VideoFrame.from_ndarray(levels, format="rgb24")):
                file.mux(packet)
        for packet in stream.encode():
            file.mux(packet)
    return path


def kth_list(path: Path, ranges: Mapping[str, str]) -> Path:
    """``00sequences.txt`` with a head in words, as it is published."""
    lines = "".join(f"{clip}\t\tframes\t{text}\n" for clip, text in ranges.items())
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"--- Sequences of the KTH database ---\n\nFrames of each person01 ... person25:\n\n{lines}")
    return path


def _kth_source(root: Path) -> Path:
    kth_folder(root / "kth", [1, 2, 3, 7, 8])
    kth_folder(root / "kth", [1, 2], clip="person17_walking_d2_uncomp")
    return root


# --- Human3.6M ------------------------------------------------------------------------------------


def human_frame(number: int, shape: tuple[int, int] = (24, 32)) -> np.ndarray:
    """(row, column, colour) uint8; red tells the number."""
    red = np.full(shape, number % 256)
    return np.stack([red, np.full(shape, 100), blob(shape, 200)], axis=-1).astype(np.uint8)


def human(
    root: Path, clips: Mapping[str, Iterable[tuple[str, int, int]]], *, shape: tuple[int, int] = (24, 32)
) -> Path:
    """``human/`` with lists of (video, first, last) by split, and all the pictures that they need."""
    for split, listed in clips.items():
        lines = []
        for video, first, last in listed:
            lines.append(f"images/{video}_,{first},{last}\n")
            for number in range(first, last + 1, 5):
                path = root / "human" / "images" / f"{video}_{number:06}.jpg"
                if not path.exists():
                    jpeg(path, human_frame(number, shape))
        (root / "human").mkdir(parents=True, exist_ok=True)
        (root / "human" / f"{split}.txt").write_text("".join(lines))
    return root / "human"


def _human_source(root: Path) -> Path:
    train = [("S1_Directions.54138969", 1, 36), ("S1_Directions.54138969", 11, 46)]
    human(root, {"train": train, "test": [("S11_Walking.60457274", 6, 41)]})
    return root


# --- GS2PM ----------------------------------------------------------------------------------------


def gs2pm(
    root: Path,
    domain: str = "hko7",
    sample: int = 1,
    *,
    split: str = "train",
    mode: str = "L",
    levels: np.ndarray | None = None,
) -> Path:
    """A sample: frame n, from 0, is ``levels`` + n, or a cell."""
    folder = root / split / domain / f"sample{sample}"
    if levels is None:
        levels = blob((16, 16), 200)
    for index in range(20):
        part, number = ("input", index + 1) if index < 10 else ("ground_truth", index - 9)
        frame = np.asarray(levels, int) + index
        if mode == "RGB" and frame.ndim == 3:
            Image.fromarray(frame.astype(np.uint8)).save(_made(folder / f"{part}{number}.png"))
        else:
            png(folder / f"{part}{number}.png", frame, mode)
    return folder


def _made(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _gs2pm_source(root: Path) -> Path:
    for split, sample in (("train", 1), ("train", 2), ("test", 1)):
        gs2pm(root / "data" / "pam", sample=sample, split=split)
    return root


# --- simulator ------------------------------------------------------------------------------------

RADAR = {
    "rows": 32,
    "columns": 40,
    "pixel_m": 2000,
    "start": "2020-06-01T12:00Z",
    "cadence_seconds": 300,
    "frames": 4,
    "motion": {"u": 10, "v": 5},
    "cells": {"per_100_km": 20, "size_km": [6, 16], "rain": [5, 60]},
    "layer": {"coverage": 0.4, "rain": 4, "scale_km": [10, 80]},
    "radius_km": 35,
    "seed": 1,
}


def simulator(path: Path, **changes: object) -> Path:
    """A file of settings; a change to None takes the key out."""
    settings = {key: value for key, value in (RADAR | changes).items() if value is not None}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(settings, sort_keys=False))
    return path


def _simulator_source(root: Path) -> Path:
    simulator(root / "radar.simulator.yaml")
    return root


SOURCES: dict[str, Callable[[Path], Path]] = {
    "kth": _kth_source,
    "human": _human_source,
    "gs2pm": _gs2pm_source,
    "simulator": _simulator_source,
}
"""Reader -> maker of a folder that it can read."""
