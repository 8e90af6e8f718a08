"""From a file that landed to the page that shows it, in a warm process."""

from __future__ import annotations

import shutil
from pathlib import Path

from nowcast.config import Operations
from nowcast.operations import cycle
from tests import paths

SAMPLE = sorted(paths.SAMPLE.glob("*.h5"))


def test_landed_to_latest(benchmark, tmp_path: Path) -> None:
    (tmp_path / "feed").mkdir()
    chain = Operations.model_validate(
        {
            "title": "bench",
            "feed": {"reader": "knmi", "source": tmp_path / "feed"},
            "store": str(tmp_path / "frames"),
            "forecasts": str(tmp_path / "forecasts"),
            "scores": str(tmp_path / "scores"),
            "site": tmp_path / "site",
            "products": [{"name": "extrapolation", "model": "extrapolation"}],
            "map_leads": (),
            "replay": True,
        }
    )
    frames = iter(SAMPLE)

    def land() -> tuple[tuple, dict]:
        shutil.copy(next(frames), chain.feed.source)
        return (chain,), {}

    benchmark.pedantic(cycle.cycle, setup=land, rounds=20, warmup_rounds=6)
    print(
        f"\nfile landed to latest.json: median {benchmark.stats['median']:.2f} s, "
        f"max {benchmark.stats['max']:.2f} s (target 5 s)"
    )
