"""Damages a source of one reader in many ways and reads it each time; run in a process of its own.

python -m tests.fuzzing NAME FOLDER ROUNDS: exits 0 if every item became a Cube or one sentence.
"""

from __future__ import annotations

import random
import shutil
import sys
import time
from pathlib import Path

import h5py
import numpy as np

from nowcast.core.cube import check
from nowcast.core.errors import BadInput
from nowcast.readers import detect, get
from tests.sources import SOURCES

SLOWEST = 20.0
"""Seconds of CPU that one damaged item may take, whatever else runs on the machine."""
MEMORY = 1_500_000
"""KiB of the whole process at most."""
ABSURD = (np.nan, np.inf, -1, 0, 2**31 - 1, -(2**40), 1e300, b"", b"\xff\xfe", b"+proj=nonsense", b"9" * 300)


def main(name: str, folder: Path, rounds: int) -> int:
    good = folder / "good"
    source = SOURCES[name](good)
    reader, draw = get(name), random.Random(name)
    list(map(reader.read, reader.find(source)))  # what is loaded once is not the damage's doing
    refused = 0
    for _ in range(rounds):
        bad = folder / "bad"
        shutil.rmtree(bad, ignore_errors=True)
        shutil.copytree(good, bad)
        files = sorted(path for path in bad.rglob("*") if path.is_file())
        what = damage(draw.choice(files), draw)
        started = time.process_time()
        try:
            detect(bad / source.relative_to(good))
        except BadInput as error:
            assert "is of no known source" in str(error), f"{what}: {error}"
        try:
            for item in list(reader.find(bad / source.relative_to(good)))[:3]:
                check(reader.read(item))
        except BadInput as error:
            refused += 1
            assert "\n" not in str(error), f"{what}: {error}"
        seconds = time.process_time() - started
        assert seconds < SLOWEST, f"{what}: {seconds:.1f} s"
    used = peak_kib()
    print(f"{name}: {rounds} damaged sources, {refused} refused, {used // 1024} MiB")
    assert used < MEMORY, f"{used // 1024} MiB"
    return 0


def peak_kib() -> int:
    """Most memory of this process; what ``resource`` tells begins with that of the process which started it."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1])


def damage(path: Path, draw: random.Random) -> str:
    """Spoils a file and says how."""
    data = path.read_bytes()
    kinds = ["truncated", "flipped", "repeated", "emptied"] + ["edited"] * (4 if h5py.is_hdf5(path) else 0)
    kind = draw.choice(kinds)
    if kind == "edited":
        return f"{path.name}: {edit_hdf5(path, draw)}"
    if kind == "truncated":
        path.write_bytes(data[: draw.randrange(len(data) + 1)])
    elif kind == "repeated":
        path.write_bytes(data + data)
    elif kind == "emptied":
        path.write_bytes(b"")
    else:
        spoiled = bytearray(data)
        for _ in range(draw.randint(1, 40)):
            if spoiled:
                spoiled[draw.randrange(min(len(spoiled), draw.choice([64, 512, 10**9])))] = draw.randrange(256)
        path.write_bytes(spoiled)
    return f"{path.name}: {kind}"


def edit_hdf5(path: Path, draw: random.Random) -> str:
    """Spoils one attribute, or the shape, type or presence of one node."""
    with h5py.File(path, "r+") as file:
        nodes: list[h5py.HLObject] = [file]
        file.visititems(lambda _, node: nodes.append(node))
        node = draw.choice(nodes)
        if len(node.attrs) and draw.random() < 0.7:
            name = draw.choice(sorted(node.attrs))
            if draw.random() < 0.3:
                del node.attrs[name]
                return f"without {node.name}/{name}"
            node.attrs[name] = draw.choice(ABSURD)
            return f"{node.name}/{name} absurd"
        if node.name == "/":
            return "as it was"
        parent, name = node.parent, node.name
        is_data = isinstance(node, h5py.Dataset)
        del parent[name]
        if is_data and draw.random() < 0.7:
            shape = draw.choice([(), (0,), (1,), (3, 5), (2, 3, 4), (1, 1, 1, 1)])
            parent.create_dataset(name, data=np.zeros(shape, draw.choice(["f8", "u1", "i8", "S3"])))
            return f"{name} of shape {shape}"
        return f"without {name}"


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])))
