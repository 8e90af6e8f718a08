"""The processes of ``nowcast up``: what a killed one left behind is found by a mark in its environment.

Every process that ``up`` starts, and all that those start, inherit the mark. It names the ``up`` by process number and
start time, so that a number that was given out again is not taken for it.
"""

from __future__ import annotations

import json
import logging
import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

VARIABLE = "NOWCAST_UP"
"""Environment variable that holds the mark."""
STOP_SECONDS = 30
"""Time in which a process must end its runs before it is killed."""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Mark:
    """Whose child a process is."""

    api: str
    """The Prefect server."""
    domain: str = ""
    """Name of the domain; the server, which several domains share, has none."""
    site: str = ""
    """Folder of the domain's page, which no two chains share."""
    short: bool = False
    """Whether the short names of deployments mean those of this domain."""
    up: int = 0
    """Number of the ``up`` process."""
    started: str = ""
    """When that process started."""
    namespace: str = ""
    """In which process numbers count: those of another container mean other processes."""

    @classmethod
    def mine(cls, api: str, domain: str = "", site: str = "") -> Mark:
        """Make the mark of this process's children."""
        return cls(api, domain, site, up=os.getpid(), started=_started(os.getpid()), namespace=_namespace())

    @property
    def orphaned(self) -> bool:
        """Whether the ``up`` has ended."""
        return not psutil.pid_exists(self.up) or _started(self.up) != self.started

    @property
    def variables(self) -> dict[str, str]:
        """Environment of a child that bears this mark."""
        return {VARIABLE: json.dumps(asdict(self))}


def marked() -> Iterator[tuple[psutil.Process, Mark]]:
    """Find this user's processes on this machine, or in this container, that bear a mark."""
    for process in psutil.process_iter():
        try:
            if process.pid == os.getpid() or process.uids().real != os.getuid():
                continue
            text = process.environ().get(VARIABLE)
        except (psutil.Error, OSError):
            continue  # it has ended meanwhile, or its environment is not ours to read
        mark = _read(text)
        if mark and mark.namespace == _namespace():
            yield process, mark


def end(processes: Sequence[psutil.Process], *, seconds: float = STOP_SECONDS) -> None:
    """End processes with their children: as Ctrl-C does, and after some time by force."""
    numbers = {process.pid for process in processes}
    for process in processes:
        try:
            if process.ppid() not in numbers:  # the others are ended by their parents
                process.send_signal(signal.SIGINT)
        except psutil.NoSuchProcess:
            continue
    try:
        _, alive = psutil.wait_procs(processes, timeout=seconds)
    except KeyboardInterrupt:  # somebody cannot wait
        alive = [process for process in processes if process.is_running()]
    for process in alive:
        log.warning("process %d does not end and is killed", process.pid)
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(alive, timeout=STOP_SECONDS)


def _read(text: str | None) -> Mark | None:
    try:
        return Mark(**json.loads(text)) if text else None
    except (ValueError, TypeError):
        return None  # of another version


def _started(number: int) -> str:
    """Return when a living process started; on Linux in ticks since boot, which setting the clock does not change."""
    stat = Path(f"/proc/{number}/stat")
    try:
        if stat.exists():
            state, *fields = stat.read_text().rpartition(")")[2].split()
            return "" if state in "ZX" else fields[18]
        return str(psutil.Process(number).create_time())
    except (OSError, psutil.Error):
        return ""


def _namespace() -> str:
    link = Path("/proc/self/ns/pid")
    return str(link.readlink()) if link.is_symlink() else ""
