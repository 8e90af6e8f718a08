"""The data that networks are scored on: test windows, and the pixels that are compared.

Of radar these are the pixels on which every reference has a forecast. Of pictures they are all pixels: what a
reference leaves out there counts as black.

Scores are computed in the physical unit and as ``nowcast verify`` would: whole frames, forecasts rounded to the
resolution in which they are stored, sums per window, lead time and threshold.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from time import perf_counter

import numpy as np
import xarray as xr

from nowcast.config import Benchmark, Moving, Span, WindowSettings
from nowcast.core.code_digest import code_digest
from nowcast.core.errors import ConfigError, ForecastError
from nowcast.core.files import atomic_file
from nowcast.core.libraries import writing_netcdf
from nowcast.core.units import PICTURES, get_quantity
from nowcast.data.sources import Source, Stored, check_apart, source
from nowcast.models import model_class
from nowcast.registry import checkpoint
from nowcast.registry.checkpoint import Model, clipped, predict
from nowcast.verification import published
from nowcast.verification import scores as score
from nowcast.verification.protocols import LIMIT

STEP_TOLERANCE = 0.25
"""Share by which the step of test frames may differ from that of training."""


Each = Callable[[int, np.ndarray, np.ndarray, np.ndarray], None]


@dataclass(frozen=True)
class Part:
    """The windows of train, valid or test."""

    sources: list[Source]

    @property
    def windows(self) -> int:
        """Number of windows in all sources."""
        return sum(found.weights.size for found in self.sources)


class Evaluation:
    """Windows that models are scored on.

    Args:
        spans: Sources and periods of the windows; whole frames are scored.
        windows: Numbers of frames in and out, quantity and scaling.
        references: Models without weights, scored on the same pixels: of radar those that all of them cover.
        thresholds: Event limits in the quantity's unit; None: the quantity's own.
        lpips: Score the perceptual distance LPIPS too.
        protocols: Published tables whose scores are computed too, apart from the others.
        block_minutes: Length of a block: windows that begin in the same one are not taken as independent.
        stride: Frames between the starts of two windows; None: as in ``windows``.
        most: Number of windows used, spread evenly; None: all.
    """

    def __init__(
        self,
        spans: Sequence[Span | Moving],
        windows: WindowSettings,
        *,
        references: Sequence[str],
        thresholds: Sequence[float] | None = None,
        lpips: bool = False,
        protocols: Sequence[str] = (),
        block_minutes: float = 60,
        stride: int | None = None,
        most: int | None = None,
    ) -> None:
        whole = {"crop": None, "crops_per_window": 1, "stride": stride or windows.stride}
        self.windows = windows.model_copy(update=whole)
        self.sources, self.quantity = [source(span, self.windows) for span in spans], get_quantity(windows.quantity)
        limits = self.quantity.thresholds if thresholds is None else thresholds
        self.thresholds = tuple(float(limit) for limit in limits)
        self.lpips, self.protocols, self.block_minutes = lpips, tuple(protocols), block_minutes
        self.channels = max(found.channels for found in self.sources)
        self.references = [_reference(name, windows, self.channels) for name in references]
        self.deciding = [] if self.quantity.name in PICTURES else self.references
        """References that decide by what they cover which pixels are compared."""
        self.chosen = _spread([found.weights.size for found in self.sources], most)
        """For every source, the numbers of the windows used."""
        self._common: dict[int, np.ndarray] = {}

    @property
    def frame(self) -> tuple[int, int]:
        """Rows and columns of the frames of the first source."""
        side = self.windows.resize
        return (side, side) if side else self.sources[0].size

    @property
    def names(self) -> list[str]:
        """Scores computed, as keys of ``SCORES``."""
        events, perceptual = ["csi"] if self.thresholds else [], ["lpips"] if self.lpips else []
        return [*events, "mse", "mae", "ssim", *perceptual]

    def blocks(self) -> np.ndarray:
        """Name the block of time that each window begins in, (window); sequences of sources never share a block."""
        length = np.timedelta64(round(60 * self.block_minutes), "s")
        found = []
        for number, (part, chosen) in enumerate(zip(self.sources, self.chosen, strict=True)):
            labels, times = (values[chosen] for values in part.beginnings())
            places = ((times - np.datetime64(0, "s")) // length).astype(int)
            found += [f"{number} {label} {place}" for label, place in zip(labels, places, strict=True)]
        return np.asarray(found)

    def sums(self, model: Model, path: Path, *, each: Each | None = None) -> xr.Dataset:
        """Compute a model's sums (window, lead_time, threshold) and seconds per forecast, or read them from ``path``.

        Args:
            model: Anything that forecasts.
            path: netCDF file of the sums.
            each: Called with the number of every window, its past, its future, and the forecast: (T, C, H, W) each.

        Raises:
            ForecastError: If a forecast is not finite where it is scored.
        """
        what = {"model": model.digest, "test": self._digest()}
        if path.exists() and (kept := xr.load_dataset(path)).attrs == what:
            return kept
        rows = [self._row(model, number, *pair, each) for number, pair in enumerate(self.pairs())]
        table = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        leads = np.arange(1, self.windows.out_steps + 1) * np.timedelta64(self.sources[0].step_seconds, "s")
        limits = ("threshold", np.asarray(self.thresholds, np.float64), {"units": self.quantity.unit})
        coords = {"lead_time": leads.astype("timedelta64[ns]"), "threshold": limits}
        variables = {name: (_dims(name, values.ndim), values) for name, values in table.items()}
        made = xr.Dataset(variables, coords, what)
        with atomic_file(path) as aside, writing_netcdf():
            made.to_netcdf(aside)
        return made

    @staticmethod
    def words(found: Source) -> str:
        """Describe a source: its name, its period and its version."""
        if not isinstance(found, Stored):
            return ", ".join(f"{key} {value}" for key, value in found.facts().items() if value is not None)
        labels, times = found.beginnings()
        first, last = (np.datetime_as_string(time, unit="m") for time in (times.min(), times.max()))
        return (
            f"{found.name}, {found.touched.size} frames, sequences: {np.unique(labels).size}, windows beginning "
            f"{first}Z to {last}Z, version {found.version}"
        )

    def _digest(self) -> str:
        """Return a JSON text of all that the sums depend on, except the model."""
        settings = {"references": [model.name for model in self.references], "lpips": self.lpips}
        settings["protocols"] = list(self.protocols)
        facts, count = [found.facts() for found in self.sources], sum(map(len, self.chosen))
        code = code_digest(__name__)
        return json.dumps([facts, self.windows.model_dump(mode="json"), settings, self.thresholds, count, code])

    def pairs(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Iterate over past and future (T, C, H, W) of every window, in the physical unit, NaN for no data."""
        for found, chosen in zip(self.sources, self.chosen, strict=True):
            for window in chosen.tolist():
                fields = found.physical(window)
                if fields.shape[1] < self.channels:  # a grey video beside coloured ones
                    fields = np.repeat(fields, self.channels, axis=1)
                yield fields[: self.windows.in_steps], fields[self.windows.in_steps :]

    def _row(
        self, model: Model, number: int, past: np.ndarray, seen: np.ndarray, each: Each | None
    ) -> dict[str, np.ndarray]:
        started = perf_counter()
        raw = self.forecast(model, past, clip=False)
        seconds = perf_counter() - started
        compared, made = self._compared(number, past, seen), clipped(model, raw, quantity=self.quantity.name)
        uncovered = np.isnan(made) & compared
        if model.network.handles_missing:  # pixels that its scaling or motion leaves empty are dry
            made = np.where(np.isnan(made), self.quantity.scaling.decode(np.zeros((), np.float32)), made)
        if not np.isfinite(made[compared]).all():
            raise ForecastError("its forecasts are not finite")
        if each:
            each(number, past, seen, made)
        step = np.float64(self.quantity.resolution)
        rounded = (np.rint(made / step) * step).astype(np.float32)
        rounded[~compared] = np.nan
        fields = [score.floored(field, self.quantity.scaling) for field in (rounded, seen)]
        pixels = {"uncovered": uncovered.sum((1, 2, 3)), "unobserved": np.isnan(seen).sum((1, 2, 3))}
        sums = self._sound(*fields) | self._perceptual(*fields) | self._published(raw, seen)
        return sums | pixels | {"seconds": np.asarray(seconds)}

    def forecast(self, model: Model, past: np.ndarray, *, clip: bool = True) -> np.ndarray:
        """Forecast fields (T, C, H, W) in the physical unit, from as many past frames as the model takes."""
        recent, leads = past[-model.network.in_steps :], self.windows.out_steps
        return predict(model, recent, quantity=self.quantity.name, leads=leads, clip=clip)

    def _compared(self, number: int, past: np.ndarray, seen: np.ndarray) -> np.ndarray:
        """Mask pixels (T, C, H, W) seen at the valid time and in the last frame, and covered by who decides that."""
        if number not in self._common:
            known = np.isfinite(seen) & np.isfinite(past[-1])
            for reference in self.deciding:
                known &= np.isfinite(self.forecast(reference, past))
            self._common[number] = np.packbits(known)
        return np.unpackbits(self._common[number], count=seen.size).reshape(seen.shape).astype(bool)

    def _sound(self, made: np.ndarray, seen: np.ndarray) -> dict[str, np.ndarray]:
        """Add up the sums of all channels."""
        thresholds, scaling = self.thresholds, self.quantity.scaling
        channels = [
            score.sums(made[:, channel], seen[:, channel], thresholds=thresholds, scaling=scaling)
            for channel in range(self.channels)
        ]
        return {name: np.sum([one[name] for one in channels], axis=0) for name in channels[0]}

    def _perceptual(self, made: np.ndarray, seen: np.ndarray) -> dict[str, np.ndarray]:
        if not self.lpips:
            return {}
        from nowcast.verification.lpips import distance_sums  # loads a network

        frames = [distance_sums(*pair, scaling=self.quantity.scaling) for pair in zip(made, seen, strict=True)]
        return {name: np.asarray([frame[name] for frame in frames]) for name in frames[0]}

    def _published(self, made: np.ndarray, seen: np.ndarray) -> dict[str, np.ndarray]:
        """Measure whole frames by the protocols, as they leave the network; the names are ``protocol.measurement``."""
        found: dict[str, np.ndarray] = {}
        for name in self.protocols:
            first, second = (published.pixels(field, name, quantity=self.quantity.name) for field in (made, seen))
            table = published.sums(first, second, name, lpips=self.lpips)
            found |= {f"{name}.{key}": values for key, values in table.items()}
        return found

    def left_out(self, sums: Mapping[str, xr.Dataset]) -> str:
        """Say which pixels are not compared, or count as black, by the sums of the references."""
        first = next(iter(sums.values()))
        total = int(np.prod(self.frame)) * self.channels * int(first["n"].size)
        absent = 1 - int(first["n"].sum()) / total
        unseen = int(first["unobserved"].sum()) / total
        if self.deciding:
            return f"{absent:.1%} of the pixels are not compared, {unseen:.1%} since they were not observed"
        shares = {name: int(one["uncovered"].sum()) / total for name, one in sums.items()}
        words = [
            f"{name} has no forecast for {share:.1%} of them, which count as black"
            for name, share in shares.items()
            if share
        ]
        return "; ".join([f"{absent:.1%} of the pixels are not compared", *words])


