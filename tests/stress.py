"""Reads many files of some readers at once, in threads and in worker processes; run in a process of its own.

python -m tests.stress FOLDER ROUNDS NAME...: exits 0 if everything was read, and as often as one thread reads it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from nowcast.core.cube import digest
from nowcast.readers import Item, get
from tests.sources import SOURCES

COPIES, THREADS, WORKERS = 6, 8, 2
Job = tuple[str, Item]


def find(name: str, source: Path) -> list[Job]:
    return [(name, item) for item in get(name).find(source)]


def read(job: Job) -> bytes:
    """What an item holds, in a few bytes."""
    name, item = job
    cube = get(name).read(item)
    return b"".join(digest(frame).encode() for variable in cube.data_vars.values() for frame in variable.values)


def in_threads(jobs: Sequence[Job]) -> list[bytes]:
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(read, jobs))


def main(folder: Path, rounds: int, names: Sequence[str]) -> None:
    sources = [(name, SOURCES[name](folder / name / str(copy))) for name in names for copy in range(COPIES)]
    with ThreadPoolExecutor(THREADS) as pool:
        found = list(pool.map(find, *zip(*sources, strict=True)))
    depth = max(map(len, found))
    jobs = [group[place] for place in range(depth) for group in found if place < len(group)]  # readers take turns
    alone = list(map(read, jobs))
    for _ in range(rounds):
        assert in_threads(jobs) == alone
    with ProcessPoolExecutor(WORKERS, get_context("spawn")) as pool:
        for there in pool.map(in_threads, [jobs] * WORKERS):
            assert there == alone
    print(f"{len(jobs)} items of {len(names)} readers")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
