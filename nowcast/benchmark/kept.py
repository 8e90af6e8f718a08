"""Forecasts of a test set with the frames kept: arrays, pictures, or a store.

    nowcast test runs/simvp/best.safetensors --store var/kth --split test --out kth --frames npy --frames strip

What ends up in the folder:

- ``inputs.npy``, ``trues.npy``, ``preds.npy``: float32 (clip, time, channel, row, column), pictures on [0, 1], others
  in their unit with NaN for no data; ``clips.csv`` names the sequence and the time of each clip.
- ``png/1/gt1.png`` to ``pd20.png``, ``gif/1.gif``, ``strip/1.png``: of the first clips, numbered from 1.
- ``store``: the forecasts as a store of frames at their valid times, one sequence for every clip.
- ``scores.md`` and ``scores.nc``: what they are worth, also by protocols of published tables.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr

from nowcast.benchmark import leaderboard
from nowcast.benchmark.evaluate import Evaluation, sound, totals
from nowcast.benchmark.leaderboard import Row
from nowcast.config import Span, WindowSettings
from nowcast.core import cube as cubes
from nowcast.core.errors import BadInput, ConfigError, OptionError
from nowcast.core.files import atomic_folder
from nowcast.core.grid import Grid
from nowcast.core.units import COLOURS, PICTURES
from nowcast.data.sources import Stored
from nowcast.models import MODELS, model_class
from nowcast.plotting import clips
from nowcast.registry import checkpoint
from nowcast.registry.checkpoint import Card, Model
from nowcast.store import FrameStore
from nowcast.verification.bootstrap import estimates
from nowcast.verification.protocols import protocol

FRAMES = ("npy", "png", "gif", "strip", "store")
"""Forms that frames are kept in."""
TOGETHER = 64
"""Clips that are committed to a store together."""
LEADS = 10
"""Frames that a model without weights forecasts by default."""


def keep(
    model: str,
    store: str,
    out: Path,
    *,
    split: str | None = None,
    sequences: Sequence[str] = (),
    frames: Sequence[str] = ("npy",),
    pictures: int = 10,
    inputs: int | None = None,
    leads: int | None = None,
    stride: int | None = None,
    protocols: Sequence[str] = (),
    lpips: bool = False,
    progress: Callable[[int, int, str], None] | None = None,
) -> Path:
    """Forecast every window of a store, keep the frames and score them.

    Args:
        model: Checkpoint, or a model without weights.
        store: Store of frames.
        out: Folder to write, which must not be there yet; it is all there or not at all.
        split: Only this split of the store.
        sequences: Only sequences whose labels match one of these patterns.
        frames: Some of ``FRAMES``.
        pictures: Number of clips that pictures are made of.
        inputs: Frames of a window before the forecast; None: as many as the model takes, which are the last of them.
        leads: Frames to forecast; None: as many as the network was trained for.
        stride: Frames between the starts of two windows of a sequence; None: they do not overlap.
        protocols: Protocols of published tables to score by too.
        lpips: Score the perceptual distance too; needs its weights.
        progress: Called with clips done, clips in all, name of the model.

    Returns:
        The folder.

    Raises:
        ConfigError: If the store has no such window, or frames of another step than the network's.
        BadInput: If the folder is there already, or the checkpoint cannot be read.
        OptionError: If a form of frames or a protocol is unknown.
    """
    for name in protocols:
        protocol(name)
    if unknown := set(frames) - set(FRAMES):
        raise OptionError(f"Frames are not kept as {', '.join(sorted(unknown))}; known: {', '.join(FRAMES)}.")
    if out.exists():
        raise BadInput(out, "is there already", "give another --out, or remove it")
    loaded, windows = _windows(model, store, inputs, leads, stride)
    span = Span(store=store, split=split, sequences=tuple(sequences))
    evaluation = Evaluation([span], windows, references=(), protocols=protocols, lpips=lpips)
    _check_step(loaded, evaluation)
    with atomic_folder(out) as folder:
        _write(folder, loaded, evaluation, frames, pictures, progress)
    return out


def _windows(
    model: str, store: str, inputs: int | None, leads: int | None, stride: int | None
) -> tuple[Model, WindowSettings]:
    """Load a model, and say which windows of the store it takes."""
    held = FrameStore(store).timeline().attrs["channels"]
    colour = set(COLOURS) <= set(held)
    if model.partition(":")[0] in MODELS and not Path(model).exists():
        out_steps = leads or LEADS
        in_steps, channels = max(model_class(model).history[1], 1), 3 if colour else 1
        found = checkpoint.reference(model, in_steps=in_steps, out_steps=out_steps, channels=channels)
        more: dict[str, Any] = {"quantity": "intensity" if colour else held[0], "channels": channels}
    else:
        path = checkpoint.find(model)
        card = checkpoint.read_card(path)
        found = checkpoint.load(path, device="cuda" if torch.cuda.is_available() else "cpu")
        in_steps, out_steps, more = card.in_steps, leads or card.out_steps, _as_trained(card)
    if inputs is not None and inputs < in_steps:
        raise ConfigError(f"{model} takes {in_steps} frames, and {inputs} before the forecast are too few.")
    before = inputs or in_steps
    steps = {"in_steps": before, "out_steps": out_steps, "stride": stride or before + out_steps}
    return found, WindowSettings.model_validate(steps | more)


def _as_trained(card: Card) -> dict[str, Any]:
    before: Any = dict(card.recipe.get("windows") or {})  # type: ignore[call-overload]
    return {"quantity": card.quantity, "channels": card.channels, "resize": before.get("resize")}


def _check_step(model: Model, evaluation: Evaluation) -> None:
    step, own = evaluation.sources[0].step_seconds, model.cadence_seconds
    if own is not None and own != step and evaluation.quantity.name not in PICTURES:
        raise ConfigError(f"{evaluation.sources[0].name}: its step is {step} s, that of the network {own} s.")


def _write(
    folder: Path,
    model: Model,
    evaluation: Evaluation,
    frames: Sequence[str],
    pictures: int,
    progress: Callable[[int, int, str], None] | None,
) -> None:
    labels, times = (values[evaluation.chosen[0]] for values in evaluation.sources[0].beginnings())
    keepers: list[_Arrays | _Pictures | _Store] = []
    if "npy" in frames:
        keepers.append(_Arrays(folder, len(labels)))
    drawn = [form for form in frames if form not in ("npy", "store")]
    if drawn:
        keepers.append(_Pictures(folder, drawn, pictures, evaluation))
    if "store" in frames:
        keepers.append(_Store(folder / "store", evaluation, labels, times))

    def each(number: int, past: np.ndarray, seen: np.ndarray, made: np.ndarray) -> None:
        for keeper in keepers:
            keeper.take(number, past, seen, made)
        if progress:
            progress(number + 1, len(labels), model.name)

    sums = evaluation.sums(model, folder / "scores.nc", each=each)
    for keeper in keepers:
        keeper.close()
    with (folder / "clips.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["clip", "sequence", "time"])
        table.writerows(zip(count(1), labels, np.datetime_as_string(times, unit="s"), strict=False))
    (folder / "scores.md").write_text(_scores(model, evaluation, sums))


# --- forms ----------------------------------------------------------------------------------------


class _Arrays:
    """Three arrays on the disk, filled clip by clip, so that a test set need not fit into memory."""

    def __init__(self, folder: Path, clips: int) -> None:
        self.folder, self.clips = folder, clips
        self.files: dict[str, np.ndarray] = {}

    def take(self, number: int, past: np.ndarray, seen: np.ndarray, made: np.ndarray) -> None:
        for name, frames in (("inputs", past), ("trues", seen), ("preds", made)):
            if name not in self.files:
                path, shape = self.folder / f"{name}.npy", (self.clips, *frames.shape)
                self.files[name] = np.lib.format.open_memmap(path, "w+", np.float32, shape)
            self.files[name][number] = frames

    def close(self) -> None:
        self.files.clear()


@dataclass
class _Pictures:
    """Pictures of the first clips."""

    folder: Path
    forms: Sequence[str]
    most: int
    evaluation: Evaluation

    def take(self, number: int, *fields: np.ndarray) -> None:
        if number >= self.most:
            return
        scaling, name = self.evaluation.quantity.scaling, str(number + 1)
        past, seen, made = (clips.levels(scaling.encode(frames)) for frames in fields)
        for form in self.forms:
            (self.folder / form).mkdir(exist_ok=True)
            if form == "png":
                clips.write_frames(self.folder / form / name, past, seen, made)
            elif form == "gif":
                clips.write_gif(self.folder / form / f"{name}.gif", past, seen, made)
            else:
                clips.write_strip(self.folder / form / f"{name}.png", past, seen, made)

    def close(self) -> None:
        pass


@dataclass
class _Store:
    """A store of forecasts, a sequence per clip; clips of one sequence are told apart by their number."""

    path: Path
    evaluation: Evaluation
    labels: np.ndarray
    times: np.ndarray
    waiting: list[xr.Dataset] = field(default_factory=list)

    def take(self, number: int, past: np.ndarray, _: np.ndarray, made: np.ndarray) -> None:
        source, name = self.evaluation.sources[0], self.evaluation.quantity.name
        step = np.timedelta64(max(source.step_seconds, 1), "s")
        times = self.times[number] + (len(past) + np.arange(len(made))) * step
        names = COLOURS if made.shape[1] == len(COLOURS) else (name,)
        label = str(self.labels[number])
        if (self.labels == self.labels[number]).sum() > 1:
            label = f"{label}#{number + 1}"
        fields = {key: np.ascontiguousarray(made[:, channel]) for channel, key in enumerate(names)}
        attrs = {"title": f"Forecasts of {source.name}"}
        self.waiting.append(cubes.make(fields, times, self._grid(made.shape[-2:]), sequence=label, attrs=attrs))
        if len(self.waiting) == TOGETHER:
            self.close()

    def _grid(self, shape: tuple[int, int]) -> Grid:
        source = self.evaluation.sources[0]
        if isinstance(source, Stored) and not source.settings.resize:
            return Grid.of(source.store.read(source.version))
        return Grid.picture(shape)

    def close(self) -> None:
        if self.waiting:
            together = xr.concat(self.waiting, "time", data_vars="minimal", coords="minimal", compat="override")
            FrameStore(self.path).append(together, message=f"{len(self.waiting)} forecasts")
            self.waiting.clear()


# --- scores ---------------------------------------------------------------------------------------


def _scores(model: Model, evaluation: Evaluation, sums: xr.Dataset) -> str:
    together, blocks = sound(sums).expand_dims("seed"), evaluation.blocks()
    by_lead = estimates(together, evaluation.names, blocks=blocks)
    overall = estimates(together, evaluation.names, blocks=blocks, over=("lead_time",))
    measured = {name: totals(sums.expand_dims("seed"), name) for name in evaluation.protocols}
    row = Row(model.name, True, by_lead, overall, measured=measured)
    facts = {
        "Test": "; ".join(map(evaluation.words, evaluation.sources)) + f": {len(blocks)} windows",
        "Model": model.digest,
        "Pooling": "sums over windows and lead times first, then ratios",
        "Pixels": f"whole frames; {evaluation.left_out({model.name: sums})}",
    }
    return leaderboard.markdown([row], title=model.name, protocol=facts)
