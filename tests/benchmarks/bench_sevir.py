"""Peak memory of reading SEVIR: below 1 GB for a file of 1,000 events, however it is chunked.

python -m pytest -m slow -s tests/benchmarks/bench_sevir.py
"""

import itertools
import subprocess
import sys
import zlib
from pathlib import Path

import h5py
import numpy as np
import pytest

from tests.fixtures import blob, sevir_catalog, sevir_row

EVENTS, SIDE, FRAMES = 1000, 384, 49
LIMIT_MB = 1000
NAME = "vil/2019/SEVIR_VIL_STORMEVENTS_2019_0101_0630.h5"

READ = """
import itertools, resource, sys, time
from pathlib import Path
from nowcast.readers import sevir
start = time.perf_counter()
cubes = [sevir.read(item)["vil"].shape for item in itertools.islice(sevir.find(Path(sys.argv[1])), int(sys.argv[2]))]
assert len(cubes) == int(sys.argv[2]) and set(cubes) == {(49, 384, 384)}
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000, (time.perf_counter() - start) / len(cubes))
"""


def generate(root: Path, chunks: tuple[int, int, int, int]) -> None:
    """A file whose chunks all hold the same compressed bytes, so that 7 GB take seconds to write."""
    path = root / "data" / NAME
    path.parent.mkdir(parents=True)
    _, rows, columns, frames = chunks
    event = np.repeat(blob((rows, columns), 200).astype(np.uint8)[..., None], frames, axis=-1)
    packer = zlib.compressobj(1)
    packed = b"".join([*(packer.compress(event.tobytes()) for _ in range(chunks[0])), packer.flush()])
    ids = [f"S{number}" for number in range(EVENTS)]
    shape = (EVENTS, SIDE, SIDE, FRAMES)
    with h5py.File(path, "w") as file:
        file["id"] = np.array(ids, "S10")
        stack = file.create_dataset("vil", shape, np.uint8, chunks=chunks, compression="gzip")
        for place in itertools.product(*(range(0, size, step) for size, step in zip(shape, chunks, strict=True))):
            stack.id.write_direct_chunk(place, packed)
    sevir_catalog(root, [sevir_row(event, NAME, index) for index, event in enumerate(ids)])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("chunks", "events"),
    [
        ((1, SIDE, SIDE, FRAMES), 100),
        ((1, SIDE, SIDE, 1), 100),
        ((20, 96, 96, FRAMES), 5),
        ((EVENTS, SIDE, SIDE, 1), 1),
    ],
)
def test_peak_memory(tmp_path: Path, chunks: tuple[int, int, int, int], events: int):
    generate(tmp_path, chunks)
    command = [sys.executable, "-c", READ, str(tmp_path), str(events)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    peak, seconds = map(float, done.stdout.split())
    print(f"\nchunks {chunks}: peak {peak:.0f} MB, {seconds:.2f} s per event")
    assert peak < LIMIT_MB