class BenchmarkEvaluation(Evaluation):
    """The test windows of a benchmark.

    Raises:
        ConfigError: If a frame is in two of train, valid and test, or steps differ.
    """

    def __init__(self, settings: Benchmark) -> None:
        super().__init__(
            settings.test,
            settings.windows,
            references=settings.references,
            thresholds=settings.thresholds,
            lpips=settings.lpips,
            protocols=settings.protocol,
            block_minutes=settings.block_minutes,
            stride=settings.test_stride,
        )
        self.settings = settings
        self.parts = {
            name: Part(self.sources if name == "test" else [source(span, settings.windows) for span in spans])
            for name, spans in _spans(settings).items()
        }
        self._check()

    def _check(self) -> None:
        for one, other in (("train", "valid"), ("train", "test"), ("valid", "test")):
            check_apart(self.parts[one].sources, self.parts[other].sources, names=(one, other))
        step = self.parts["train"].sources[0].step_seconds
        for found in self.parts["test"].sources:
            if abs(found.step_seconds - step) > STEP_TOLERANCE * step:
                raise ConfigError(f"{found.name}: its step is {found.step_seconds} s, that of train {step} s; use one.")


def _spread(sizes: Sequence[int], most: int | None) -> list[np.ndarray]:
    """Choose windows of sources of these sizes, all or ``most`` evenly spaced ones; return their numbers by source."""
    total = sum(sizes)
    taken = np.arange(total) if most is None or total <= most else np.arange(most) * total // most
    ends = np.cumsum([0, *sizes])
    return [taken[(taken >= first) & (taken < last)] - first for first, last in pairwise(ends)]


