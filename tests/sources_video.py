"""Small files in the exact formats of the video benchmarks, see ``fixtures``."""

from __future__ import annotations

import gzip
import io
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import google_crc32c
import h5py
import numpy as np
from PIL import Image

from tests.fixtures import blob


def _fresh(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def drift(frames: int, shape: tuple[int, int] = (64, 64)) -> np.ndarray:
    """(frame, row, column) uint8: a spot that drifts to the right."""
    spot = blob(shape, 250).astype(np.uint8)
    return np.stack([np.roll(spot, frame, axis=1) for frame in range(frames)])


def coloured(frames: int, shape: tuple[int, int] = (64, 64)) -> np.ndarray:
    """(frame, row, column, colour) uint8, in which no colour is like another."""
    grey = drift(frames, shape)
    return np.stack([grey, grey // 2, 255 - grey], axis=-1)


# --- Moving MNIST ---------------------------------------------------------------------------------


def fixed_set(path: Path, clips: np.ndarray | None = None) -> Path:
    """A fixed test set: clips (clip, frame, ...) are stored with the frame first."""
    if clips is None:
        clips = np.stack([drift(20) // (number + 1) for number in range(3)])
    np.save(_fresh(path), np.swapaxes(clips, 0, 1))
    return path


def archive(
    path: Path,
    clips: np.ndarray | None = None,
    *,
    lists: np.ndarray | None = None,
    packed: bool = False,
    seen: int = 10,
    **changes: np.ndarray,
) -> Path:
    """An archive of E3D-LSTM: clips (clip, frame, row, column) uint8 one after another, cut after ``seen`` frames."""
    if clips is None:
        clips = np.stack([drift(20) // (number + 1) for number in range(3)])
    number, length, rows, columns = clips.shape
    if lists is None:
        first = np.arange(number) * length
        lists = np.array([[(start, seen) for start in first], [(start + seen, length - seen) for start in first]])
    frames = (clips / 255).astype(np.float32).reshape(-1, 1, rows, columns)
    contents = {
        "clips": lists.astype(np.int32),
        "dims": np.array([[1, rows, columns]], np.int32),
        "input_raw_data": frames,
    } | changes
    (np.savez_compressed if packed else np.savez)(_fresh(path), **contents)
    return path


def idx(path: Path, images: np.ndarray | None = None, *, magic: int = 0x803, declared: int | None = None) -> Path:
    """Pictures (image, row, column) in idx format; gzipped if the name says so."""
    if images is None:
        images = np.stack([np.eye(28, dtype=np.uint8) * (number + 1) for number in range(5)])
    head = struct.pack(">4I", magic, len(images) if declared is None else declared, *images.shape[1:])
    content = head + images.tobytes()
    _fresh(path).write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def _moving_mnist_source(root: Path) -> Path:
    fixed_set(root / "moving_mnist" / "mnist_test_seq.npy")
    archive(root / "moving_mnist" / "moving-mnist-train.npz", packed=True)
    return root


# --- BAIR -----------------------------------------------------------------------------------------


def _varint(number: int) -> bytes:
    groups = []
    while number > 127:
        groups.append(number & 127 | 128)
        number >>= 7
    return bytes([*groups, number])


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def example(features: Mapping[str, bytes | Sequence[float]]) -> bytes:
    """A ``tf.train.Example`` of byte strings and of floats."""
    entries = b""
    for name, value in features.items():
        if isinstance(value, bytes):
            feature = _field(1, _field(1, value))
        else:
            feature = _field(2, _field(1, struct.pack(f"<{len(value)}f", *value)))
        entries += _field(1, _field(1, name.encode()) + _field(2, feature))
    return _field(1, entries)


def trajectory(frames: np.ndarray, *, numbers: Iterable[int] | None = None) -> bytes:
    """A record of BAIR: two cameras, of which the main one is black, the action and the place of the arm."""
    features: dict[str, bytes | Sequence[float]] = {}
    for number, frame in zip(range(len(frames)) if numbers is None else numbers, frames, strict=True):
        features[f"{number}/action"] = (0.1, 0.2, 0.3, 0.4)
        features[f"{number}/endeffector_pos"] = (0.5, 0.6, 0.7)
        features[f"{number}/image_aux1/encoded"] = frame.tobytes()
        features[f"{number}/image_main/encoded"] = bytes(frame.nbytes)
    return example(features)


def _masked(content: bytes) -> bytes:
    crc = google_crc32c.value(content)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def records(path: Path, contents: Iterable[bytes]) -> Path:
    """A file of TensorFlow's records."""
    with _fresh(path).open("wb") as stream:
        for content in contents:
            length = struct.pack("<Q", len(content))
            stream.write(length + _masked(length) + content + _masked(content))
    return path


def _bair_source(root: Path) -> Path:
    for place in ("train/traj_0_to_255", "train/traj_256_to_511", "test/traj_0_to_255"):
        records(root / "softmotion30_44k" / f"{place}.tfrecords", [trajectory(coloured(3)), trajectory(coloured(2))])
    return root


# --- TaxiBJ ---------------------------------------------------------------------------------------


def taxibj(path: Path, *, packed: bool = False, train: int = 3, test: int = 2, **changes: np.ndarray) -> Path:
    """Sequences of which inputs and outputs are ramps from -1 to 1, all values different."""
    contents = {}
    for split, count in (("train", train), ("test", test)):
        values = np.linspace(-1, 1, count * 8 * 2 * 32 * 32, dtype=np.float32).reshape(count, 8, 2, 32, 32)
        contents |= {f"X_{split}": values[:, :4], f"Y_{split}": values[:, 4:]}
    (np.savez_compressed if packed else np.savez)(_fresh(path), **contents | changes)
    return path


def _taxibj_source(root: Path) -> Path:
    taxibj(root / "taxibj" / "dataset.npz")
    return root


# --- KITTI and Caltech ----------------------------------------------------------------------------


def hickled(path: Path, frames: np.ndarray | None = None, *, version: int = 2) -> Path:
    """An array by hickle."""
    if frames is None:
        frames = coloured(6, (128, 160))
    with h5py.File(_fresh(path), "w") as file:
        file.attrs["CLASS"], file.attrs["VERSION"] = "hickle", version
        node = file.create_dataset("data_0" if version in (2, 3) else "data", data=frames, compression="gzip")
        node.attrs["type"] = [b"ndarray"]
    return path


def hickled_texts(path: Path, texts: Sequence[str], *, version: int = 2) -> Path:
    """A list of texts by hickle, as versions 1 to 3 (one array) or 5 (characters and references) write it."""
    with h5py.File(_fresh(path), "w") as file:
        file.attrs["CLASS"], file.attrs["VERSION"] = "hickle", version
        if version < 4:
            name = "data" if version == 1 else "data_0"
            file.create_dataset(name, data=[text.encode() for text in texts]).attrs["type"] = [b"<type 'list'>"]
            return path
        group, known = file.create_group("data"), dict[str, h5py.Dataset]()
        for number, text in enumerate(texts):
            if text in known:
                group.create_dataset(f"data{number}", data=known[text].ref, dtype=h5py.ref_dtype)
            else:
                known[text] = group.create_dataset(f"data{number}", data=np.array([list(text)], "S1"))
    return path


def kitti(
    folder: Path,
    part: str = "train",
    *,
    frames: np.ndarray | None = None,
    version: int = 2,
    sources: Sequence[str] = ("city-a", "city-a", "city-a", "city-a", "road-b", "road-b"),
) -> Path:
    hickled_texts(folder / f"sources_{part}.hkl", sources, version=version)
    return hickled(folder / f"X_{part}.hkl", frames, version=version)


def cached(path: Path, frames: np.ndarray | None = None, starts: Iterable[int] = (0, 11)) -> Path:
    """Frames of the benchmark in one array, and beside it where clips begin."""
    if frames is None:
        frames = np.repeat(coloured(2, (128, 160)), 11, axis=0)
    np.save(_fresh(path), frames)
    name = {"data_cache.npy": "indices_cache.npy"}.get(path.name, path.name.replace("data", "idx"))
    np.save(path.with_name(name), np.array(list(starts), np.int32))
    return path


def film(
    path: Path,
    frames: np.ndarray,
    *,
    gap: int = 16,
    form: int = 201,
    stated: int | None = None,
    size: tuple[int, int] | None = None,
    magic: int = 0xFEED,
) -> Path:
    """A film of Norpix's seq format; ``gap`` bytes follow each picture, of which the first 8 are its time."""
    rows, columns = size or frames.shape[1:3]
    title = "Norpix seq".encode("utf-16-le")
    count = len(frames) if stated is None else stated
    head = struct.pack(
        "<I24sii512s9Id432x",
        magic,
        title,
        3,
        1024,
        b"",
        columns,
        rows,
        24,
        8,
        rows * columns * 3,
        form,
        count,
        0,
        rows * columns * 3 + 512,
        30.0,
    )
    with _fresh(path).open("wb") as stream:
        stream.write(head)
        for number, frame in enumerate(frames):
            jpeg = io.BytesIO()
            Image.fromarray(frame).save(jpeg, "JPEG", quality=95)
            stamp = struct.pack("<IHH", 1_000_000 + number // 30, number % 30 * 33, 0)
            stream.write(struct.pack("<I", len(jpeg.getvalue()) + 4) + jpeg.getvalue() + stamp + bytes(gap - 8))
    return path


def _kitticaltech_source(root: Path) -> Path:
    kitti(root / "kitti_hkl")
    kitti(root / "kitti_hkl", "val", version=5)
    cached(root / "caltech" / "data_cache.npy")
    return root


SOURCES: dict[str, Callable[[Path], Path]] = {
    "moving-mnist": _moving_mnist_source,
    "bair": _bair_source,
    "taxibj": _taxibj_source,
    "kitticaltech": _kitticaltech_source,
}
"""Reader -> maker of a folder that it can read."""
