"""On which machine something runs, and how much memory it has left."""

from __future__ import annotations

import os
import platform
from contextlib import suppress
from pathlib import Path

import torch

MEMORY_SHARE = 0.8
"""Part of the free memory that one process may take."""
PROC, CGROUP = Path("/proc"), Path("/sys/fs/cgroup")


def device_name(device: str | torch.device) -> str:
    """Name the GPU, or the processor and how many threads of it torch uses."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")  # Python itself knows the architecture alone
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{torch.get_num_threads()} threads of {names[0] if names else platform.machine()}"


def free_memory() -> int:
    """Count the bytes that a process may still take: of the machine, or of the container where that has fewer."""
    free = int(os.sysconf("SC_AVPHYS_PAGES")) * os.sysconf("SC_PAGE_SIZE")
    with suppress(OSError, ValueError, StopIteration):
        lines = (PROC / "meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    with suppress(OSError, ValueError):  # the limit may be the word "max"
        limit = int((CGROUP / "memory.max").read_text())
        free = min(free, limit - int((CGROUP / "memory.current").read_text()))
    return free


def resident_memory(pid: int) -> int:
    """Count the bytes that a process holds in memory; 0 where the system does not tell."""
    with suppress(OSError, IndexError, ValueError):
        pages = int((PROC / str(pid) / "statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    return 0
