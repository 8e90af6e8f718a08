"""Windows of frames from stores, as batches in [0, 1] for a network.

A window is ``in_steps + out_steps`` consecutive frames of one sequence. It never crosses a gap, a
sequence or the border of a span. What is drawn depends on the seed and the epoch alone, not on the
number of loader processes.

Shape letters: K crops, T time, C channel, H height, W width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
import xarray as xr
from torch.utils.data import DataLoader, Dataset, Sampler

from nowcast import store
from nowcast.config import ConfigError, Span, WindowSettings
from nowcast.cube import channels, utc
from nowcast.units import MARSHALL_PALMER, convert, quantity

MISSING = -1
CELL = 8
"""Pixels per cell of the coarse grid on which crops are weighed."""
Batch = dict[str, torch.Tensor]
"""``past`` and ``future`` float32 in [0, 1], ``mask`` 1 where the future was measured; BTCHW."""


@dataclass(frozen=True)
class Window:
    """One window: which store, which frames (``MISSING`` where a tolerated one is not there)."""

    span: int
    frames: tuple[int, ...]


class Windows(Dataset):
    """All windows of some spans; an item is (window, seed) -> crops of that window."""

    def __init__(self, spans: Sequence[Span], settings: WindowSettings, *, augment: bool) -> None:
        self.spans, self.settings, self.augment = tuple(spans), settings, augment
        scaling = settings.scaling.build() if settings.scaling else quantity(settings.quantity).scaling
        self.scaling = scaling
        self.cubes: dict[int, xr.Dataset] = {}
        self.versions = [store.snapshot(span.store) for span in self.spans]
        self.windows = [window for index in range(len(self.spans)) for window in self._index(index)]
        if not self.windows:
            raise ConfigError(f"No window of {self._length} unbroken frames in {', '.join(map(_name, self.spans))}.")

    @property
    def _length(self) -> int:
        return self.settings.in_steps + self.settings.out_steps

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, drawn: tuple[int, int]) -> Batch:
        """Decodes window ``drawn[0]`` and cuts its crops at random by ``drawn[1]``."""
        index, seed = drawn
        rng = np.random.default_rng(seed)
        fields = self.scaling.encode(self._fields(self.windows[index]))
        crops = [self._turn(crop, rng) for crop in self._crops(fields, rng)]
        frames_KTCHW = torch.from_numpy(np.ascontiguousarray(np.stack(crops)))[:, :, None]
        past, future = frames_KTCHW.split([self.settings.in_steps, self.settings.out_steps], dim=1)
        mask = torch.isfinite(future)
        return {"past": past.nan_to_num(0.0), "future": future.nan_to_num(0.0), "mask": mask.float()}

    def cube(self, span: int) -> xr.Dataset:
        """The store of a span, opened once per process at the version the index was made from."""
        if span not in self.cubes:
            self.cubes[span] = store.open_store(self.spans[span].store, version=self.versions[span])
        return self.cubes[span]

    def __getstate__(self) -> dict:
        return self.__dict__ | {"cubes": {}}

    def frames(self, span: int) -> set[np.datetime64]:
        """Times of all frames that the windows of a span touch."""
        used = sorted({frame for window in self.windows if window.span == span for frame in window.frames} - {MISSING})
        return set(self.cube(span)["time"].values[used])

    @property
    def step_seconds(self) -> int:
        """Time between the frames that go in: the median over all windows."""
        steps = [np.diff(self.cube(window.span)["time"].values[list(window.frames[: self.settings.in_steps + 1])])
                 for window in self.windows if MISSING not in window.frames]  # fmt: skip
        return int(np.median(np.concatenate(steps)) / np.timedelta64(1, "s"))

    def _index(self, span: int) -> Iterator[Window]:
        cube = self.cube(span)
        stamps, labels = cube["time"].values, cube["sequence"].values
        start, end = self.spans[span].start, self.spans[span].end
        inside = np.ones(stamps.size, bool)
        if start:
            inside &= stamps >= utc(start)
        if end:
            inside &= stamps < utc(end)
        starts = np.flatnonzero(np.concatenate([[True], labels[1:] != labels[:-1]]))
        for first, last in zip(starts, [*starts[1:], labels.size], strict=True):
            frames = np.arange(first, last)[inside[first:last]]
            slots = _slots(frames, stamps, cube.attrs)
            for begin in range(0, slots.size - self._length + 1, self.settings.stride):
                yield Window(span, tuple(slots[begin : begin + self._length].tolist()))

    def _fields(self, window: Window) -> np.ndarray:
        """(time, y, x) in the quantity of the settings."""
        cube = self.cube(window.span)
        names, wanted = channels(cube), self.settings.quantity
        name = wanted if wanted in names else names[0]
        present = [frame for frame in window.frames if frame != MISSING]
        values = cube[name][present[0] : present[-1] + 1].values
        if len(present) < len(window.frames):
            full = np.full((len(window.frames), *values.shape[1:]), np.nan, np.float32)
            full[np.asarray(window.frames) != MISSING] = values
            values = full
        zr = (cube.attrs["zr_a"], cube.attrs["zr_b"]) if "zr_a" in cube.attrs else MARSHALL_PALMER
        return convert(values, name, wanted, zr=zr)

    def _crops(self, fields: np.ndarray, rng: np.random.Generator) -> Iterator[np.ndarray]:
        side = self.settings.crop
        rows, columns = fields.shape[1:]
        if side is None:
            yield fields
            return
        if min(rows, columns) < side:
            raise ConfigError(f"crop {side} is larger than the grid ({rows} x {columns}).")
        weights = _crop_weights(fields, side, self.settings.rain_weight)
        for cell in rng.choice(weights.size, size=self.settings.crops_per_window, p=weights.ravel()):
            row, column = (CELL * part for part in divmod(int(cell), weights.shape[1]))
            row = min(row + int(rng.integers(CELL)), rows - side)
            column = min(column + int(rng.integers(CELL)), columns - side)
            yield fields[:, row : row + side, column : column + side]

    def _turn(self, crop: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        if not (self.augment and self.settings.flips):
            return crop
        for axis in (1, 2):
            if rng.random() < 0.5:
                crop = np.flip(crop, axis)
        square = crop.shape[1] == crop.shape[2]
        return crop.swapaxes(1, 2) if square and rng.random() < 0.5 else crop


class Draws(Sampler):
    """(window, seed) pairs of an epoch: all windows in random order, or ``count`` of them at random."""

    def __init__(self, windows: Windows, *, seed: int, count: int | None, shuffle: bool) -> None:
        self.size, self.seed, self.count, self.shuffle, self.epoch = len(windows), seed, count, shuffle, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.count or self.size

    def __iter__(self) -> Iterator[tuple[int, int]]:
        rng = np.random.default_rng([self.seed, self.epoch if self.shuffle else 0])
        rounds = -(-len(self) // self.size)
        draw = rng.permutation if self.shuffle else np.arange
        order = np.concatenate([draw(self.size) for _ in range(rounds)])[: len(self)]
        yield from zip(order.tolist(), rng.integers(2**63, size=order.size).tolist(), strict=True)


def loader(windows: Windows, *, batch_size: int, workers: int, seed: int, shuffle: bool,
           batches: int | None = None) -> DataLoader:  # fmt: skip
    """Batches of ``batch_size`` crops.

    Args:
        windows: Where from.
        batch_size: Crops per batch; windows are decoded once for all their crops.
        workers: Processes that decode.
        seed: Draws the order and the crops.
        shuffle: False: the same crops in the same order in every epoch, for validation.
        batches: Batches per epoch; None: every window once.
    """
    per_batch = max(1, batch_size // windows.settings.crops_per_window)
    draws = Draws(windows, seed=seed, count=batches * per_batch if batches else None, shuffle=shuffle)
    return DataLoader(windows, batch_size=per_batch, sampler=draws, num_workers=workers, collate_fn=_collate,
                      persistent_workers=workers > 0, pin_memory=torch.cuda.is_available(),
                      multiprocessing_context="forkserver" if workers else None)  # fmt: skip


def check_apart(train: Windows, valid: Windows) -> None:
    """Refuses a split in which a frame is both trained on and validated on.

    Raises:
        ConfigError: Names the store and the frames.
    """
    for index, span in enumerate(train.spans):
        for other, held in enumerate(valid.spans):
            if span.store != held.store:
                continue
            shared = sorted(train.frames(index) & valid.frames(other))
            if shared:
                raise ConfigError(f"{span.store}: {len(shared)} frames are in train and valid, {shared[0]} to "
                                  f"{shared[-1]}; give the spans start and end.")  # fmt: skip


def _collate(items: list[Batch]) -> Batch:
    return {key: torch.cat([item[key] for item in items]) for key in items[0]}


def _slots(frames: np.ndarray, stamps: np.ndarray, attrs: dict) -> np.ndarray:
    """Frames of a run on the raster of its cadence, ``MISSING`` where one is not there."""
    if not frames.size or not attrs.get("tolerated_gap"):
        return frames
    steps = np.rint((stamps[frames] - stamps[frames[0]]) / np.timedelta64(int(attrs["cadence_seconds"]), "s"))
    slots = np.full(int(steps[-1]) + 1, MISSING)
    slots[steps.astype(int)] = frames
    return slots


def _crop_weights(fields: np.ndarray, side: int, rain_weight: float) -> np.ndarray:
    """Probability of each coarse upper left corner: measured pixels, and more of them wet ones."""
    middle = fields[fields.shape[0] // 2]
    known = np.isfinite(middle)
    coarse = [cv2.resize(part.astype(np.float32), None, fx=1 / CELL, fy=1 / CELL, interpolation=cv2.INTER_AREA)
              for part in (known, known & (np.nan_to_num(middle) > 0))]  # fmt: skip
    extent = [max(1, size // CELL - side // CELL + 1) for size in middle.shape]
    window = (max(1, side // CELL),) * 2
    share, wet = (cv2.boxFilter(part, -1, window, anchor=(0, 0), borderType=cv2.BORDER_REPLICATE)
                  [: extent[0], : extent[1]].astype(np.float64) for part in coarse)  # fmt: skip
    weights = share * (1 + rain_weight * wet / max(wet.mean(), 1e-6)) + 1e-9
    return weights / weights.sum()


def _name(span: Span) -> str:
    return f"{span.store} ({span.start or 'start'} to {span.end or 'end'})"
