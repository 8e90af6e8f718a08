"""Locks between processes, which end with their process, also where a network file system has none."""

from __future__ import annotations

import errno
import getpass
import hashlib
import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS)
"""What ``flock`` says on NFS without a lock daemon, and on some FUSE file systems."""
log = logging.getLogger(__name__)

__all__ = ["Timeout", "locked", "machine_folder"]


@contextmanager
def locked(path: Path, *, seconds: float, nested: bool = False) -> Iterator[None]:
    """Hold the lock of a file until the block ends.

    On a file system without locks it is held on this machine alone, which the log says.

    Args:
        path: Lock file, made if it does not exist.
        seconds: Longest wait; 0: none.
        nested: Whether a process that holds it may hold it again.

    Raises:
        Timeout: If another process holds it.
    """
    lock = FileLock(path, is_singleton=nested, fallback_to_soft=False)
    try:
        lock.acquire(timeout=seconds)
    except (OSError, NotImplementedError) as error:
        if isinstance(error, Timeout) or not _without_locks(error):
            raise
        log.warning("%s: no locks there; processes of other machines are not held off", path, exc_info=True)
        lock = FileLock(_substitute(path), is_singleton=nested, fallback_to_soft=False)
        lock.acquire(timeout=seconds)
    try:
        yield
    finally:
        lock.release()


def machine_folder() -> Path:
    """Make the folder of the locks of this machine, which all its users share.

    Containers that share a device share the folder ``NOWCAST_LOCKS``.
    """
    if stated := os.environ.get("NOWCAST_LOCKS"):
        folder = Path(stated)
        folder.mkdir(parents=True, exist_ok=True)
        return folder
    folder = Path(tempfile.gettempdir()) / "nowcast-locks"
    folder.mkdir(mode=0o1777, parents=True, exist_ok=True)
    with suppress(PermissionError):  # another user's, who has opened it to all
        folder.chmod(0o1777)
    if not os.access(folder, os.W_OK | os.X_OK):
        folder = Path(tempfile.gettempdir()) / f"nowcast-{os.getuid()}"
        log.warning("the locks of this machine are not open to %s; trainings of others do not pause", getpass.getuser())
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def _without_locks(error: Exception) -> bool:
    return isinstance(error, NotImplementedError) or getattr(error, "errno", None) in NO_LOCKS


def _substitute(path: Path) -> Path:
    digest = hashlib.sha256(os.fsencode(path.absolute())).hexdigest()[:16]
    return machine_folder() / f"{os.getuid()}-{digest}.lock"
