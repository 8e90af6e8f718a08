"""Recipes and benchmarks, whose files name the stores they were made for, on the archive that somebody has."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import xarray as xr

from nowcast import config
from nowcast.config import Benchmark, Moving, Recipe, Span
from nowcast.core.cube import channels, to_datetime
from nowcast.core.errors import ConfigError
from nowcast.store import FrameStore

HELD_OUT = 0.2
"""Share of the frames in each part that is held out, the newest: for validation and, in a benchmark, the test."""
RADAR = {"rainfall_rate", "reflectivity"}
"""Quantities that can be converted into each other."""
SIDE_MULTIPLE = 8
"""Networks want sides of crops that can be halved."""
SUFFIX = ".safetensors"
Settings = TypeVar("Settings", Recipe, Benchmark)


def on_archive(settings: Settings, store: str, *, quantity: str | None = None) -> Settings:
    """Put a recipe or a benchmark on an archive of frames, whose newest fifth it holds out.

    Args:
        settings: Network, windows, budget; what they say of data is replaced.
        store: Cube store.
        quantity: Channel to forecast; None: the store's first.

    Raises:
        ConfigError: If there is no store, or too few frames in it.
    """
    frames = FrameStore(store)
    if not frames.exists():
        raise ConfigError(f"{store}: there are no frames yet; nowcast ingest READER FOLDER --store {store}.")
    spans = _spans(settings, store, frames)
    changes: dict[str, object] = {**spans, "windows": _windows(settings, frames, quantity)}
    if isinstance(settings, Benchmark):
        changes["domains"] = ()  # there is one archive
    return settings.model_copy(update=changes)


def check_there(settings: Recipe | Benchmark, file: str | Path) -> None:
    """Refuse a recipe or a benchmark whose data, or checkpoint to start from, is not there.

    Args:
        settings: What the file says, with the overrides.
        file: Names it in the error; its comments say how the data are made.

    Raises:
        ConfigError: Names what is missing, and the commands that mend it.
    """
    missing = list(dict.fromkeys(_missing(settings)))
    if not missing:
        return
    comments = [line.lstrip("# ").strip() for line in config.find(file).read_text().splitlines() if line[:1] == "#"]
    remedies = [remedy for what in missing for remedy in _remedies(what, comments)]
    if missing != [str(settings.start_from) if isinstance(settings, Recipe) else None]:
        verb = "benchmark" if isinstance(settings, Benchmark) else "train"
        remedies.append(f"with frames of your own, nowcast {verb} {file} --store STORE")
    raise ConfigError(
        f"{file}: {', '.join(missing)}: not found from {Path.cwd()}; {'; '.join(dict.fromkeys(remedies))}."
    )


def _remedies(what: str, comments: list[str]) -> list[str]:
    """Find the command that makes what is missing."""
    recipe = f"training/{Path(what).parent.name}.yaml"
    if what.endswith(SUFFIX):
        return [f"nowcast train {recipe}" if (config.shipped_folder() / recipe).exists() else "give start_from=FILE"]
    if what.startswith("demo/"):
        return ["nowcast demo --no-serve"]
    return [line for line in comments if what in line and " " in line]


def shipped(file: str | Path) -> bool:
    """Whether a file is one that comes with the package, and names data that only its authors have."""
    return config.find(file).resolve().is_relative_to(config.shipped_folder().resolve())


def _missing(settings: Recipe | Benchmark) -> Iterator[str]:
    if isinstance(settings, Benchmark) and settings.domains:  # one that is there is enough
        each = [list(_missing(settings.of(domain))) for domain in settings.domains]
        yield from (what for missing in each for what in missing if all(each))
        return
    parts = [settings.train, settings.valid, *([settings.test] if isinstance(settings, Benchmark) else [])]
    for span in (span for part in parts for span in part):
        if isinstance(span, Moving):
            if not span.images.exists():
                yield str(span.images)
        elif not FrameStore(span.store).exists():
            yield span.store
    if isinstance(settings, Recipe) and settings.start_from:
        yield from _missing_weights(settings.start_from)


def _missing_weights(path: Path) -> Iterator[str]:
    """Yield a checkpoint that is not there; a name without a folder is one of those that come with the package."""
    if path.parent != Path() and not path.exists():
        yield str(path)


def _spans(settings: Recipe | Benchmark, store: str, frames: FrameStore) -> dict[str, tuple[Span, ...]]:
    """Divide clips by their splits or whole, a feed by time: of it the newest fifth, or two of them, are held out."""
    names = ["train", "valid", *(["test"] if isinstance(settings, Benchmark) else [])]
    if parts := clip_parts(store, frames.timeline(), names):
        return {name: (Span.model_validate({"store": store} | part),) for name, part in parts.items()}
    times = frames.times()
    needed = settings.windows.in_steps + settings.windows.out_steps
    if int(times.size * HELD_OUT) < needed:
        raise ConfigError(
            f"{store}: {times.size} frames, of which the newest fifth does not hold one window of {needed}; "
            f"wait for {int(needed / HELD_OUT)}, or add older ones: nowcast ingest READER FOLDER --store {store}."
        )
    cuts = [to_datetime(times[int((1 - HELD_OUT * part) * times.size)]) for part in range(len(names) - 1, 0, -1)]
    edges = [None, *cuts, None]
    spans = (Span(store=store, start=start, end=end) for start, end in pairwise(edges))
    return {name: (span,) for name, span in zip(names, spans, strict=True)}


def clip_parts(store: str, labels: xr.Dataset, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Divide a store of clips: by its splits, or by whole sequences where it has none or too few.

    Args:
        store: Its name.
        labels: Its timeline.
        names: Parts that are wanted: ``train`` first, then those that are held out.

    Returns:
        What tells the span of each part; nothing for a feed, whose times divide it.

    Raises:
        ConfigError: If there is nothing to train on, or too few sequences.
    """
    splits = set(labels["split"].values.tolist()) - {""} if "split" in labels else set()
    if splits and names[0] not in splits:
        raise ConfigError(
            f"{store}: there is no split {names[0]!r} to train on; its splits: {', '.join(sorted(splits))}."
        )
    if not splits and np.unique(labels["time"].values).size == labels.sizes["time"]:
        return {}
    cut = [names[0], *(name for name in names[1:] if name not in splits)]
    mine = labels.isel(time=labels["split"].values == names[0]) if splits else labels
    count = np.unique(mine["sequence"].values.astype(str)).size
    if count < len(cut):
        raise ConfigError(f"{store}: {count} sequences cannot be divided into {', '.join(cut)}; add clips.")
    held = max(HELD_OUT, 1 / count)
    edges = [0, *(round(1 - held * part, 6) for part in range(len(cut) - 1, 0, -1)), 1]
    own = {"split": names[0]} if splits else {}
    shares = [{"share": list(pair)} for pair in pairwise(edges)] if len(cut) > 1 else [{}]
    parts = {name: own | share for name, share in zip(cut, shares, strict=True)}
    return {name: parts.get(name, {"split": name}) for name in names}


def _windows(settings: Recipe | Benchmark, frames: FrameStore, quantity: str | None) -> config.WindowSettings:
    """Take over lengths and crops; the quantity is the archive's, where the recipe's cannot be made of it."""
    windows, cube = settings.windows, frames.read()
    held = channels(cube)
    same = windows.quantity in held or (windows.quantity in RADAR and RADAR & set(held))
    changes: dict[str, object] = {} if same else {"quantity": quantity or held[0], "scaling": None, "channels": 1}
    generated = [span.canvas for span in settings.train if isinstance(span, Moving)]
    side = windows.crop or windows.resize or (generated[0] if generated else None)
    if side:
        side = min(side, *(cube.sizes[axis] // SIDE_MULTIPLE * SIDE_MULTIPLE for axis in ("y", "x")))
        changes |= {"crop": side, "resize": None}
    return windows.model_copy(update=changes)
