"""How fast the simulated radar is made: frames of 512 x 512 pixels.

python -m pytest -s --benchmark-only tests/benchmarks/bench_simulator.py
"""

from __future__ import annotations

from itertools import count

from nowcast import config
from nowcast.readers.simulator import Simulator, simulate

TARGET_MS = 30


def test_frames(benchmark) -> None:
    radar = config.load(Simulator, "datasets/radar.simulator.yaml").model_copy(update={"rows": 512, "columns": 512})
    frames = count()
    benchmark.pedantic(simulate, setup=lambda: ((radar, next(frames)), {}), rounds=20, warmup_rounds=2)
    print(f"\n{1000 * benchmark.stats['median']:.1f} ms per frame (target {TARGET_MS} ms)")
    assert 1000 * benchmark.stats["median"] < TARGET_MS
