"""A forecast cycle goes first where it shares a device with a training run.

Both lock one file for the device: cycles share the lock; a training run tries, between two steps, to hold it alone, and
waits while it cannot. Locks end with their process, so nobody waits for one that died, and no longer than
``LONGEST_SECONDS`` for one that hangs.
"""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic, sleep

import torch

from nowcast.core.locks import NO_LOCKS, machine_folder

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
        _release(descriptor)  # children that were forked meanwhile have it open too
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
            _release(self._descriptor)
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
    """Open the lock file, which all users of the machine share: to lock it, one need not be able to write it."""
    path = machine_folder() / f"{name}.lock"
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        os.fchmod(descriptor, 0o644)  # whatever the umask: others lock it too
        return descriptor


def _try(descriptor: int, kind: int) -> bool:
    """Take the lock if it is free; a file system without locks holds nobody off."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        log.debug("no locks here: trainings do not pause for cycles", exc_info=True)
    return True


def _release(descriptor: int) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_UN)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
