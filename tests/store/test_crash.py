"""kill -9 at any moment, then the same command again: nothing lost, doubled, half-visible or broken."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from nowcast.config import Operations
from nowcast.core import cube
from nowcast.operations import cycle
from nowcast.store import Store, open_store
from tests.paths import SAMPLE

FRAMES = sorted(SAMPLE.glob("*.h5"))
KILLS = 8
WORKER = """
import sys
from nowcast.operations import cycle
settings = cycle.load(sys.argv[1])
print("ready", flush=True)
for line in sys.stdin:
    cycle.cycle(settings)
    print("done", flush=True)
"""


@pytest.fixture
def chain(tmp_path: Path) -> Path:
    """Settings of a chain whose every frame is forecast, scored and published."""
    (tmp_path / "feed").mkdir()
    paths = {name: str(tmp_path / name) for name in ("store", "forecasts", "scores", "site")}
    feed = {"reader": "knmi", "source": str(tmp_path / "feed")}
    products = [{"name": "persistence", "model": "persistence"}]
    settings = {
        "title": "crash",
        "feed": feed,
        "products": products,
        "leads": 2,
        "replay": True,
        "map_leads": [],
        **paths,
    }
    (tmp_path / "chain.yaml").write_text(yaml.safe_dump(settings))
    return tmp_path / "chain.yaml"


class Worker:
    """A real process that runs a cycle whenever it is told to."""

    def __init__(self, chain: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKER, str(chain)],
            text=True,
            bufsize=1,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self.process.stdout.readline() == "ready\n"  # type: ignore[union-attr]

    def cycle(self, *, kill_after: float | None = None) -> None:
        self.process.stdin.write("go\n")  # type: ignore[union-attr]
        if kill_after is None:
            assert self.process.stdout.readline() == "done\n"  # type: ignore[union-attr]
            return
        time.sleep(kill_after)
        self.end()

    def end(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.communicate()


def check_site(settings: Operations) -> None:
    """The manifest, if there is one, is whole, and so is everything it names."""
    path = settings.site / "latest.json"
    if not path.exists():
        return
    manifest = json.loads(path.read_text())
    models = [model for run in manifest["runs"] for model in run["models"]]
    named = [frame["file"] for frame in manifest["observed"]]
    named += [f"{model['folder']}/{file}" for model in models for file in model["files"]]
    assert models
    for name in named:
        content = (settings.site / name).read_bytes()
        assert content.endswith(b"IEND\xaeB`\x82"), name


def check_stores(settings: Operations) -> None:
    if Store(settings.store).exists():
        frames = cube.check(open_store(settings.store))
        assert (np.diff(frames["time"].values) > np.timedelta64(0)).all()
        assert np.isfinite(frames["rainfall_rate"][-1]).any()
    for path in (settings.forecasts, settings.scores):
        if Store(path).exists():
            runs = open_store(path)
            keys = list(zip(runs["forecast_reference_time"].values, runs["model"].values, strict=True))
            assert len(set(keys)) == len(keys), path


@pytest.mark.slow
def test_kill_at_random_moments(chain: Path) -> None:
    settings, rng = cycle.load(chain), random.Random(7)
    shutil.copy(FRAMES[0], settings.feed.source)
    worker = Worker(chain)
    started = time.perf_counter()
    worker.cycle()
    whole = time.perf_counter() - started
    worker.end()
    for kill in range(KILLS):
        shutil.copy(FRAMES[1 + kill], settings.feed.source)
        Worker(chain).cycle(kill_after=rng.uniform(0, whole))
        check_stores(settings)
        check_site(settings)
    last = Worker(chain)
    last.cycle()
    last.end()
    check_stores(settings)
    check_site(settings)
    frames = open_store(settings.store)
    assert frames.sizes["time"] == KILLS + 1
    manifest = json.loads((settings.site / "latest.json").read_text())
    assert manifest["observed"][-1]["time"].startswith(str(frames["time"].values[-1])[:16])
