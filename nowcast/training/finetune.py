"""Recipes that fine-tune a checkpoint to the store of a domain."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import xarray as xr

from nowcast import config
from nowcast.config import Recipe
from nowcast.core.cube import channels, to_datetime
from nowcast.core.errors import ConfigError
from nowcast.data.archive import HELD_OUT, clip_parts
from nowcast.models import model_class
from nowcast.registry import checkpoint
from nowcast.registry.checkpoint import Card
from nowcast.store import FrameStore

METHODS = {"vp": "prompt", "fp": "full"}
"""Names in the GS2PM code -> ``Recipe.tuning``: the visual prompt alone, or all parameters."""
PLAIN_NAMES = ("frames", "store")
"""Names of stores that say nothing about their domain."""
CROP = 128
"""Side of crops in pixels, for larger frames, where the checkpoint's recipe states none."""
EVERY = 100
"""Largest number of steps between two validations."""
RADAR = ("rainfall_rate", "reflectivity")
"""Quantities that can be converted into each other."""


def domain_recipe(
    base: str | Path,
    domain: str,
    *,
    method: str = "vp",
    recipe: str | None = None,
    valid_from: datetime | None = None,
    minutes: float | None = None,
    steps: int | None = None,
    changes: Mapping[str, Any] | None = None,
    overrides: tuple[str, ...] = (),
) -> Recipe:
    """Build the recipe of a fine-tuning; windows and scaling are those of the checkpoint's training.

    Args:
        base: Checkpoint, or a prompt file.
        domain: Cube store whose frames are trained on.
        method: One of ``METHODS``.
        recipe: Recipe whose trainer applies; None: the shipped one of the method, ``training/gs2pm-vp.yaml``.
        valid_from: First time of the validation, and end of the training span; None: the splits that the store has, or
            the last fifth of the sequences to train on, or, of a feed, the newest fifth of the frames.
        minutes: Training ends after this time.
        steps: Training ends after this number of steps.
        changes: Dotted keys and values that override the recipe: ``{"trainer.batch_size": 4}``.
        overrides: More of them, as text: ``trainer.batch_size=4``.

    Raises:
        ConfigError: Unknown method, a store without times on both sides of ``valid_from``, refused settings.
        BadInput: If the checkpoint cannot be read.
    """
    path = checkpoint.find(base)
    card = checkpoint.read_card(path)
    frames = FrameStore(domain)
    model = card.model.partition(":")[0]
    _check_method(model, method)
    known: dict[str, Any] = {
        "name": f"{model}-{domain_name(domain)}-{method}",
        "model": card.model,
        "options": {},
        "start_from": str(path),
        "tuning": METHODS[method],
        "windows": _windows(card, frames.read()),
        **_spans(domain, frames, valid_from),
        **{f"trainer.{key}": value for key, value in budget(minutes, steps).items()},
    }
    words = config.words(known | dict(changes or {}))
    return config.load(Recipe, recipe or f"training/gs2pm-{method}.yaml", [*words, *overrides])


def _check_method(model: str, method: str) -> None:
    known = [word for word, tuning in METHODS.items() if tuning in model_class(model).tunings]
    if method not in known:
        raise ConfigError(f"{model} cannot be tuned by {method!r}; known: {', '.join(known)}.")


def budget(minutes: float | None, steps: int | None) -> dict[str, Any]:
    """Return the trainer's settings that end it after so many minutes, or steps."""
    if steps is None:
        return {} if minutes is None else {"minutes": minutes, "epochs": 10**6}
    every = min(EVERY, steps)
    return {"epochs": -(-steps // every), "batches_per_epoch": every, "minutes": minutes}


def domain_name(store: str) -> str:
    """Name a domain after its store: the folder, or the one above where the folder is named ``frames`` like others."""
    *above, last = [part for part in re.split(r"[/\\]", store) if part not in ("", ".")]
    name = above[-1] if last in PLAIN_NAMES and above else last
    return re.sub(r"[^\w.-]+", "-", name).strip("-.") or "domain"


def _spans(domain: str, frames: FrameStore, valid_from: datetime | None) -> dict[str, list[dict[str, Any]]]:
    """Divide a store into training and validation: by its splits, by whole sequences, or by time."""
    parts = clip_parts(domain, frames.timeline(), ("train", "valid")) if valid_from is None else {}
    if not parts:
        border = (valid_from or _newest(frames)).isoformat()
        parts = {"train": {"end": border}, "valid": {"start": border}}
    return {name: [{"store": domain} | part] for name, part in parts.items()}


def _newest(frames: FrameStore) -> datetime:
    """Return the time of the first frame of the newest fifth."""
    times = frames.times()
    return to_datetime(times[int((1 - HELD_OUT) * times.size)])


def _windows(card: Card, cube: xr.Dataset) -> dict[str, Any]:
    """Return the settings of windows that the network was trained with, in the quantity of the domain."""
    held = channels(cube)
    before: Any = dict(card.recipe.get("windows") or {})  # type: ignore[call-overload]
    same = card.quantity in held or (card.quantity in RADAR and set(held) & set(RADAR))
    quantity = card.quantity if same else held[0]
    sides = cube.sizes["y"], cube.sizes["x"]
    crop = min(before.get("crop") or CROP, *sides)
    kept = {key: value for key, value in before.items() if key in ("crops_per_window", "rain_weight", "resize")}
    whole = before.get("resize") or max(sides) <= crop
    return {
        **kept,
        "quantity": quantity,
        "in_steps": card.in_steps,
        "out_steps": card.out_steps,
        "channels": card.channels,
        "scaling": card.scaling.model_dump() if same else None,
        **({"crop": None, "crops_per_window": 1} if whole else {"crop": crop}),
    }
