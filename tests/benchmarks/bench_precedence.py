"""A cycle alone, beside a training that lets it pass, and beside one that does not: wall seconds of the cycle.

    python -m tests.benchmarks.bench_precedence

Forecasts and training share the CPU here; the CPU seconds that the training took during a cycle are printed too,
since they say the same on a machine that has other work.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from time import sleep

import yaml

from nowcast.config import Operations
from nowcast.operations import cycle
from tests import synthetic
from tests.benchmarks.bench_cycle import SAMPLE

WARM_UP, ROUNDS, BLOCKS = 2, 3, 2
CASES = {"alone": None, "beside a training that lets it pass": True, "beside one that does not": False}
TICK = os.sysconf("SC_CLK_TCK")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        chain, frames = _chain(Path(folder)), iter(SAMPLE)
        synthetic.make_store(Path(folder) / "synthetic", range(60))
        for _ in range(WARM_UP):
            _cycle(chain, next(frames), None)
        found: dict[str, list[tuple[float, float]]] = {case: [] for case in CASES}
        for block in range(BLOCKS):  # in turn, so that other work on the machine hits all alike
            for case, yields in CASES.items():
                with _training(Path(folder), f"{block}-{yields}", yields) as trainee:
                    found[case] += [_cycle(chain, next(frames), trainee) for _ in range(ROUNDS)]
    for case, rows in found.items():
        wall, taken = zip(*rows, strict=True)
        print(
            f"{case:40} median {median(wall):.2f} s, most {max(wall):.2f} s; the training took "
            f"{median(taken):.2f} CPU s meanwhile"
        )


def _chain(folder: Path) -> Operations:
    (folder / "feed").mkdir()
    paths = {name: str(folder / name) for name in ("store", "forecasts", "scores", "site")}
    return Operations.model_validate(
        {
            "title": "bench",
            "feed": {"reader": "knmi", "source": folder / "feed"},
            **paths,
            "map_leads": (),
            "products": [{"name": "extrapolation", "model": "extrapolation"}],
            "replay": True,
        }
    )


def _cycle(chain: Operations, frame: Path, trainee: int | None) -> tuple[float, float]:
    """Wall seconds of a cycle, and CPU seconds of a process meanwhile."""
    shutil.copy(frame, chain.feed.source)
    before = _cpu_seconds(trainee)
    report = cycle.cycle(chain)
    spent = _cpu_seconds(trainee) - before
    sleep(1)
    return report.seconds, spent


def _cpu_seconds(process: int | None) -> float:
    if process is None:
        return 0.0
    words = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / TICK


@contextmanager
def _training(folder: Path, name: str, yields: bool | None) -> Iterator[int | None]:
    """A training that never ends by itself; one that does not yield looks for locks where there are none."""
    if yields is None:
        yield None
        return
    spans = [
        {"store": str(folder / "synthetic"), "end": "2010-08-26T02:30Z"},
        {"store": str(folder / "synthetic"), "start": "2010-08-26T02:30Z"},
    ]
    recipe = {
        "name": name,
        "model": "convlstm:small",
        "options": {"widths": [32, 32, 32]},
        "runs": str(folder),
        "train": spans[:1],
        "valid": spans[1:],
        "windows": {"quantity": "rainfall_rate", "in_steps": 4, "out_steps": 6},
        "trainer": {
            "epochs": 10_000,
            "batches_per_epoch": 5,
            "valid_batches": 1,
            "batch_size": 2,
            "accelerator": "cpu",
            "workers": 0,
            "patience": 10_000,
        },
    }
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(recipe))
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir(exist_ok=True)
    environment = os.environ | ({} if yields else {"TMPDIR": str(elsewhere)})
    with subprocess.Popen(
        [sys.executable, "-m", "nowcast.cli", "train", str(file)],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as child:
        while not list((folder / name).rglob("metrics.csv")):  # it learns
            if child.poll() is not None:
                raise RuntimeError(f"the training ended with code {child.returncode}: nowcast train {file}")
            sleep(0.5)
        yield child.pid
        child.kill()


if __name__ == "__main__":
    main()
