"""Windows of frames from stores, as batches in [0, 1] for a network.

A window is ``in_steps + out_steps`` consecutive frames of one sequence. It never contains a gap, the end of a
sequence, a frame without data or the end of a span (``nowcast.data.sources``). Which windows and crops are drawn
depends on the seed and the epoch alone, not on the number of processes.

Loader processes only decompress: a batch is transferred as the one or two bytes per pixel that the store keeps,
and is converted to [0, 1] on the network's device, by a lookup table with the scaled value of every code
(``Unpack``). Only frames that are resized, or were never packed, are scaled in the loader process.

Shape letters: B crops, T time, C channel, H height, W width.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from copy import copy
from functools import cached_property
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, Dataset, Sampler

from nowcast.config import Moving, Span, WindowSettings
from nowcast.core.errors import ConfigError
from nowcast.core.units import Scaling, get_quantity
from nowcast.data.shared_memory import SharedBatch, SharedBuffer, keep_memory
from nowcast.data.sources import Source, source

CELL = 8
"""Pixels per cell of the coarse grid on which the probabilities of crops are computed."""
SAMPLED = 2
"""Stride at which pixels are sampled for that."""
Batch = dict[str, Tensor]
"""``past`` and ``future`` float32 in [0, 1], ``mask`` 1 where the future was measured; BTCHW. ``window`` B. Pixels
that were not measured are 0, or NaN in the past of a network that handles missing data."""
Packed = dict[str, Tensor]
"""``frames`` BTCHW as the stores keep them, or float32 in [0, 1] with NaN for no data; ``source`` B,
the index of their lookup table; ``window`` B, the index of the window."""


class Windows(Dataset[Batch]):
    """All windows of some spans; drawn as (window, seed).

    Args:
        spans: Spans of stores, and generated clips.
        settings: Size of the windows and crops, and how they are drawn.
        training: Whether crops are flipped and transposed, where ``settings.flips`` says so, and generated clips are
            other ones at every draw.
        missing: Whether the past has NaN where nothing was measured, instead of 0.

    Raises:
        ConfigError: If a span has no window, or the sizes of frames and crops do not fit.
    """

    def __init__(
        self, spans: Sequence[Span | Moving], settings: WindowSettings, *, training: bool, missing: bool = False
    ) -> None:
        self.spans, self.settings, self.training, self.missing = tuple(spans), settings, training, missing
        self.sources: list[Source] = [source(span, settings) for span in spans]
        self.first = np.concatenate([[0], np.cumsum([found.weights.size for found in self.sources])])
        self.floats = any(found.table is None for found in self.sources)
        self.dtype = np.result_type(*(np.float32 if self.floats else found.dtype for found in self.sources))
        self.channels = max(found.channels for found in self.sources)
        self.shape = (settings.in_steps + settings.out_steps, self.channels, *self._size())
        """T, C, H, W of a crop."""
        self.buffer: SharedBuffer | None = None
        self._memory: np.ndarray | None = None

    def _size(self) -> tuple[int, int]:
        crop, side = self.settings.crop, self.settings.resize
        sizes = sorted({(side, side) if side else found.size for found in self.sources})
        if crop and (small := [size for size in sizes if min(size) < crop]):
            raise ConfigError(f"crop {crop} is larger than the grid ({small[0][0]} x {small[0][1]}).")
        if not crop and self.settings.crops_per_window > 1:
            raise ConfigError("windows.crops_per_window needs windows.crop.")
        if not crop and len(sizes) > 1:
            raise ConfigError(
                f"Frames are of different sizes ({', '.join(map(str, sizes))}); set windows.resize or windows.crop."
            )
        return (crop, crop) if crop else sizes[0]

    @property
    def scaling(self) -> Scaling:
        """Scaling of the quantity that is forecast."""
        own = self.settings.scaling
        return own.build() if own else get_quantity(self.settings.quantity).scaling

    @property
    def step_seconds(self) -> int:
        """Time between frames, of the source with most windows."""
        return max(self.sources, key=lambda found: found.weights.size).step_seconds

    @cached_property
    def unpack(self) -> Unpack:
        """Conversion of batches of these windows to [0, 1]."""
        return Unpack(self)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what copies and loader processes must not share: memory, and tables that may be on a GPU."""
        return {key: value for key, value in self.__dict__.items() if key != "unpack"} | {"_memory": None}

    def __len__(self) -> int:
        return int(self.first[-1])

    def probabilities(self) -> np.ndarray | None:
        """Compute the probability of each window to be drawn; None: all equal."""
        shares = np.diff(self.first) ** (1 / self.settings.temperature) * [span.weight for span in self.spans]
        weights = [
            found.weights / found.weights.sum() * share for found, share in zip(self.sources, shares, strict=True)
        ]
        together = np.concatenate(weights) / shares.sum()
        return None if np.allclose(together, 1 / len(self), rtol=1e-6, atol=0) else together

    def names(self, windows: Sequence[int]) -> list[str]:
        """Name windows by source, sequence, and time of the first frame."""
        found = []
        for window in windows:
            number = int(np.searchsorted(self.first, window, side="right")) - 1
            sequences, times = self.sources[number].beginnings()
            if self.training and self.sources[number].endless:
                found.append(f"{self.sources[number].name}, drawn anew")
                continue
            place = window - int(self.first[number])
            found.append(f"{self.sources[number].name}, {sequences[place]}, {times[place].astype('datetime64[s]')}")
        return found

    def __getitem__(self, drawn: tuple[int, int]) -> Batch:
        """Return window ``drawn[0]``, its crops drawn with the seed ``drawn[1]``."""
        packed = self.__getitems__([drawn])
        assert isinstance(packed, dict)  # only loader processes make a ``SharedBatch``
        batch: Batch = self.unpack(packed)
        return batch

    def __getitems__(self, drawn: Sequence[tuple[int, int]]) -> Packed | SharedBatch:
        """Decode windows; in a loader process directly into shared memory, if a slot is free."""
        each = self.settings.crops_per_window
        shape = (len(drawn) * each, *self.shape)
        numbers = np.searchsorted(self.first, [index for index, _ in drawn], side="right") - 1
        rest = {"source": np.repeat(numbers, each), "window": np.repeat([index for index, _ in drawn], each)}
        with self.buffer.slot() if self.buffer else nullcontext() as place:
            frames = (
                self.buffer.memory[place].numpy()[: shape[0]] if self.buffer and place else np.empty(shape, self.dtype)
            )
            for number in np.unique(numbers).tolist():
                self._fill(frames, np.flatnonzero(numbers == number), number, drawn)
        if self.buffer and place:
            return SharedBatch(self.buffer, place, shape[0], rest)
        return {name: torch.from_numpy(values) for name, values in ({"frames": frames} | rest).items()}

    def _fill(self, frames: np.ndarray, rows: np.ndarray, number: int, drawn: Sequence[tuple[int, int]]) -> None:
        """Fill the crops of those windows of a batch that are of one source."""
        found, each = self.sources[number], self.settings.crops_per_window
        anew = self.training and found.endless
        windows = [drawn[row][1] if anew else drawn[row][0] - int(self.first[number]) for row in rows]
        if self._as_is(found):
            found.read_many(windows, frames, rows)
            return
        for row, window in zip(rows.tolist(), windows, strict=True):
            rng = np.random.default_rng(drawn[row][1])
            self._decode(found, window, rng, frames[row * each : (row + 1) * each])

    def _as_is(self, found: Source) -> bool:
        """Whether the windows of a source need nothing but to be read."""
        same_layout = not self.floats and found.dtype == self.dtype and found.channels == self.channels
        return same_layout and self.settings.crop is None and not self._flips

    def _decode(self, found: Source, window: int, rng: np.random.Generator, target: np.ndarray) -> None:
        """Fill (crop, T, C, H, W)."""
        fields = found.read(window, None if found.table is None else self._workspace(found))
        if self.floats and found.table is not None:
            fields = found.table[_bits(fields)]
        crops = [fields] if self.settings.crop is None else self._crops(fields, found, rng)
        for place, crop in zip(target, crops, strict=True):
            place[...] = self._flipped(crop, rng) if self._flips else crop

    def _workspace(self, found: Source) -> np.ndarray:
        """Return memory for a decoded window, before it is cropped; it is reused for the next one."""
        shape = (self.shape[0], found.channels, *found.size)
        if self._memory is None or (self._memory.shape, self._memory.dtype) != (shape, found.dtype):
            self._memory = np.empty(shape, found.dtype)
        return self._memory

    def _crops(self, fields: np.ndarray, found: Source, rng: np.random.Generator) -> Iterator[np.ndarray]:
        side, (rows, columns) = self.shape[-1], fields.shape[2:]
        middle = np.ascontiguousarray(fields[len(fields) // 2, 0, ::SAMPLED, ::SAMPLED])
        values = middle if self.floats or found.table is None else found.table[_bits(middle)]
        weights = _crop_weights(values, side, self.settings.rain_weight)
        for cell in rng.choice(weights.size, size=self.settings.crops_per_window, p=weights.ravel()):
            row, column = (CELL * part for part in divmod(int(cell), weights.shape[1]))
            row = min(row + int(rng.integers(CELL)), rows - side)
            column = min(column + int(rng.integers(CELL)), columns - side)
            yield fields[..., row : row + side, column : column + side]

    @property
    def _flips(self) -> bool:
        return self.training and self.settings.flips

    def _flipped(self, crop: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Flip and transpose at random, all frames of a window in the same way."""
        for axis in (2, 3):
            if rng.random() < 0.5:
                crop = np.flip(crop, axis)
        square = crop.shape[2] == crop.shape[3]
        return crop.swapaxes(2, 3) if square and rng.random() < 0.5 else crop


class Unpack(nn.Module):
    """Converts the codes of a batch to values in [0, 1] and a mask, on the device of the batch."""

    values: Tensor
    known: Tensor

    def __init__(self, windows: Windows) -> None:
        super().__init__()
        self.in_steps, self.channels = windows.settings.in_steps, windows.settings.channels
        self.missing = windows.missing
        size = 256 if windows.dtype == np.uint8 else 2**16
        tables = torch.full((len(windows.sources), size), torch.nan)
        for row, found in zip(tables, windows.sources, strict=True):
            if found.table is not None:
                row[: found.table.size] = torch.from_numpy(found.table)
        self.register_buffer("values", tables.nan_to_num(0.0), persistent=False)
        self.register_buffer("known", tables.isfinite().float(), persistent=False)

    def forward(self, packed: Packed) -> Batch:
        """Convert a batch as the stores keep it to ``past``, ``future`` and ``mask``."""
        frames, source = packed["frames"], packed["source"]
        masked = frames if self.missing else frames[:, self.in_steps :]
        if frames.is_floating_point():
            values, known = frames.nan_to_num(0.0), masked.isfinite().float()
        else:
            look_up = _look_up_on_cpu if frames.device.type == "cpu" else _look_up
            values, known = look_up(self.values, frames, source), look_up(self.known, masked, source)
        channels = max(self.channels, frames.shape[2])
        values, known = (part.expand(-1, -1, channels, -1, -1) for part in (values, known))
        past, future = values[:, : self.in_steps], values[:, self.in_steps :]
        mask = known[:, -future.shape[1] :]
        if self.missing:
            past = past.masked_fill(known[:, : self.in_steps] == 0, torch.nan)
        return {"past": past, "future": future, "mask": mask, "window": packed["window"]}


def _look_up(tables: Tensor, codes: Tensor, source: Tensor) -> Tensor:
    size = tables.shape[1]
    rows = source.to(codes.device).mul(size).view(-1, 1, 1, 1, 1)
    return tables.view(-1)[(codes.int() & (size - 1)) + rows]


def _look_up_on_cpu(tables: Tensor, codes: Tensor, source: Tensor) -> Tensor:
    """Look up with OpenCV, which takes a quarter of the time of ``_look_up``."""
    out = torch.empty(codes.shape)
    for place, part, row in zip(out.numpy(), codes.numpy(), source.tolist(), strict=True):
        cv2.LUT(_bits(part).reshape(-1, part.shape[-1]), tables[row].numpy(), dst=place.reshape(-1, part.shape[-1]))
    return out


def _bits(codes: np.ndarray) -> np.ndarray:
    """View codes as unsigned integers, the indices of the lookup tables."""
    return codes.view(np.uint16) if codes.dtype == np.int16 else codes


def _crop_weights(middle: np.ndarray, side: int, rain_weight: float) -> np.ndarray:
    """Compute the probability of each upper left corner of a crop on the coarse grid.

    It is proportional to the share of measured pixels, and rises with the share of wet ones.

    Args:
        middle: A frame, of which every ``SAMPLED``-th row and column is given.
        side: Side of the crops in pixels.
        rain_weight: See ``WindowSettings.rain_weight``.
    """
    cell, reach = CELL // SAMPLED, max(1, side // CELL)
    coarse = [
        cv2.resize(part.astype(np.float32), None, fx=1 / cell, fy=1 / cell, interpolation=cv2.INTER_AREA)
        for part in (middle == middle, middle > 0)
    ]
    extent = [max(1, size // cell - side // CELL + 1) for size in middle.shape]
    share, rain = (
        cv2.boxFilter(part, -1, (reach, reach), anchor=(0, 0), borderType=cv2.BORDER_REPLICATE)[
            : extent[0], : extent[1]
        ].astype(np.float64)
        for part in coarse
    )
    weights = share * (1 + rain_weight * rain / max(rain.mean(), 1e-6)) + 1e-9
    return np.asarray(weights / weights.sum())


# --- drawing and loading --------------------------------------------------------------------------


class WindowSampler(Sampler[tuple[int, int]]):
    """(window, seed) pairs of an epoch, of this process where several train together.

    All windows in random order, or ``count`` of them at random, by their probabilities where those differ.
    Every process gets the same number; windows that are left over are not drawn in that epoch.
    """

    def __init__(self, windows: Windows, *, seed: int, count: int | None, shuffle: bool) -> None:
        self.size, self.seed, self.count, self.shuffle, self.epoch = len(windows), seed, count, shuffle, 0
        self.odds = windows.probabilities() if shuffle else None
        self.skip = 0
        """Draws at the start of the next epoch that a resumed training has had already."""

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, on which the order and the seeds depend."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self._total // _processes()[1]

    @property
    def _total(self) -> int:
        return self.count * _processes()[1] if self.count else self.size

    def __iter__(self) -> Iterator[tuple[int, int]]:
        rng = np.random.default_rng([self.seed, self.epoch if self.shuffle else 0])
        order = self._order(rng)
        seeds = rng.integers(2**63, size=order.size)
        rank, processes = _processes()
        skip, self.skip = self.skip, 0
        mine = slice(rank + skip * processes, len(self) * processes, processes)
        yield from zip(order[mine].tolist(), seeds[mine].tolist(), strict=True)

    def _order(self, rng: np.random.Generator) -> np.ndarray:
        if self.odds is not None:
            return rng.choice(self.size, size=self._total, p=self.odds)
        rounds = -(-self._total // self.size)
        draw = rng.permutation if self.shuffle else np.arange
        return np.concatenate([draw(self.size) for _ in range(rounds)])[: self._total]


def _processes() -> tuple[int, int]:
    """Return the rank of this training process, and the number of them."""
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


class Loader(DataLoader[Batch]):
    """A loader that can resume in the middle of an epoch: Lightning stores its state in every checkpoint."""

    batch_sampler: BatchSampler

    def __init__(self, windows: Windows, draws: WindowSampler, per_batch: int, *, packed: bool, **options: Any) -> None:
        super().__init__(copy(windows), batch_size=per_batch, sampler=draws, collate_fn=_unchanged, **options)
        self.draws, self.per_batch, self.packed, self.done = draws, per_batch, packed, 0
        self.waited = 0.0
        """Seconds spent waiting for batches."""

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        windows: Any = self.dataset
        if self.num_workers and self._iterator is None:  # loader processes are about to start
            kind = torch.from_numpy(np.empty(0, windows.dtype)).dtype
            crops = self.per_batch * windows.settings.crops_per_window
            windows.buffer = SharedBuffer(self.num_workers, (crops, *windows.shape), kind)
        self.done = self.draws.skip // self.per_batch
        for batch in self._timed(super().__iter__()):
            self.done += 1
            arrived = batch.unwrap() if isinstance(batch, SharedBatch) else batch
            yield arrived if self.packed else windows.unpack(arrived)

    def _timed(self, batches: Iterator[Any]) -> Iterator[Any]:
        end = object()
        while True:
            asked = time.perf_counter()
            batch = next(batches, end)
            self.waited += time.perf_counter() - asked
            if batch is end:
                return
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Return the epoch and the number of its batches that were drawn."""
        epochs, batches = divmod(self.done, max(1, len(self)))
        return {"epoch": self.draws.epoch + epochs, "batches": batches}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Resume after the batches of ``state_dict``."""
        self.done = state["batches"]
        self.draws.epoch, self.draws.skip = state["epoch"], self.done * self.per_batch


def loader(
    windows: Windows,
    *,
    batch_size: int,
    workers: int,
    seed: int,
    shuffle: bool,
    batches: int | None = None,
    packed: bool = False,
) -> Loader:
    """Build the loader of batches of ``batch_size`` crops.

    Args:
        windows: Windows to draw from.
        batch_size: Crops per batch; a window is decoded once for all its crops.
        workers: Number of loader processes.
        seed: Seed of the order and of the crops.
        shuffle: False: the same crops in the same order in every epoch, for validation.
        batches: Batches per epoch and training process; None: every window once.
        packed: Return the codes of the store, for ``windows.unpack`` on the network's device: a quarter or half of
            the bytes.
    """
    per_batch = max(1, batch_size // windows.settings.crops_per_window)
    draws = WindowSampler(windows, seed=seed, count=batches * per_batch if batches else None, shuffle=shuffle)
    if workers:
        keep_memory()
        multiprocessing.set_forkserver_preload([__name__])  # imported once, not by every loader process
    return Loader(
        windows,
        draws,
        per_batch,
        packed=packed,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=keep_memory,
        multiprocessing_context="forkserver" if workers else None,
    )


def _unchanged(batch: Any) -> Any:
    return batch
