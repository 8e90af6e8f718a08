"""Windows of frames from stores, as batches in [0, 1] for a network.

A window is ``in_steps + out_steps`` consecutive frames of one sequence. It never crosses a gap, a
sequence, a frame without data or the border of a span (``nowcast.data.sources``). What is drawn depends on the
seed and the epoch alone, not on the number of processes.

Loader processes only decompress: a batch travels as the one or two bytes per pixel that the store keeps,
and becomes [0, 1] where the network is, by one look into a table that holds the scaled value of every
code (``Unpack``). Only what is resized, or was never packed, is scaled on the way.

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
from nowcast.data.shared_memory import Parcel, Ring, keep_memory
from nowcast.data.sources import Source, source

CELL = 8
"""Pixels per cell of the coarse grid on which crops are weighed."""
SAMPLED = 2
"""Of them every second one is looked at."""
Batch = dict[str, Tensor]
"""``past`` and ``future`` float32 in [0, 1], ``mask`` 1 where the future was measured; BTCHW. ``window`` B. What
was not measured is 0, or NaN in the past of a network that handles it."""
Packed = dict[str, Tensor]
"""``frames`` BTCHW as the stores keep them, or float32 in [0, 1] with NaN for no data; ``source`` B,
the number of the table to look them up in; ``window`` B, which window it is."""


class Windows(Dataset):
    """All windows of some spans; drawn as (window, seed).

    Args:
        missing: Whether the past has NaN where nothing was measured, or 0.

    Raises:
        ConfigError: If a span has no window, or the sizes of frames and crops do not fit.
    """

    def __init__(
        self, spans: Sequence[Span | Moving], settings: WindowSettings, *, augment: bool, missing: bool = False
    ) -> None:
        self.spans, self.settings, self.augment, self.missing = tuple(spans), settings, augment, missing
        self.sources: list[Source] = [source(span, settings) for span in spans]
        self.first = np.concatenate([[0], np.cumsum([found.weights.size for found in self.sources])])
        self.floats = any(found.table is None for found in self.sources)
        self.dtype = np.result_type(*(np.float32 if self.floats else found.dtype for found in self.sources))
        self.channels = max(found.channels for found in self.sources)
        self.shape = (settings.in_steps + settings.out_steps, self.channels, *self._size())
        """T, C, H, W of a crop."""
        self.ring: Ring | None = None
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
        """Of the quantity that is forecast."""
        own = self.settings.scaling
        return own.build() if own else get_quantity(self.settings.quantity).scaling

    @property
    def step_seconds(self) -> int:
        """Time between the frames that go in: of the largest source."""
        return max(self.sources, key=lambda found: found.weights.size).step_seconds

    @cached_property
    def unpack(self) -> Unpack:
        """Makes [0, 1] of batches of these windows."""
        return Unpack(self)

    def __getstate__(self) -> dict:
        """For copies and loader processes, which need their own memory and no tables, least of all on a GPU."""
        return {key: value for key, value in self.__dict__.items() if key != "unpack"} | {"_memory": None}

    def __len__(self) -> int:
        return int(self.first[-1])

    def probabilities(self) -> np.ndarray | None:
        """Of each window to be drawn; None: all alike."""
        shares = np.diff(self.first) ** (1 / self.settings.temperature) * [span.weight for span in self.spans]
        weights = [
            found.weights / found.weights.sum() * share for found, share in zip(self.sources, shares, strict=True)
        ]
        together = np.concatenate(weights) / shares.sum()
        return None if np.allclose(together, 1 / len(self), rtol=1e-6, atol=0) else together

    def names(self, windows: Sequence[int]) -> list[str]:
        """Where windows come from: source, sequence, and the time of the first frame."""
        found = []
        for window in windows:
            number = int(np.searchsorted(self.first, window, side="right")) - 1
            sequences, times = self.sources[number].beginnings()
            place = window - int(self.first[number])
            found.append(f"{self.sources[number].name}, {sequences[place]}, {times[place].astype('datetime64[s]')}")
        return found

    def __getitem__(self, drawn: tuple[int, int]) -> Batch:
        """Window ``drawn[0]``, its crops cut at random by ``drawn[1]``."""
        packed = self.__getitems__([drawn])
        assert isinstance(packed, dict)  # a ``Parcel`` leaves loader processes only
        return self.unpack(packed)

    def __getitems__(self, drawn: Sequence[tuple[int, int]]) -> Packed | Parcel:
        """Decodes windows; in a loader process straight into the memory that they leave it in."""
        each = self.settings.crops_per_window
        shape = (len(drawn) * each, *self.shape)
        numbers = np.searchsorted(self.first, [index for index, _ in drawn], side="right") - 1
        rest = {"source": np.repeat(numbers, each), "window": np.repeat([index for index, _ in drawn], each)}
        with self.ring.slot() if self.ring else nullcontext() as place:
            frames = self.ring.memory[place].numpy()[: shape[0]] if self.ring and place else np.empty(shape, self.dtype)
            for row, (number, (index, seed)) in enumerate(zip(numbers.tolist(), drawn, strict=True)):
                target = frames[row * each : (row + 1) * each]
                window = index - int(self.first[number])
                self._decode(self.sources[number], window, np.random.default_rng(seed), target)
        if self.ring and place:
            return Parcel(self.ring, place, shape[0], rest)
        return {name: torch.from_numpy(values) for name, values in ({"frames": frames} | rest).items()}

    def _decode(self, found: Source, window: int, rng: np.random.Generator, target: np.ndarray) -> None:
        """Fills (crop, T, C, H, W)."""
        alike = not self.floats and found.dtype == self.dtype and found.channels == self.channels
        if alike and self.settings.crop is None and not self._turns:
            found.read(window, target[0])
            return
        fields = found.read(window, None if found.table is None else self._workspace(found))
        if self.floats and found.table is not None:
            fields = found.table[_bits(fields)]
        crops = [fields] if self.settings.crop is None else self._crops(fields, found, rng)
        for place, crop in zip(target, crops, strict=True):
            place[...] = self._turned(crop, rng) if self._turns else crop

    def _workspace(self, found: Source) -> np.ndarray:
        """Memory to decode a window to before it is cut, used again for the next."""
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
    def _turns(self) -> bool:
        return self.augment and self.settings.flips

    def _turned(self, crop: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """All frames of a window in the same way."""
        for axis in (2, 3):
            if rng.random() < 0.5:
                crop = np.flip(crop, axis)
        square = crop.shape[2] == crop.shape[3]
        return crop.swapaxes(2, 3) if square and rng.random() < 0.5 else crop


class Unpack(nn.Module):
    """Codes of a batch -> [0, 1] and where they are measured, wherever the batch is."""

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
        frames, source = packed["frames"], packed["source"]
        asked = frames if self.missing else frames[:, self.in_steps :]
        if frames.is_floating_point():
            values, known = frames.nan_to_num(0.0), asked.isfinite().float()
        else:
            look = _look_up_on_cpu if frames.device.type == "cpu" else _look_up
            values, known = look(self.values, frames, source), look(self.known, asked, source)
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
    """The same by OpenCV, which needs a quarter of the time."""
    out = torch.empty(codes.shape)
    for place, part, row in zip(out.numpy(), codes.numpy(), source.tolist(), strict=True):
        cv2.LUT(_bits(part).reshape(-1, part.shape[-1]), tables[row].numpy(), dst=place.reshape(-1, part.shape[-1]))
    return out


def _bits(codes: np.ndarray) -> np.ndarray:
    """Codes as the unsigned numbers that tables are ordered by."""
    return codes.view(np.uint16) if codes.dtype == np.int16 else codes


def _crop_weights(middle: np.ndarray, side: int, rain_weight: float) -> np.ndarray:
    """Probability of each coarse upper left corner: measured pixels, and more of them wet ones.

    ``middle`` is a frame of which every ``SAMPLED``-th row and column is given.
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
    return weights / weights.sum()


