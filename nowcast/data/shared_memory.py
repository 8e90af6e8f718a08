"""Reusable shared memory in which loader processes transfer batches.

A loader process normally allocates new shared memory for every batch, and the system clears every page of
it: for one byte per pixel that takes longer than decompressing the pixels. Here every process has a few
slots of its own. A batch for a GPU is copied from its slot into pinned memory; any other batch is a view of the
slot, which is free again when the batch is no longer referenced. If no slot is free, new memory is allocated.

Measured against torch's own transfer of batches (torch 2.13, two processes, batches of 4 windows of
25 x 384 x 384 bytes): three times as many crops per second for 0.6 of the CPU time; with batches of 16 crops
of 20 x 128 x 128 in 16 bits, 1.2 times as many.
"""

from __future__ import annotations

import ctypes
import itertools
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

SLOTS = 4
"""Slots per process: two for batches that are prefetched, one for the batch in use, one for the next."""
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""Parameters of mallopt, from glibc's malloc.h."""
_numbers = itertools.count()
_buffers: weakref.WeakValueDictionary[int, SharedBuffer] = weakref.WeakValueDictionary()
"""Rings of this process, by number, for the batches that it receives."""


class SharedBuffer:
    """Slots for batches of at most ``shape``, some for each loader process."""

    def __init__(self, workers: int, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        self.number = next(_numbers)
        self.memory = torch.empty((workers, SLOTS, *shape), dtype=dtype).share_memory_()
        self.busy = torch.zeros((workers, SLOTS), dtype=torch.uint8).share_memory_()
        _buffers[self.number] = self

    @contextmanager
    def slot(self) -> Iterator[tuple[int, int] | None]:
        """Occupy a free slot of this loader process, if there is one; release it if it cannot be filled."""
        info = get_worker_info()
        free = (self.busy[info.id] == 0).nonzero().flatten().tolist() if info else []
        if info is None or not free:
            yield None
            return
        place = info.id, free[0]
        self.busy[place] = 1
        try:
            yield place
        except BaseException:
            self.release(place)
            raise

    def release(self, place: tuple[int, int]) -> None:
        """Mark a slot (process, slot) as free."""
        self.busy[place] = 0


def keep_memory(_: int = 0) -> None:
    """Keep freed memory in this process, for the next window.

    By default glibc returns large blocks to the system, which clears the pages when they are allocated again.
    With another C library nothing changes.
    """
    with suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        library.mallopt(TRIM_THRESHOLD, 2**30)
        library.mallopt(MMAP_THRESHOLD, 2**25)


class SharedBatch:
    """A batch in transfer from a loader process: its frames are in a slot, ``rest`` is pickled."""

    def __init__(self, buffer: SharedBuffer, place: tuple[int, int], count: int, rest: dict[str, np.ndarray]) -> None:
        self.state = (buffer.number, place, count, rest)
        self.held: np.ndarray | None = None

    def __getstate__(self) -> Any:
        return self.state

    def __setstate__(self, state: Any) -> None:
        """Receive the batch: the slot is released as soon as nothing refers to its frames."""
        self.state = state
        number, place, count, _ = state
        buffer = _buffers[number]
        self.held = buffer.memory[place].numpy()[:count]
        weakref.finalize(self.held, buffer.release, place).atexit = False

    def unwrap(self) -> dict[str, Tensor]:
        """Return the batch, its frames as a view of the slot."""
        arrays, self.held = self.state[-1] | {"frames": self.held}, None
        return {name: torch.from_numpy(values) for name, values in arrays.items()}

    def pin_memory(self) -> dict[str, Tensor]:
        """Copy the batch into pinned memory; called by the loader's thread that prepares batches for a GPU."""
        batch = self.unwrap()
        return batch | {"frames": batch["frames"].pin_memory()}
