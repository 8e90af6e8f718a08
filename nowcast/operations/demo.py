"""Run three hours of real radar data through the whole chain, frame by frame as if they arrived.

The sample is KNMI's mosaic of 26 August 2010. Frames arrive in a feed folder one at a time, and a cycle follows
each. Every half hour all products forecast an hour, which is verified against the later frames.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np
import xarray as xr

from nowcast.config import Operations
from nowcast.core.cube import channels
from nowcast.core.files import atomic_file
from nowcast.core.grid import Grid
from nowcast.operations import cycle as cycles
from nowcast.operations.issuing import worker
from nowcast.operations.stores import Stores
from nowcast.plotting import maps
from nowcast.plotting.charts import skill_chart

MAP_STEPS = (6, 12)
"""Lead steps drawn as maps."""
CHART_THRESHOLDS = 2
"""Number of thresholds with a chart, the lowest ones: few pixels of the sample reach the others."""


@dataclass(frozen=True)
class Result:
    """The results of the demo, and where they are."""

    scores: xr.Dataset
    lines: list[str]
    """Forecasts made by a fallback or withheld, and files refused."""
    pictures: Path
    netcdf: Path
    site: Path


def run(folder: Path, *, progress: Callable[[int, int, str], None]) -> Result:
    """Run the demo in a folder; a second run goes on where the first stopped.

    Args:
        folder: Folder of the stores, the pictures and the page.
        progress: Called with steps done, steps in all, name of the step.
    """
    settings = _settings(folder)
    sample = sorted(Path(str(files(__package__) / "sample")).glob("*.h5"))
    lines: list[str] = []
    settings.feed.source.mkdir(parents=True, exist_ok=True)
    for done, frame in enumerate(sample, 1):
        _deliver(frame, settings.feed.source)
        report = cycles.cycle(settings)
        lines += [line for line in report.issued if not line.endswith(" ok")] + report.refused
        progress(done, len(sample) + 1, f"frame {frame.stem[-4:]} UTC")
    worker(settings).retire()  # the demo is over, and needs no warm process
    stores = Stores.of(settings)
    pictures = _pictures(stores, folder / "pictures")
    progress(len(sample) + 1, len(sample) + 1, "pictures")
    return Result(stores.scores.read().load(), lines, pictures, folder / "netcdf", settings.site)


def _settings(folder: Path) -> Operations:
    """Load the shipped settings, with all paths inside the folder."""
    shipped = cycles.load("operations/demo.yaml")
    return shipped.model_copy(
        update={
            "feed": shipped.feed.model_copy(update={"source": folder / "feed"}),
            **{name: str(folder / name) for name in ("forecasts", "scores")},
            "store": str(folder / "frames"),
            **{name: folder / name for name in ("site", "netcdf")},
        }
    )


def _deliver(frame: Path, feed: Path) -> None:
    """Copy a file into the feed, then rename it, so that no cycle sees half of it."""
    if not (feed / frame.name).exists():
        with atomic_file(feed / frame.name) as aside:
            shutil.copy2(frame, aside)


def _pictures(stores: Stores, folder: Path) -> Path:
    """Draw maps of the newest run whose lead times are all observed, the observations, and score charts."""
    folder.mkdir(parents=True, exist_ok=True)
    observed, forecasts = stores.frames.read(), stores.forecasts.read()
    name = channels(observed)[0]
    painter = maps.MapPainter(Grid.of(observed), name, source=str(observed.attrs.get("licence", "")))
    seen, horizon = observed["time"].values, forecasts["lead_time"].values[-1]
    references = forecasts["forecast_reference_time"].values
    reference = references[references + horizon <= seen.max()].max()
    for step in MAP_STEPS:
        frame = observed[name].sel(time=reference + forecasts["lead_time"].values[step - 1])
        _map(painter, frame, folder / f"observed_{step * 5:03d}.png")
        for run in np.flatnonzero(references == reference):
            frame = forecasts[name].isel(run=run, lead_time=step - 1)
            _map(painter, frame, folder / f"{frame['model'].item()}_{step * 5:03d}.png")
    _loop(painter, observed[name], forecasts[name].isel(run=int(np.flatnonzero(references == reference)[0])), folder)
    scores = stores.scores.read().load()
    for limit in scores["threshold"].values[:CHART_THRESHOLDS]:
        (folder / f"csi_{limit:g}.png").write_bytes(skill_chart(scores, score="csi", threshold=float(limit)))
    for score in ("mse", "ssim"):
        (folder / f"{score}.png").write_bytes(skill_chart(scores, score=score))
    return folder


def _map(painter: maps.MapPainter, frame: xr.DataArray, path: Path) -> None:
    path.write_bytes(painter.png(frame.values, caption=maps.Caption.of(frame)))


def _loop(painter: maps.MapPainter, observed: xr.DataArray, run: xr.DataArray, folder: Path) -> None:
    """Draw an animation: the hour before the run as observed, then the forecast."""
    reference = run["forecast_reference_time"].values
    before = observed.sel(time=slice(reference - run["lead_time"].values[-1], reference))
    frames = [*before, *run.transpose("lead_time", ...)]
    drawn = [painter.png(frame.values, caption=maps.Caption.of(frame)) for frame in frames]
    (folder / "loop.gif").write_bytes(maps.loop(drawn))
