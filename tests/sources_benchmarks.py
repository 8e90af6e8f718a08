"""Small files in the exact formats of the benchmark data sets MeteoNet, CIKM 2017 and Shanghai radar.

``SOURCES`` makes a readable folder for each reader; the functions below it make single files whose
contents a test chooses.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timedelta
from pathlib import Path

import h5py
import numpy as np

from tests.fixtures import blob, png

# --- MeteoNet -------------------------------------------------------------------------------------

METEONET_START = datetime(2016, 8, 21)  # noqa: DTZ001 - MeteoNet's dates carry no zone
METEONET_TYPES = {"rainfall": np.int16, "reflectivity_old": np.int16, "reflectivity_new": np.int16}


def dates(*minutes: int) -> list[datetime]:
    """Minutes after the start of the part, as MeteoNet dates its frames."""
    return [METEONET_START + timedelta(minutes=minute) for minute in minutes]


def meteonet(
    path: Path, data: np.ndarray, times: Iterable[datetime], *, compressed: bool = True, **extra: np.ndarray
) -> Path:
    """One part of a month: ``data`` (time, row from the north, column), ``dates`` and ``miss_dates``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save = np.savez_compressed if compressed else np.savez
    times = np.array(list(times), object)
    save(path, data=data, dates=times, miss_dates=np.array(dates(5), object), **extra)
    return path


def meteonet_coordinates(
    folder: Path, zone: str, shape: tuple[int, int], *, lon: float = -5.837, lat: float = 51.891, step: float = 0.01
) -> Path:
    """Latitudes and longitudes of the pixel centres; of a small zone here."""
    lats, lons = np.meshgrid(lat - step * np.arange(shape[0]), lon + step * np.arange(shape[1]), indexing="ij")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"radar_coords_{zone}.npz"
    np.savez_compressed(path, lats=lats, lons=lons)
    return path


def meteonet_pickled(path: Path, pickled: bytes, count: int = 1, data: np.ndarray | None = None) -> Path:
    """A part of a month whose dates are any pickle."""
    path.parent.mkdir(parents=True, exist_ok=True)
    head, values = io.BytesIO(), io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": "|O", "fortran_order": False, "shape": (count,)})
    np.save(values, np.zeros((count, 4, 5), np.int16) if data is None else data)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data.npy", values.getvalue())
        archive.writestr("dates.npy", head.getvalue() + pickled)
    return path


def meteonet_clips(path: Path, clips: Mapping[str, np.ndarray]) -> Path:
    """DiffCast's ``meteo_radar.h5``: clips of dBZ as ``train/0`` ..., and their numbers at the root."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for split in ("train", "test"):
            file[f"{split}_len"] = sum(key.startswith(split) for key in clips)
            file.require_group(split)
        for key, clip in clips.items():
            file.create_dataset(key, data=clip.astype(np.uint8), compression="lzf")
    return path


def _meteonet_source(root: Path) -> Path:
    meteonet_coordinates(root, "NW", (40, 50))
    frames = np.stack([blob((40, 50), peak) for peak in (100, 150, 200)]).astype(np.int16)
    frames[:, :5, :5] = -1
    meteonet(root / "rainfall_NW_2016_08.3.npz", frames, dates(10, 15, 35))
    return root


# --- CIKM 2017 ------------------------------------------------------------------------------------


def cikm_line(name: str, levels: np.ndarray, rain: float = 12.5, separator: str = " ") -> str:
    """A sample (time, height, y, x) as a line of the contest's text."""
    return f"{name},{rain},{separator.join(map(str, levels.ravel().tolist()))}\n"


def cikm_levels(level: int = 80) -> np.ndarray:
    """Heights that tell from each other by their peaks; -1 in a corner."""
    field = blob((101, 101))
    levels = np.stack([np.round(field * (level + 10 * height)) for height in range(4)]).astype(int)
    levels[:, :2, :2] = -1
    return np.broadcast_to(levels, (15, 4, 101, 101)).copy()


def cikm(path: Path, samples: Mapping[str, np.ndarray], **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(cikm_line(name, levels, **options) for name, levels in samples.items()))
    return path


def cikm_clips(path: Path, clips: Mapping[str, np.ndarray]) -> Path:
    """DiffCast's ``cikm.h5``: ``train/sample_1`` ... (time, y, x), and their numbers at the root."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for split in ("train", "valid", "test"):
            file[f"{split}_len"] = sum(key.startswith(split) for key in clips)
        for key, clip in clips.items():
            file[key] = clip
    return path


def _cikm_source(root: Path) -> Path:
    cikm(root / "testA.txt", {"testA_1": cikm_levels(90)})
    cikm(root / "train.txt", {"train_1": cikm_levels(80), "train_2": cikm_levels(100)})
    return root


# --- Shanghai radar -------------------------------------------------------------------------------


def shanghai_event(root: Path, event: str, names: Iterable[str], shape: tuple[int, int] = (50, 60)) -> list[Path]:
    """The frames of an event, told apart by the grey level of their first pixel."""
    paths = []
    for number, name in enumerate(names):
        levels = np.round(blob(shape, 150))
        levels[0, 0] = number
        paths.append(png(root / "nh_radar_comp_echo" / event / f"{name}.png", levels))
    return paths


def shanghai_clips(path: Path, clips: Mapping[str, np.ndarray]) -> Path:
    """DiffCast's ``shanghai.h5``: ``train/0`` ... (time, y, x), and their number in each group."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for split in ("train", "test"):
            file[f"{split}/all_len"] = sum(key.startswith(split) for key in clips)
        for key, clip in clips.items():
            file.create_dataset(key, data=clip, compression="lzf")
    return path


def _shanghai_source(root: Path) -> Path:
    shanghai_event(root, "20160101", [f"20160101{hour:02}{minute:02}" for hour in range(4) for minute in (0, 6, 12)])
    return root


# --- SEVIR's clips --------------------------------------------------------------------------------


def sevir_clips(
    path: Path, past: np.ndarray, future: np.ndarray | None = None, kind: str = "", **options: object
) -> Path:
    """``nowcast_training.h5`` and the like: ``IN`` and ``OUT`` (clip, row from the south, column, frame)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    ending = f"_{kind}" if kind else ""
    with h5py.File(path, "a") as file:
        for name, frames in (("IN", past), ("OUT", future)):
            if frames is not None:
                file.create_dataset(name + ending, data=frames, maxshape=(None, *frames.shape[1:]), **options)
    return path


SOURCES: dict[str, Callable[[Path], Path]] = {
    "meteonet": _meteonet_source,
    "cikm2017": _cikm_source,
    "shanghai-radar": _shanghai_source,
}
"""Reader -> maker of a folder that it can read."""
