"""A forecast cycle goes first where it shares a device with a training run.

Both lock one file for the device: cycles share the lock; a training run tries, between two steps, to hold it alone, and
waits while it cannot. Locks end with their process, so nobody waits for one that died, and no longer than
``LONGEST_SECONDS`` for one that hangs.
"""

from __future__ import annotations

import fcntl
import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep

import torch

LONGEST_SECONDS = 300.0
"""A cycle that holds the device longer than this hangs, and no longer stops a training."""
PATIENCE_SECONDS = 1.0
"""A training holds the lock for microseconds; a cycle that does not get it by then goes on without."""
LOOK_SECONDS = 0.02
"""Between two looks of a training that waits."""
log = logging.getLogger(__name__)


def device_id(device: torch.device | None = None) -> str:
    """Name a device as all processes of a machine do; None: the one that forecasts run on."""
    if device is None:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return f"gpu-{torch.cuda.get_device_properties(device).uuid}" if device.type == "cuda" else device.type


@contextmanager
def hold(name: str) -> Iterator[None]:
    """Make training runs on this device pause until the block ends; never waits, never fails."""
    descriptor = _open(name)
    deadline = monotonic() + PATIENCE_SECONDS
    try:
        while not (held := _try(descriptor, fcntl.LOCK_SH)) and monotonic() < deadline:
            sleep(LOOK_SECONDS / 10)
        if not held:
            log.warning("a training holds the lock of %s; the cycle goes on beside it", name)
        yield
    finally:
        fcntl.flock(descriptor, fcntl.LOCK_UN)  # children that were forked meanwhile have it open too
        os.close(descriptor)


class TrainingLock:
    """Where a training run lets forecast cycles go first."""

    def __init__(self, name: str) -> None:
        self.name, self._descriptor, self._tired = name, _open(name), False

    def close(self) -> None:
        """Close the lock file; the lock is not used afterwards."""
        os.close(self._descriptor)

    @property
    def wanted(self) -> bool:
        """Whether a cycle wants the device; takes microseconds."""
        free = _try(self._descriptor, fcntl.LOCK_EX)
        if free:
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)
            self._tired = False
        return not free and not self._tired

    def wait(self, *, before: Callable[[], object] | None = None) -> float:
        """Return at once if nobody wants the device, else when it is free again.

        Args:
            before: Called once if there is something to wait for.

        Returns:
            Seconds waited.
        """
        if not (self.wanted and self.wanted):  # two trainings may meet for a moment at the lock
            return 0.0
        if before:
            before()
        started = monotonic()
        while self.wanted:
            if (waited := monotonic() - started) > LONGEST_SECONDS:
                log.warning("%s: a cycle has held it for %.0f s; the training goes on", self.name, waited)
                self._tired = True
            else:
                sleep(LOOK_SECONDS)
        return monotonic() - started


def _open(name: str) -> int:
    """Open the lock file, which is the user's own: another user's processes are not known.

    Containers that share a device share the folder ``NOWCAST_LOCKS``.
    """
    folder = Path(os.environ.get("NOWCAST_LOCKS") or Path(tempfile.gettempdir()) / f"nowcast-{os.getuid()}")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return os.open(folder / f"{name}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _try(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