# --- drawing and loading --------------------------------------------------------------------------


class WindowSampler(Sampler):
    """(window, seed) pairs of an epoch, of this process where several train together.

    All windows in random order, or ``count`` of them at random, by their probabilities where those differ.
    Every process has as many: where windows are left over, some other ones in every epoch, they wait.
    """

    def __init__(self, windows: Windows, *, seed: int, count: int | None, shuffle: bool) -> None:
        self.size, self.seed, self.count, self.shuffle, self.epoch = len(windows), seed, count, shuffle, 0
        self.odds = windows.probabilities() if shuffle else None
        self.skip = 0
        """Draws at the beginning of the next epoch that were trained on already."""

    def set_epoch(self, epoch: int) -> None:
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
    """Rank of this training process, and how many there are."""
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


class Loader(DataLoader):
    """A loader that can go on in the middle of an epoch: Lightning keeps its state in every checkpoint."""

    batch_sampler: BatchSampler

    def __init__(self, windows: Windows, draws: WindowSampler, per_batch: int, *, packed: bool, **options: Any) -> None:
        super().__init__(copy(windows), batch_size=per_batch, sampler=draws, collate_fn=_as_it_is, **options)
        self.draws, self.per_batch, self.packed, self.done = draws, per_batch, packed, 0
        self.waited = 0.0
        """Seconds that were spent waiting for batches."""

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        windows: Any = self.dataset
        if self.num_workers and self._iterator is None:  # loader processes are about to start
            kind = torch.from_numpy(np.empty(0, windows.dtype)).dtype
            crops = self.per_batch * windows.settings.crops_per_window
            windows.ring = Ring(self.num_workers, (crops, *windows.shape), kind)
        self.done = self.draws.skip // self.per_batch
        for batch in self._timed(super().__iter__()):
            self.done += 1
            arrived = batch.unwrap() if isinstance(batch, Parcel) else batch
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
        epochs, batches = divmod(self.done, max(1, len(self)))
        return {"epoch": self.draws.epoch + epochs, "batches": batches}

    def load_state_dict(self, state: dict[str, int]) -> None:
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
    """Batches of ``batch_size`` crops.

    Args:
        windows: Where from.
        batch_size: Crops per batch; windows are decoded once for all their crops.
        workers: Processes that decode.
        seed: Draws the order and the crops.
        shuffle: False: the same crops in the same order in every epoch, for validation.
        batches: Batches per epoch and training process; None: every window once.
        packed: Leave the codes of the store as they are, for ``windows.unpack`` where the network is: a
            quarter or half of the bytes.
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


def _as_it_is(batch: Any) -> Any:
    return batch
