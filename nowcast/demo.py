"""Three hours of real radar through the whole chain, frame by frame as if they arrived.

The sample is KNMI's mosaic of 26 August 2010. Frames drop into a feed folder one at a time; a cycle
follows each; every half hour all products forecast an hour. What was observed later scores them.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np
import xarray as xr

from nowcast import cycle as cycles
from nowcast import maps, store
from nowcast.config import Operations
from nowcast.cube import channels
from nowcast.publish import publish_maps
from nowcast.units import quantity

CHART_THRESHOLDS = 2
"""Charts are drawn for the lowest thresholds; hardly a pixel of the sample reaches the others."""


@dataclass(frozen=True)
class Result:
    """What the demo made, and where."""

    scores: xr.Dataset
    lines: list[str]
    pictures: Path
    netcdf: Path
    site: Path


def run(folder: Path, *, progress: Callable[[int, int, str], None]) -> Result:
    """Runs the demo in a folder; run again, it goes on where it stopped.

    Args:
        folder: Where stores, pictures and page go.
        progress: Called with steps done, steps in all, name of the step.
    """
    settings = _settings(folder)
    sample = sorted(Path(str(files("nowcast") / "sample")).glob("*.h5"))
    lines: list[str] = []
    settings.feed.source.mkdir(parents=True, exist_ok=True)
    for done, frame in enumerate(sample, 1):
        _land(frame, settings.feed.source)
        report = cycles.cycle(settings)
        lines += report.issued + report.refused
        progress(done, len(sample) + 1, f"frame {frame.stem[-4:]} UTC")
    pictures = _pictures(settings, folder / "pictures")
    progress(len(sample) + 1, len(sample) + 1, "pictures")
    return Result(store.open_store(settings.scores).load(), lines, pictures, folder / "netcdf", settings.site)


def _settings(folder: Path) -> Operations:
    """The shipped settings, moved to the folder."""
    shipped = cycles.load("operations/demo.yaml")
    return shipped.model_copy(update={
        "feed": shipped.feed.model_copy(update={"source": folder / "feed"}),
        **{name: str(folder / name) for name in ("forecasts", "scores")}, "store": str(folder / "frames"),
        **{name: folder / name for name in ("site", "netcdf")},
    })  # fmt: skip


def _land(frame: Path, feed: Path) -> None:
    """A file appears whole, as a well-behaved feed delivers it."""
    if not (feed / frame.name).exists():
        shutil.copy2(frame, feed / f".{frame.name}")
        (feed / f".{frame.name}").rename(feed / frame.name)