def sound(sums: xr.Dataset) -> xr.Dataset:
    """Return the sums of the sound scores alone, without those of published tables and the costs."""
    return sums.drop_vars(["seconds", *(str(name) for name in sums if "." in str(name))])


def totals(sums: xr.Dataset, protocol: str) -> xr.Dataset:
    """Add up the measurements of one protocol over windows and seeds, see ``nowcast.verification.published``."""
    start = f"{protocol}."
    mine = {str(name): str(name).removeprefix(start) for name in sums if str(name).startswith(start)}
    pooled = sums[list(mine)].sum(["window", "seed"])
    return published.dataset({short: pooled[name].values for name, short in mine.items()}, protocol).assign_coords(
        lead_time=sums["lead_time"]
    )


def _dims(name: str, count: int) -> tuple[str, ...]:
    protocol, dot, _ = name.rpartition(".")
    return ("window", "lead_time", f"{protocol}.{LIMIT}" if dot else "threshold")[:count]


def _spans(settings: Benchmark) -> dict[str, tuple[Span | Moving, ...]]:
    return {"train": settings.train, "valid": settings.valid, "test": settings.test}


def _reference(name: str, windows: WindowSettings, channels: int) -> Model:
    steps = min(model_class(name).history[1], windows.in_steps)
    return checkpoint.reference(name, in_steps=steps, out_steps=windows.out_steps, channels=channels)
